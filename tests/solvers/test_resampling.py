"""Bootstrap and cross-validation from per-block moments against refits from the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern.errors import StatisticsError
from tests.solvers.conftest import conditioned


@pytest.fixture
def blocks(generator):
    x, y = conditioned(generator, 480, 6, 3, noise=3.0)
    x += 100
    rows = [(x[i::12], y[i::12]) for i in range(12)]
    return rows, [sk.Moments(6, 3).update(*block) for block in rows]


def test_resamples_are_refits(blocks):
    rows, moments = blocks
    found = sk.bootstrap(moments, lambda s: sk.least_squares(s).weight, resamples=20, seed=3)
    draws = torch.randint(0, 12, (20, 12), generator=torch.Generator().manual_seed(3))
    for draw, sample in zip(draws.tolist(), found.samples, strict=True):
        m = sk.Moments(6, 3)
        for i in draw:
            m.update(*rows[i])
        assert torch.allclose(sample, sk.least_squares(m).weight, rtol=1e-8, atol=1e-9)
    assert found.value.shape == found.low.shape == (3, 6) and (found.low <= found.high).all()
    again = sk.bootstrap(moments, lambda s: sk.least_squares(s).weight, resamples=20, seed=3)
    assert torch.equal(again.samples, found.samples) and torch.equal(again.low, found.low)


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_intervals_agree_with_scipy(method, blocks):
    """scipy resamples block indices; the statistic is ours. Different draws of the same distribution."""
    from scipy.stats import bootstrap

    _, moments = blocks
    stats = sk.Statistics.of(moments)

    def r2(index):
        return sk.least_squares(stats.combine(torch.bincount(torch.as_tensor(index).long(), minlength=12)[None])).r2[0]

    ours = sk.bootstrap(moments, lambda s: sk.least_squares(s).r2, resamples=4000, method=method)
    index = np.arange(12)
    theirs = bootstrap(
        (index,), lambda i: float(r2(i)), n_resamples=800, method=method, vectorized=False, random_state=0
    ).confidence_interval
    width = float(ours.high - ours.low)
    assert abs(float(ours.low) - theirs.low) < 0.25 * width and abs(float(ours.high) - theirs.high) < 0.25 * width


def test_intervals_cover(generator):
    """The 90 % interval of a mean-like statistic holds the truth about nine times in ten."""
    hits = 0
    for _ in range(100):
        x = torch.randn(600, 2, generator=generator)
        y = x[:, :1] + torch.randn(600, 1, generator=generator)
        moments = [sk.Moments(2, 1).update(x[i::20], y[i::20]) for i in range(20)]
        found = sk.bootstrap(moments, lambda s: sk.least_squares(s).weight[:, 0, 0], resamples=300, confidence=0.9)
        hits += bool(found.low <= 1.0 <= found.high)
    assert 78 <= hits <= 98


def test_bootstrap_of_a_batch(blocks):
    _, moments = blocks
    stats = sk.Statistics.of(moments)
    both = sk.Statistics.stack([stats, stats])
    found = sk.bootstrap(both, lambda s: sk.least_squares(s).r2, resamples=10)
    assert found.samples.shape == (10, 2) and torch.allclose(found.samples[:, 0], found.samples[:, 1])


def test_bad_bootstraps(blocks):
    _, moments = blocks
    for error, match, call in [
        (ValueError, "at least two sets", lambda: sk.bootstrap(moments[:1], lambda s: s.count)),
        (ValueError, "method must be", lambda: sk.bootstrap(moments, lambda s: s.count, method="t")),
        (ValueError, "confidence must be", lambda: sk.bootstrap(moments, lambda s: s.count, confidence=95)),
        (ValueError, "one value per resample", lambda: sk.bootstrap(moments, lambda s: s.count.sum())),
        (
            StatisticsError,
            "one side",
            lambda: sk.bootstrap(moments, lambda s: s.mean_x[:, 0] * 0 + len(s.count), method="bca"),
        ),
        (ValueError, "at least two sets", lambda: sk.cross_validate(moments[:1])),
        (ValueError, "ridge must be non-negative", lambda: sk.cross_validate(moments, ridges=[-1.0])),
        (ValueError, "rank must be", lambda: sk.cross_validate(moments, ranks=[9])),
        (ValueError, "rule must be", lambda: sk.cross_validate(moments, rule="worst")),
    ]:
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("ranks", [None, [1, 2, 3]])
def test_held_out_errors_are_those_of_refits(ranks, blocks):
    rows, moments = blocks
    ridges = [0.0, 0.1, 10.0]
    cv = sk.cross_validate(moments, ridges=ridges, ranks=ranks)
    for i in (0, 7):
        m = sk.Moments(6, 3)
        for j, block in enumerate(rows):
            if j != i:
                m.update(*block)
        for r, ridge in enumerate(ridges):
            for k, rank in enumerate(ranks or [None]):
                f = sk.least_squares(m, ridge=ridge, rank=rank)
                actual = (f(rows[i][0]) - rows[i][1]).square().sum(1).mean().item()
                assert cv.fold_error[i, r, k].item() == pytest.approx(actual, rel=1e-8)
    assert cv.error.shape == (3, 3 if ranks else 1) and torch.allclose(cv.error, cv.fold_error.mean(0))
    best = divmod(int(cv.error.argmin()), cv.error.shape[1])
    assert (cv.ridge, cv.rank) == (ridges[best[0]], (ranks or [3])[best[1]])
    whole = sk.Moments(6, 3)
    for block in rows:
        whole.update(*block)
    rank = None if cv.rank == 3 else cv.rank
    assert torch.allclose(cv.fit().weight, sk.least_squares(whole, ridge=cv.ridge, rank=rank).weight, rtol=1e-8)


def test_cross_validation_finds_the_rank(generator):
    x = torch.randn(3000, 10, generator=generator)
    y = x @ torch.randn(10, 2, generator=generator) @ torch.randn(2, 8, generator=generator)
    y += 3 * torch.randn(3000, 8, generator=generator)
    folds = [sk.Moments(10, 8).update(x[i::5], y[i::5]) for i in range(5)]
    cv = sk.cross_validate(folds, ranks=range(1, 9), rule="one-standard-error")
    assert cv.rank == 2 and cv.fit().rank == 2


def test_interval_of_an_index(blocks):
    _, moments = blocks
    found = sk.bootstrap(moments, sk.cka, resamples=50)
    whole = sk.Moments(6, 3)
    for m in moments:
        whole.merge(m)
    assert found.value.item() == pytest.approx(sk.cka(whole), rel=1e-9) and found.low < found.high
    assert "samples" not in repr(found)


def test_statistics_that_resampling_moves_are_pointed_out(generator):
    """R² of a fit with nearly as many features as rows rises when rows are repeated."""
    moments = [
        sk.Moments(40, 2).update(torch.randn(8, 40, generator=generator), torch.randn(8, 2, generator=generator))
        for _ in range(20)
    ]
    with pytest.warns(UserWarning, match="outside its own interval"):
        sk.bootstrap(moments, lambda s: sk.least_squares(s).r2, resamples=100)
    with pytest.raises(TypeError, match="statistic must give a number"):
        sk.bootstrap(moments, sk.least_squares)
