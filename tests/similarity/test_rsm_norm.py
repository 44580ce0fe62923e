"""The norm of the difference of similarity matrices against these n × n matrices."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

PRODUCTS = ("linear", "inner")
DISTANCES = ("euclidean", "correlation", "cosine")


def moments(x, y, **options):
    return sk.Moments(x.shape[1], y.shape[1], **options).update(x, y)


@pytest.mark.parametrize("metric", [*PRODUCTS, *DISTANCES])
def test_against_reference(case, metric, device):
    name, x, y = case
    expected = reference.rsm_norm(x, y, metric).item()
    zero = torch.zeros_like(x)
    size = reference.rsm_norm(x, zero, metric).item() if metric not in ("correlation", "cosine") else len(x)
    a, b = x.to(device), y.to(device)
    allowed = 1e-6 * size if metric in PRODUCTS else 1e-9 * size
    assert sk.rsm_norm(a, b, metric=metric) == pytest.approx(expected, abs=allowed)
    assert sk.rsm_norm(b, a, metric=metric) == pytest.approx(expected, abs=allowed)
    assert sk.rsm_norm(a, a, metric=metric) <= (1e-7 * size if metric in PRODUCTS else 0)
    if metric in PRODUCTS:
        assert sk.rsm_norm(moments(a, b, precision="float64"), metric=metric) == pytest.approx(expected, abs=allowed)
        coarse = 2e-3 if name == "identical" else 1e-6
        assert sk.rsm_norm(moments(a, b), metric=metric) == pytest.approx(expected, abs=coarse * size)


@pytest.mark.parametrize("n", [2, 512, 513, 1025])
def test_tiles(n, generator):
    x = torch.randn(n, 4, generator=generator)
    y = x[:, :3] + torch.randn(n, 3, generator=generator)
    for metric in DISTANCES:
        expected = reference.rsm_norm(x, y, metric).item()
        assert sk.rsm_norm(x, y, metric=metric) == pytest.approx(expected, rel=1e-9)


def test_offsets_and_rotations(generator):
    x, y = torch.randn(70, 9, generator=generator).double(), torch.randn(70, 6, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator).double()).Q
    for metric in (*PRODUCTS, *DISTANCES):
        value = sk.rsm_norm(x, y, metric=metric)
        assert sk.rsm_norm(x.numpy(), y.numpy(), metric=metric) == value
        if metric != "correlation":
            assert sk.rsm_norm(x @ turn, y, metric=metric) == pytest.approx(value, rel=1e-9)
        moved = sk.rsm_norm(x + 3, y, metric=metric)
        assert (moved == pytest.approx(value, rel=1e-9)) == (metric in ("linear", "euclidean", "correlation"))
        scaled = sk.rsm_norm(x * 2, y, metric=metric)
        assert (scaled == pytest.approx(value, rel=1e-9)) == (metric in ("correlation", "cosine"))
    # the same large offset on both sides of the same width, a small difference between them
    near = x + 1e-3 * torch.randn(70, 9, generator=generator).double()
    for offset in (0, 1e3):
        expected = reference.rsm_norm(x + offset, near + offset, "inner").item()
        assert sk.rsm_norm(x + offset, near + offset, metric="inner") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", ["linear", "inner", "euclidean"])
def test_triangle_inequality_and_constants(metric, generator):
    a, b, c = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (4, 6, 3))
    sides = [sk.rsm_norm(*s, metric=metric) for s in ((a, c), (a, b), (b, c))]
    assert sides[0] <= sides[1] + sides[2]
    constant = torch.full((20, 2), 0.1, dtype=torch.float64)
    for s in ((a, constant), (constant, constant)):
        assert sk.rsm_norm(*s, metric=metric) == pytest.approx(reference.rsm_norm(*s, metric).item(), abs=1e-9)


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for metric in PRODUCTS:
        expected = torch.tensor([sk.rsm_norm(m, metric=metric) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(sk.rsm_norm(source, metric=metric), expected, rtol=1e-12, atol=0)
    assert sk.rsm_norm(stats.reshape(3, 1)).shape == (3, 1) and sk.rsm_norm(stats[0]).shape == ()


def test_bad_input_is_an_error(blocks):
    x = torch.randn(10, 3)
    zero = x.clone()
    zero[4] = 0
    for error, match, a, metric in [
        (ValueError, "metric must be linear, inner, euclidean", (x, x), "manhattan"),
        (ValueError, "needs features", (blocks[0],), "euclidean"),
        (StatisticsError, "sample 4 of y is zero", (x, zero), "cosine"),
        (StatisticsError, "at least 2 samples; got 1", (x[:1], x[:1]), "linear"),
        (StatisticsError, "overflow", (1e200 * x.double(), x), "linear"),
        (StatisticsError, "RSM norm overflows", (1e100 * x.double(), x), "linear"),
        (StatisticsError, "RSM norm overflows", (1e60 * x.double() + 1e100, x), "inner"),
        (ShapeError, "same n", (x, x[:9]), "euclidean"),
        (NotFiniteError, "x holds NaN", (x / 0, x), "inner"),
        (ValueError, "y is missing", (x,), "linear"),
        (ValueError, "hold both sides", (blocks[0], x), "linear"),
    ]:
        with pytest.raises(error, match=match):
            sk.rsm_norm(*a, metric=metric)
    eye = torch.eye(2)
    with pytest.raises(StatisticsError, match="number of samples"):
        sk.rsm_norm(sk.Statistics.given(eye, eye, eye))
    assert sk.rsm_norm(sk.Statistics.given(eye, 0 * eye, eye, count=10)).item() == pytest.approx(20)
