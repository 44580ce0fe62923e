"""Linear R² in both directions, against projections of the data itself."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

DIRECTIONS = ("x_to_y", "y_to_x")


def moments(x, y, **options):
    m = sk.Moments(x.shape[1], y.shape[1], **options)
    for a in range(0, len(x), 150):
        m.update(x[a : a + 150], y[a : a + 150])
    return m


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_against_reference(case, direction, device):
    name, x, y = case
    expected = reference.linear_r2(*((x, y) if direction == "x_to_y" else (y, x))).item()
    a, b = x.to(device), y.to(device)
    for source in ((a, b), (moments(a, b),)):
        assert sk.linear_r2(*source, direction=direction) == pytest.approx(expected, abs=1e-6)
    assert sk.linear_r2(b, a) == pytest.approx(sk.linear_r2(a, b, direction="y_to_x"), abs=1e-14)
    both = sk.linear_r2(a, b, direction="both")
    assert both == tuple(sk.linear_r2(a, b, direction=d) for d in DIRECTIONS)
    if name == "plain":
        assert 0.3 < both[1] < both[0] < 0.95
    if name == "n < p":
        assert both == pytest.approx((1, 1), abs=1e-12)


def test_self_similarity_is_one(case):
    _, x, _ = case
    assert sk.linear_r2(x, x) == pytest.approx(1, abs=1e-12)
    assert sk.linear_r2(moments(x, x, precision="float64")) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rows", [300, 30])
def test_invariance(rows):
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, c, generator=g, dtype=torch.float64) for c in (20, 6))
    y = y + x[:, :6]
    value = sk.linear_r2(x, y)
    assert 0.3 < value < 0.95
    skew = torch.randn(20, 20, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    assert sk.linear_r2(x @ skew + 1e3, 1e-4 * y @ turn - 11) == pytest.approx(value, abs=1e-9)
    assert sk.linear_r2(1e200 * x, 1e-200 * y) == pytest.approx(value, abs=1e-12)
    assert sk.linear_r2(torch.cat([x, x[:, :3], torch.ones(rows, 1)], 1), y) == pytest.approx(value, abs=1e-12)
    assert sk.linear_r2(1e200 * x[:15], y[:15]) == pytest.approx(1, abs=1e-12)  # n < p
    wide = torch.cat([y, torch.zeros(rows, 400)], 1)
    assert sk.linear_r2(x, wide) == pytest.approx(value, abs=1e-12)


def test_nearly_collinear_features(generator):
    """In covariances their difference, which y is, has lost all of its digits."""
    a = torch.randn(200, 1, generator=generator).double()
    difference = torch.randn(200, 1, generator=generator).double()
    x = torch.cat([a, a + 1e-7 * difference], 1)
    noise = torch.randn(200, 1, generator=generator).double()
    expected = reference.linear_r2(torch.cat([a, difference], 1), difference + noise).item()
    assert sk.linear_r2(x, difference + noise) == pytest.approx(expected, abs=1e-6)
    assert sk.linear_r2(x, x) == pytest.approx(1, abs=1e-12)


def test_adjusted_is_zero_on_average_for_unrelated_sides(generator):
    found = []
    for _ in range(200):
        x, y = (torch.randn(40, c, generator=generator) for c in (9, 3))
        x = torch.cat([x, x[:, :1], torch.ones(40, 2)], 1)  # which count as no further directions
        r2 = sk.linear_r2(x, y)
        found.append((r2, sk.linear_r2(x, y, adjusted=True)))
        assert found[-1][1] == pytest.approx(1 - (1 - r2) * 39 / 30, abs=1e-12)
        assert sk.linear_r2(moments(x, y), adjusted=True) == pytest.approx(found[-1][1], abs=1e-6)
    plain, adjusted = torch.tensor(found).T
    assert abs(plain.mean() - 9 / 39) < 4 * plain.std() / 200**0.5
    assert abs(adjusted.mean()) < 4 * adjusted.std() / 200**0.5


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for options in ({}, {"direction": "y_to_x"}, {"adjusted": True}):
        expected = torch.tensor([sk.linear_r2(m, **options) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(sk.linear_r2(source, **options), expected, rtol=0, atol=1e-12)
        assert sk.linear_r2(stats.reshape(3, 1), **options).shape == (3, 1)
        assert sk.linear_r2(stats[0], **options).shape == ()
    assert len(sk.linear_r2(stats, direction="both")) == 2
    assert sk.bootstrap(blocks, sk.linear_r2, resamples=20).value.shape == ()


def test_other_sources():
    g = torch.Generator().manual_seed(7)
    x, y = (torch.randn(60, c, generator=g, dtype=torch.float64) for c in (5, 4))
    value = sk.linear_r2(x, y, direction="both")
    assert sk.linear_r2(sk.StreamingQR(5, 4).update(x, y), direction="both") == pytest.approx(value, abs=1e-12)
    assert sk.linear_r2(x.numpy()[::-1], y.numpy()[::-1], direction="both") == pytest.approx(value, abs=1e-12)
    half = x.bfloat16(), y.bfloat16()
    assert sk.linear_r2(*half) == pytest.approx(reference.linear_r2(*half).item(), abs=1e-9)


def test_undefined_is_an_error():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(3))
    constant = torch.full((10, 2), 0.1)
    for ours in (sk.linear_r2, lambda *a: sk.linear_r2(moments(*a))):
        assert ours(constant, x) == 0
        with pytest.raises(StatisticsError, match="y does not vary"):
            ours(x, constant)
    weighted = sk.Moments(3, 3).update(x, x, weight=torch.rand(10))
    eye = torch.eye(2)
    given = sk.Statistics.given(eye, eye / 2, eye)
    impossible = sk.Statistics.given(eye, torch.tensor([[0.9, 0.9], [-0.9, 0.9]]), eye)
    for error, match, call in [
        (StatisticsError, "x does not vary", lambda: sk.linear_r2(constant, x, direction="y_to_x")),
        (StatisticsError, "x does not vary", lambda: sk.linear_r2(moments(constant, x), direction="both")),
        (StatisticsError, "at least 2 samples; got 1", lambda: sk.linear_r2(x[:1], x[:1])),
        (StatisticsError, "rank 3 needs at least 5", lambda: sk.linear_r2(x[:4], x[:4], adjusted=True)),
        (StatisticsError, "weights of 0 or 1", lambda: sk.linear_r2(weighted, adjusted=True)),
        (StatisticsError, "do not know", lambda: sk.linear_r2(given, adjusted=True)),
        (StatisticsError, "indefinite", lambda: sk.linear_r2(impossible)),
        (ShapeError, "same n", lambda: sk.linear_r2(x, x[:9])),
        (NotFiniteError, "x holds NaN", lambda: sk.linear_r2(x / 0, x)),
        (ValueError, "y is missing", lambda: sk.linear_r2(x)),
        (ValueError, "hold both sides", lambda: sk.linear_r2(moments(x, x), x)),
        (ValueError, "direction must be", lambda: sk.linear_r2(x, x, direction="backward")),
        (TypeError, "y must be a torch tensor", lambda: sk.linear_r2(x, [1.0])),
    ]:
        with pytest.raises(error, match=match):
            call()
