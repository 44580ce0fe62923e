"""RSA against its n × n distance matrices."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.similarity import distances

METRICS = ("euclidean", "correlation", "cosine")
COMPARISONS = ("pearson", "spearman")


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("metric", METRICS)
def test_against_reference(case, metric, comparison, device):
    _, x, y = case
    expected = reference.rsa(x, y, metric, comparison)
    a, b = x.to(device), y.to(device)
    options = {"metric": metric, "comparison": comparison}
    found = sk.rsa(a, b, **options)
    assert found == pytest.approx(expected, abs=1e-6)
    assert sk.rsa(b, a, **options) == pytest.approx(found, abs=1e-12)
    assert sk.rsa(a, a, **options) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n", [3, 512, 513, 1025])
def test_tiles(n):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 4, generator=g)
    y = x[:, :2] + torch.randn(n, 2, generator=g)
    for metric, comparison in (("euclidean", "pearson"), ("euclidean", "spearman"), ("correlation", "pearson")):
        if metric == "correlation":
            y = y @ torch.randn(2, 5, generator=g)
        expected = reference.rsa(x, y, metric, comparison)
        assert sk.rsa(x, y, metric=metric, comparison=comparison) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_get_their_mean_rank(metric):
    """Binary features: few distinct distances, which no rounding may break."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 2, (90, 7), generator=g).float() for _ in "xy")
    for t in (x, y):
        t[:, 0], t[:, 1] = 1, 0
    y[:, 2:4] = x[:, 2:4]
    fine = []
    for t in (x, y):  # rounding is taken out of the reference by rounding it
        d = reference.sample_distances(t, metric)
        fine.append((d * 2**40).round() / 2**40)
    from scipy.stats import spearmanr

    above = torch.triu_indices(90, 90, 1)
    expected = spearmanr(*(d[above[0], above[1]].numpy() for d in fine)).statistic
    assert sk.rsa(x, y, metric=metric, comparison="spearman") == pytest.approx(expected, abs=1e-9)


def test_small_distances_far_from_the_others():
    """Two tight clusters: the distances inside are differences of nearly equal numbers."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 5, generator=g, dtype=torch.float64) * 1e-5
    x[30:] += 1e3
    y = torch.randn(60, 5, generator=g, dtype=torch.float64)
    d, direct = (
        distances.squared(distances.points("x", x, "euclidean"), distances.points("x", x, "euclidean")).sqrt(),
        reference.sample_distances(x, "euclidean"),
    )
    off = ~torch.eye(60, dtype=torch.bool)
    ratio = (d / direct)[off]
    assert (ratio / ratio.mean() - 1).abs().max() < 1e-7 and d.diagonal().abs().max() == 0
    for comparison in COMPARISONS:
        expected = reference.rsa(x, y, "euclidean", comparison)
        assert sk.rsa(x, y, comparison=comparison) == pytest.approx(expected, abs=1e-6)


def test_invariance_and_input_types():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(70, 9, generator=g).double(), torch.randn(70, 6, generator=g).double()
    y = y + x[:, :6]
    turn = torch.linalg.qr(torch.randn(9, 9, generator=g).double()).Q
    for metric in METRICS:
        for comparison in COMPARISONS:
            options = {"metric": metric, "comparison": comparison}
            value = sk.rsa(x, y, **options)
            assert sk.rsa(x.numpy(), y.numpy(), **options) == value
            assert sk.rsa(1e-160 * x, 1e160 * y, **options) == pytest.approx(value, abs=1e-9)
            if metric != "correlation":
                assert sk.rsa(x @ turn, y, **options) == pytest.approx(value, abs=1e-9)
            half = x.bfloat16(), y.bfloat16()
            expected = reference.rsa(half[0], half[1], metric, "pearson")
            assert sk.rsa(*half, metric=metric) == pytest.approx(expected, abs=1e-9)
    assert sk.rsa(x + 100, y) == pytest.approx(sk.rsa(x, y), abs=1e-9)
    shift = torch.linspace(-5, 5, 70).double()[:, None]
    assert sk.rsa(x + shift, y, metric="correlation") == pytest.approx(sk.rsa(x, y, metric="correlation"), abs=1e-9)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_undefined_is_an_error(comparison):
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(3))
    zero, same, flat = x.clone(), torch.full((10, 4), 0.1), x.clone()
    zero[4], flat[7] = 0, 0.1
    for error, match, a, metric in [
        (StatisticsError, "y does not vary", (x, same), "euclidean"),
        (StatisticsError, "all samples of y point the same way", (x, x.abs()[:, :1] * same[0]), "cosine"),
        (StatisticsError, "sample 4 of y is zero", (x, zero), "cosine"),
        (StatisticsError, "sample 7 of x has equal features", (flat, x), "correlation"),
        (StatisticsError, "samples of x are equally far apart", (torch.eye(10), x), "euclidean"),
        (StatisticsError, "samples of x are equally far apart", (torch.eye(10), x), "cosine"),
        (StatisticsError, "at least 3 samples; got 2", (x[:2], x[:2]), "euclidean"),
        (ShapeError, "same n", (x, x[:9]), "euclidean"),
        (NotFiniteError, "x holds NaN", (x / 0, x), "euclidean"),
        (ValueError, "metric must be", (x, x), "manhattan"),
    ]:
        with pytest.raises(error, match=match):
            sk.rsa(*a, metric=metric, comparison=comparison)
    with pytest.raises(ValueError, match="comparison must be"):
        sk.rsa(x, x, comparison="kendall")
