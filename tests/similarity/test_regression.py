"""GULP against the difference of the two n × n prediction matrices."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

RIDGES = (0.0, 1e-4, 1.0)


def moments(x, y, **options):
    return sk.Moments(x.shape[1], y.shape[1], **options).update(x, y)


@pytest.mark.parametrize("ridge", RIDGES)
def test_against_reference(case, ridge, device):
    name, x, y = case
    expected = reference.gulp_squared(x, y, ridge).sqrt().item()
    x, y = x.to(device), y.to(device)
    near = expected < 1e-3  # a root of rounding: √ε
    assert near == (name == "identical" or (name == "n < p" and ridge == 0))
    # of float32 moments a distance is as good as its square
    coarse = 1e-2 if near else max(1e-6, 1e-6 / expected)
    sources = [((x, y), 1e-6), ((moments(x, y, precision="float64"),), 1e-6), ((moments(x, y),), coarse)]
    for a, allowed in sources:
        assert sk.gulp(*a, ridge=ridge) == pytest.approx(expected, abs=allowed), name
    assert sk.gulp(y, x, ridge=ridge) == pytest.approx(sk.gulp(x, y, ridge=ridge), abs=1e-6)
    assert sk.gulp(x, x, ridge=ridge) < 1e-6


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("rows", [300, 30])
def test_invariance(rows, ridge):
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, c, generator=g, dtype=torch.float64) for c in (20, 6))
    y = y + x[:, :6]
    turn = torch.linalg.qr(torch.randn(20, 20, generator=g, dtype=torch.float64)).Q
    value = sk.gulp(x, y, ridge=ridge)
    assert sk.gulp(3e5 * x @ turn + 7e3, 1e-4 * y - 11, ridge=ridge) == pytest.approx(value, abs=1e-9)
    if ridge == 0:
        rho = sk.cca(x, y)
        assert value**2 == pytest.approx(rho.rank_x + rho.rank_y - 2 * rho.pillai, abs=1e-9)
    a, b, c = (torch.randn(rows, k, generator=g, dtype=torch.float64) for k in (4, 5, 3))
    b[:, :4] += a
    assert sk.gulp(a, c, ridge=ridge) <= sk.gulp(a, b, ridge=ridge) + sk.gulp(b, c, ridge=ridge) + 1e-12


def test_it_bounds_the_predictions_of_every_target(generator):
    x, y = torch.randn(50, 6, generator=generator).double(), torch.randn(50, 4, generator=generator).double()
    bound = sk.gulp(x, y, ridge=0.1)
    for _ in range(20):
        target = torch.randn(50, generator=generator).double()
        target = (target - target.mean()) / target.norm()
        fits = []
        for t in (x, y):
            t = (t - t.mean(0)) / (t - t.mean(0)).norm()
            fits.append(t @ torch.linalg.solve(t.T @ t + 0.1 * torch.eye(t.shape[1]), t.T @ target))
        assert 0 < (fits[0] - fits[1]).norm() < bound


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for ridge in RIDGES:
        expected = torch.tensor([sk.gulp(m, ridge=ridge) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(sk.gulp(source, ridge=ridge), expected, rtol=0, atol=1e-10)
    assert sk.gulp(stats.reshape(3, 1)).shape == (3, 1) and sk.gulp(stats[0]).shape == ()


def test_numpy_and_bfloat16(generator):
    x, y = torch.randn(50, 9, generator=generator), torch.randn(50, 7, generator=generator)
    half = x.bfloat16(), y.bfloat16()
    assert sk.gulp(x.numpy(), y.numpy()) == sk.gulp(x, y)
    assert sk.gulp(*half) == pytest.approx(sk.gulp(half[0].double(), half[1].double()), abs=1e-9)


def test_bad_input_is_an_error():
    x = torch.randn(10, 3)
    for error, match, a in [
        (StatisticsError, "y does not vary", (x, torch.full((10, 2), 0.1))),
        (StatisticsError, "at least 2 samples; got 1", (x[:1], x[:1])),
        (ShapeError, "same n", (x, x[:9])),
        (NotFiniteError, "x holds NaN", (x / 0, x)),
        (ValueError, "y is missing", (x,)),
        (ValueError, "hold both sides", (moments(x, x), x)),
    ]:
        with pytest.raises(error, match=match):
            sk.gulp(*a)
    for ridge in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge must be"):
            sk.gulp(x, x, ridge=ridge)
