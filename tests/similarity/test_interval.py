"""Confidence intervals of indices: their definition, and how often they hold what they promise."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern.errors import ShapeError, StatisticsError


class Gaussian:
    """y = x W + noise, whose CKA and R² of infinitely many samples follow from the covariances."""

    def __init__(self, p: int, q: int, share: float = 0.5) -> None:
        g = torch.Generator().manual_seed(1)
        self.spread = torch.logspace(0, -0.25, p, dtype=torch.float64)
        self.weight = share * torch.randn(p, q, generator=g, dtype=torch.float64)
        xx = self.spread.square().diag()
        xy = xx @ self.weight
        yy = self.weight.T @ xy + torch.eye(q).double()
        self.cka = (xy.square().sum() / (xx.square().sum() * yy.square().sum()).sqrt()).item()
        self.r2 = (1 - q / yy.trace()).item()

    def draw(self, n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        p, q = self.weight.shape
        x = self.spread * torch.randn(n, p, generator=g, dtype=torch.float64)
        return x, x @ self.weight + torch.randn(n, q, generator=g, dtype=torch.float64)


def coverage(data, index, truth, n=80, trials=50, resamples=50, **options):
    g, hits = torch.Generator().manual_seed(0), 0
    for _ in range(trials):
        found = sk.confidence_interval(index, *data.draw(n, g), resamples=resamples, confidence=0.9, **options)
        hits += bool(found.low <= truth <= found.high)
    return hits


#: of 50 intervals at 90 %: four standard errors of a binomial count
ENOUGH = range(37, 51)


@pytest.mark.parametrize("method", ["subsampling", "basic"])
def test_intervals_hold_the_cka_of_the_population(method):
    data = Gaussian(4, 3)
    assert 0.1 < data.cka < 0.5
    assert coverage(data, sk.cka, data.cka, method=method) in ENOUGH


def test_intervals_hold_the_unbiased_cka_and_r2_of_the_population():
    data = Gaussian(4, 3)
    assert coverage(data, partial(sk.cka, unbiased=True), data.cka) in ENOUGH
    assert coverage(data, sk.linear_r2, data.r2) in ENOUGH
    wide = Gaussian(20, 20, 0.15)
    assert coverage(wide, partial(sk.cka, unbiased=True), wide.cka, trials=25) >= 17
    # with replacement, terms that the unbiased form leaves out come back as duplicates
    with pytest.warns(UserWarning, match="outside its own interval"):
        assert coverage(wide, partial(sk.cka, unbiased=True), wide.cka, trials=5, method="percentile") < 2


def test_intervals_hold_what_neighbours_give_on_average():
    data, g = Gaussian(4, 3), torch.Generator().manual_seed(7)
    index = partial(sk.mutual_knn, k=5, metric="euclidean")
    truth = np.mean([index(*data.draw(60, g)) for _ in range(200)])
    assert coverage(data, index, truth, n=60) in ENOUGH
    # the halves' own average is another number: 5 neighbours are a larger share of them
    halves = np.mean([index(*data.draw(30, g)) for _ in range(100)])
    assert halves > 1.5 * truth
    with pytest.warns(UserWarning, match="outside its own interval"):  # duplicates are neighbours on both sides
        assert coverage(data, index, truth, n=60, trials=10, method="percentile") == 0


@pytest.mark.parametrize("target", ["population", "samples"])
def test_subsampling_is_what_it_says(target):
    x, y = Gaussian(4, 3).draw(31, torch.Generator().manual_seed(0))
    found = sk.confidence_interval("cka", x, y, resamples=40, confidence=0.8, seed=3, target=target)
    g = torch.Generator().manual_seed(3)
    rows = [torch.randperm(31, generator=g)[:15] for _ in range(40)]
    halves = torch.tensor([sk.cka(x[r], y[r]) for r in rows], dtype=torch.float64)
    torch.testing.assert_close(found.samples, halves)
    scale = (15 / 16) ** 0.5
    origin = found.value if target == "population" else halves.mean()
    assert found.value == sk.cka(x, y) and found.method == "subsampling" and found.confidence == 0.8
    assert found.low.item() == pytest.approx((found.value - scale * (halves.quantile(0.9) - origin)).item())
    assert found.high.item() == pytest.approx((found.value - scale * (halves.quantile(0.1) - origin)).item())
    assert found.standard_error.item() == pytest.approx(scale * halves.std().item())


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_with_replacement_is_the_bootstrap_of_blocks(method):
    """Groups are the blocks, and their draws are the same."""
    x, y = Gaussian(4, 3).draw(120, torch.Generator().manual_seed(0))
    groups = torch.arange(120) % 15
    blocks = [sk.Moments(4, 3, precision="float64").update(x[groups == i], y[groups == i]) for i in range(15)]
    expected = sk.bootstrap(blocks, sk.cka, resamples=50, method=method, seed=2)
    found = sk.confidence_interval("cka", x, y, resamples=50, method=method, groups=groups, seed=2)
    for name in ("value", "low", "high", "standard_error", "samples"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_groups_are_drawn_whole():
    seen = []

    def index(a, b):
        seen.append(a[:, 0].tolist())
        assert torch.equal(a, b)
        return 1.0

    labels = np.array(list("abcab" * 4))
    x = torch.arange(20.0)[:, None]
    sk.confidence_interval(index, x, x, resamples=2, groups=[*labels[:-1], "d"])
    whole = [[i for i in range(20) if [*labels[:-1], "d"][i] == name] for name in "abcd"]
    for rows in seen[1:]:
        assert any(sorted(rows) == sorted(whole[i] + whole[j]) for i in range(4) for j in range(i))
    # positions of one image say less than as many images
    g, hits = torch.Generator().manual_seed(0), []
    data = Gaussian(4, 3)
    for _ in range(30):
        x, y = (t.repeat_interleave(6, 0) for t in data.draw(40, g))
        found = [
            sk.confidence_interval("cka", x, y, resamples=40, groups=groups, confidence=0.9)
            for groups in (None, torch.arange(40).repeat_interleave(6))
        ]
        hits.append([bool(f.low <= data.cka <= f.high) for f in found])
    alone, whole_groups = np.sum(hits, 0)
    assert alone < 21 <= whole_groups


def test_several_values_arrays_and_seeds():
    x, y = Gaussian(4, 3).draw(30, torch.Generator().manual_seed(0))
    widths = [0.5, 2.0]
    both = sk.confidence_interval(partial(sk.cka, kernel="rbf", bandwidth=widths), x, y, resamples=20)
    assert both.low.shape == (2,) and both.samples.shape == (20, 2) and bool((both.low < both.high).all())
    one = sk.confidence_interval(partial(sk.cka, kernel="rbf", bandwidth=2.0), x.numpy(), y.numpy(), resamples=20)
    assert one.low.item() == pytest.approx(both.low[1].item())
    done = []
    again = sk.confidence_interval("cca", x, y, resamples=20, seed=1, progress=lambda *a: done.append(a))
    assert done == [(i, 20) for i in range(1, 21)] and again.value == sk.cca(x, y).mean
    assert torch.equal(again.samples, sk.confidence_interval("cca", x, y, resamples=20, seed=1).samples)
    assert not torch.equal(again.samples, sk.confidence_interval("cca", x, y, resamples=20, seed=2).samples)
    tokens = x.reshape(15, 2, 4), y.reshape(15, 2, 3)
    assert sk.confidence_interval(lambda a, b: sk.cka(a.flatten(0, 1), b.flatten(0, 1)), *tokens).low < 1


def test_defaults_by_index():
    x, y = Gaussian(4, 4).draw(40, torch.Generator().manual_seed(0))
    for index, method, target in [
        ("cka", "subsampling", "population"),
        ("mutual_knn", "subsampling", "samples"),
        (partial(sk.cknna, k=3), "subsampling", "samples"),
        (lambda a, b: sk.cka(a, b), "subsampling", "population"),
    ]:
        found = sk.confidence_interval(index, x, y, resamples=20)
        assert found.method == method
        assert torch.equal(found.low, sk.confidence_interval(index, x, y, resamples=20, target=target).low)
    assert sk.confidence_interval("rsm_norm", x, y, resamples=20).method == "basic"


def test_bad_input_is_an_error():
    x, y = Gaussian(4, 3).draw(12, torch.Generator().manual_seed(0))
    for error, match, call in [
        (ValueError, "index must be one of", lambda: sk.confidence_interval("ckaa", x, y)),
        (ValueError, "method must be subsampling", lambda: sk.confidence_interval("cka", x, y, method="jackknife")),
        (ValueError, "target must be", lambda: sk.confidence_interval("cka", x, y, target="mean")),
        (ValueError, "for the population", lambda: sk.confidence_interval("cka", x, y, method="bca", target="samples")),
        (ValueError, "confidence must be", lambda: sk.confidence_interval("cka", x, y, confidence=95)),
        (ValueError, "resamples must be", lambda: sk.confidence_interval("cka", x, y, resamples=1)),
        (ValueError, "four samples; got 3", lambda: sk.confidence_interval("cka", x[:3], y[:3])),
        (ValueError, "four groups; got 2", lambda: sk.confidence_interval("cka", x, y, groups=[0] * 6 + [1] * 6)),
        (ShapeError, "same samples", lambda: sk.confidence_interval("cka", x, y[1:])),
        (
            StatisticsError,
            r"resample of 6 of the 12 samples: k must be 1 … 5",
            lambda: sk.confidence_interval(partial(sk.mutual_knn, k=8), x, y),
        ),
        (StatisticsError, "does not vary", lambda: sk.confidence_interval("cka", x, 0 * y)),
    ]:
        with pytest.raises(error, match=match):
            call()
