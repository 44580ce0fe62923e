"""Eigenspace overlap against the singular vectors of the data."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError


def moments(x, y, **options):
    return sk.Moments(x.shape[1], y.shape[1], **options).update(x, y)


@pytest.mark.parametrize("center", [False, True])
def test_against_reference(case, center, device):
    name, x, y = case
    expected = reference.eigenspace_overlap(x, y, center=center).item()
    x, y = x.to(device), y.to(device)
    sources = [(x, y), (moments(x, y),), (moments(x, y, precision="float64"),)]
    if name != "low rank":  # whose rounding to float32 is data, once it is called float64
        sources.append((x.double(), y.double()))
    for a in sources:
        assert sk.eigenspace_overlap(*a, center=center) == pytest.approx(expected, abs=1e-6)
    assert sk.eigenspace_overlap(y, x, center=center) == pytest.approx(expected, abs=1e-6)
    assert sk.eigenspace_overlap(x, x, center=center) == pytest.approx(1, abs=1e-12)
    same = moments(x, x, precision="float64")
    assert sk.eigenspace_overlap(same, center=center) == pytest.approx(1, abs=1e-12)
    if center:
        rho = sk.cca(x, y)
        value = rho.pillai / max(rho.rank_x, rho.rank_y)
        assert sk.eigenspace_overlap(x, y, center=True) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("rows", [60, 12])
def test_spans_with_and_without_the_constant(rows, generator):
    """Every way in which the two sides hold the constant function, and how its direction may be hidden."""
    x, y = (torch.randn(rows, c, generator=generator, dtype=torch.float64) for c in (6, 4))
    one = torch.ones(rows, 1, dtype=torch.float64)
    hidden = torch.cat([x, (x[:, :1] - 2 * x[:, 1:2]) + 3], 1)  # a combination of three features is constant
    sides = {
        "centred": x - x.mean(0),
        "as they come": x,
        "far": x + 1000,
        "constant feature": torch.cat([x, 0.3 * one], 1),
        "hidden constant": hidden,
        "duplicated": torch.cat([x + 5, x + 5], 1),
        "duplicated apart": torch.cat([x + 5, x - 5], 1),
    }
    others = {
        "y": y,
        "y far": y + 100,
        "y with constant": torch.cat([y, one], 1),
        "wide": y @ torch.ones(4, 20).double() + 1,
    }
    for name, a in sides.items():
        for other, b in others.items():
            expected = reference.eigenspace_overlap(a, b).item()
            for source in ((a, b), (moments(a, b, precision="float64"),)):
                assert sk.eigenspace_overlap(*source) == pytest.approx(expected, abs=1e-9), (name, other)
    assert sk.eigenspace_overlap(x, sides["constant feature"]) == pytest.approx(6 / 7, abs=1e-12)
    assert sk.eigenspace_overlap(hidden, sides["constant feature"]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rows", [100, 30])
def test_invariance(rows, generator):
    x, y = (torch.randn(rows, c, generator=generator, dtype=torch.float64) for c in (40, 6))
    y = y + x[:, :6]
    mix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    for center in (False, True):
        value = sk.eigenspace_overlap(x, y, center=center)
        assert 0 < value < 1
        assert sk.eigenspace_overlap(3e5 * x @ mix, 1e-4 * y, center=center) == pytest.approx(value, abs=1e-9)
        assert sk.eigenspace_overlap(torch.cat([x, x], 1), y, center=center) == pytest.approx(value, abs=1e-9)
    assert sk.eigenspace_overlap(x - 7, y + 11, center=True) == pytest.approx(value, abs=1e-9)


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for center in (False, True):
        expected = torch.tensor([sk.eigenspace_overlap(m, center=center) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(sk.eigenspace_overlap(source, center=center), expected, rtol=0, atol=1e-12)
    assert sk.eigenspace_overlap(stats.reshape(3, 1)).shape == (3, 1)
    assert sk.eigenspace_overlap(stats[0]).shape == ()
    assert sk.bootstrap(blocks, sk.eigenspace_overlap, resamples=20).value.shape == ()


def test_other_sources(generator):
    x, y = (torch.randn(60, c, generator=generator) + 2 for c in (5, 4))
    value = sk.eigenspace_overlap(x, y)
    assert sk.eigenspace_overlap(x.numpy(), y.numpy()) == value
    assert sk.eigenspace_overlap(sk.StreamingQR(5, 4).update(x, y)) == pytest.approx(value, abs=1e-9)
    half = x.bfloat16(), y.bfloat16()
    expected = reference.eigenspace_overlap(half[0].double(), half[1].double()).item()
    assert sk.eigenspace_overlap(*half) == pytest.approx(expected, abs=1e-9)


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
            sk.eigenspace_overlap(*a)
