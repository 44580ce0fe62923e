"""Neighbours by float32 screening are those of float64 products, and in the order of sorted distances."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.similarity import nearest
from stitchkern.similarity.distances import points

METRICS = ("cosine", "euclidean")


def by_products(rows, k, metric):
    return nearest._of_all(rows, torch.arange(len(rows)), k, metric)


def screened(rows, k, metric):
    return torch.cat([found for _, found in nearest._Screen(rows, k).panels(metric)])


@pytest.mark.parametrize("metric", METRICS)
def test_screening_finds_the_same(case, metric):
    _, x, y = case
    for t in (x, y):
        rows = points("x", t, metric)
        for k in (1, 3, 5):
            assert torch.equal(screened(rows, k, metric), by_products(rows, k, metric)), k


@pytest.mark.parametrize("n", [129, 512, 513, 600, 1100])
def test_sizes_of_panels_and_groups(n, generator):
    for p, k in ((1, 2), (3, 1), (40, 10), (700, 4)):
        rows = points("x", torch.randn(n, p, generator=generator), "euclidean")
        assert torch.equal(screened(rows, k, "euclidean"), by_products(rows, k, "euclidean")), (p, k)


def test_ties_clusters_and_outliers(generator):
    """What leaves float32 many candidates: equal distances, tight clusters far apart, huge and tiny samples."""
    grid = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0), torch.arange(5.0)).repeat(2, 1)
    clusters = torch.randn(8, 20, generator=generator).repeat_interleave(80, 0).double()
    clusters += 1e-7 * torch.randn(640, 20, generator=generator)
    outlier = torch.randn(640, 20, generator=generator).double()
    outlier[3] *= 1e12
    graded = torch.randn(640, 20, generator=generator).double() * torch.logspace(-20, 0, 640).double()[:, None]
    for name, t in (("grid", grid), ("clusters", clusters), ("outlier", outlier), ("graded", graded)):
        shuffled = t[torch.randperm(len(t), generator=generator)]
        for rows in (t, shuffled):
            rows = points("x", rows, "euclidean")
            for k in (1, 4, 10):
                found, expected = screened(rows, k, "euclidean"), by_products(rows, k, "euclidean")
                assert torch.equal(found, expected), (name, k)


def test_the_road_is_chosen_by_size_and_precision(generator, monkeypatch):
    taken = []
    monkeypatch.setattr(nearest._Screen, "panels", lambda self, metric: taken.append(len(self.points)) or iter(()))
    small, large = (points("x", torch.randn(n, 4, generator=generator), "euclidean") for n in (800, 1100))
    for rows, k in ((small, 2), (large, 2), (large, 500)):
        list(nearest.nearest(rows, k, "euclidean"))
    assert taken == [1100]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert len(list(nearest.nearest(large, 2, "euclidean"))) > 0
    finally:
        torch.set_float32_matmul_precision(before)
    assert taken == [1100]


@pytest.mark.parametrize("metric", METRICS)
def test_large_indices_are_those_of_small_ones(metric, generator):
    x = torch.randn(1200, 30, generator=generator)
    y = x[:, :20] + torch.randn(1200, 20, generator=generator)
    expected = reference.mutual_knn(x, y, 7, metric)
    assert sk.mutual_knn(x, y, k=7, metric=metric) == pytest.approx(expected, abs=1e-12)


def test_order_of_distance(generator):
    x = torch.randn(60, 5, generator=generator)
    expected = reference.sample_distances(x, "euclidean")
    rows = points("x", x, "euclidean")
    for part, found in nearest.nearest(rows, 9, "euclidean"):
        ordered = nearest.by_distance(rows, part, found, "euclidean")
        assert torch.equal(ordered, expected[part].argsort(1)[:, 1:10])
    # ties, also those that rounding breaks, go by index
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).double() + 0.1
    exact = reference.sample_distances(grid - 0.1, "euclidean").mul(1e6).round()
    rows = points("x", grid, "euclidean")
    for part, found in nearest.nearest(rows, 8, "euclidean"):
        ordered = nearest.by_distance(rows, part, found, "euclidean")
        for i, line in enumerate(ordered.tolist()):
            assert line == sorted(line, key=lambda j, i=i: (float(exact[i, j]), j))
