"""Ranks by sorting whole numbers against scipy's of the rounded values."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import rankdata

from stitchkern.similarity import ranks
from stitchkern.similarity.distances import tie_width


def expected(d):
    return torch.from_numpy(rankdata(d.numpy()) * 2).long()


VALUES = {
    "spread": lambda g: torch.randn(70_000, generator=g, dtype=torch.float64).abs() + 25,
    "near zero": lambda g: torch.rand(500, generator=g, dtype=torch.float64) ** 8,
    "with zeros": lambda g: torch.randn(5000, generator=g, dtype=torch.float64).clamp(min=0),
    "whole numbers": lambda g: torch.randint(0, 40, (70_000,), generator=g).double(),
    "every power": lambda g: torch.exp2(torch.randint(-900, 900, (3000,), generator=g).double()),
    "all equal": lambda g: torch.full((1000,), 0.1, dtype=torch.float64),
    "all zero": lambda g: torch.zeros(10, dtype=torch.float64),
    "one": lambda g: torch.ones(1, dtype=torch.float64),
    "two": lambda g: torch.tensor([2.0, 1.0], dtype=torch.float64),
    "closer than the leading bits": lambda g: 1 + torch.arange(3000)[torch.randperm(3000, generator=g)] * 2.0**-39,
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("size", [2**16, 7])
def test_against_scipy(name, size, generator, monkeypatch):
    monkeypatch.setattr(ranks, "_CHUNK", size)
    d = VALUES[name](generator).double()
    if size < 100:
        d = d[:600]
    assert torch.equal(ranks.doubled_ranks(d, "euclidean").long(), expected(d))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rounding_breaks_no_tie(metric, generator):
    d = torch.randint(0, 300, (20_000,), generator=generator).double() / 7
    shaken = d * (1 + 2.0**-44 * torch.randn(20_000, generator=generator, dtype=torch.float64))
    assert torch.equal(ranks.doubled_ranks(shaken, metric).long(), expected(d))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("width", [2.0**-41, 2.0**-38, 2.0**-30])
def test_some_tied_and_some_not(metric, width, generator):
    """Runs of values about as far apart as ties reach, against a walk through the sorted values."""
    d = torch.randint(1, 40, (3000,), generator=generator).double() / 7
    d = d * (1 + width * torch.randn(3000, generator=generator, dtype=torch.float64))
    values, order = d.sort()
    group = torch.zeros(3000, dtype=torch.int64)
    group[1:] = (values.diff() > tie_width(values[1:], metric, are_squared=False)).cumsum(0)
    walked = torch.empty(3000, dtype=torch.int64)
    walked[order] = expected(group)
    assert torch.equal(ranks.doubled_ranks(d, metric).long(), walked)
    assert 39 <= len(walked.unique()) <= 3000


def test_cosine_ties_reach_further_where_distances_are_small(generator):
    """Directions are rounded themselves, so that tiny 1 − cos differ by more than their own rounding."""
    d = torch.tensor([1e-12, 1e-12 + 3e-22, 2e-12, 0.5, 0.5 + 1e-10], dtype=torch.float64)
    assert ranks.doubled_ranks(d, "cosine").tolist() == [3, 3, 6, 8, 10]
    assert ranks.doubled_ranks(d, "euclidean").tolist() == [2, 4, 6, 8, 10]
