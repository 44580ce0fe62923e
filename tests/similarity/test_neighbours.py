"""Indices of neighbours against sorted n × n distances."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

METRICS = ("cosine", "euclidean")


@pytest.mark.parametrize("metric", METRICS)
def test_against_reference(case, metric, device):
    _, x, y = case
    a, b = x.to(device), y.to(device)
    for name in ("mutual_knn", "jaccard", "rank_similarity"):
        ours, theirs = getattr(sk, name), getattr(reference, name)
        for k in (1, 10, len(x) - 1):
            found = ours(a, b, k=k, metric=metric)
            assert found == pytest.approx(theirs(x, y, k, metric), abs=1e-6)
            assert ours(b, a, k=k, metric=metric) == pytest.approx(found, abs=1e-12)
            assert ours(a, a, k=k, metric=metric) == pytest.approx(1, abs=1e-12)
    assert sk.mutual_knn(a, b, k=len(x) - 1, metric=metric) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_cycle_knn_against_reference(case, metric, device):
    _, x, y = case
    a, b = x.to(device), y.to(device)
    for k in (1, 10, len(x) - 1):
        for left, right in ((x, y), (y, x), (x, x)):
            expected = reference.cycle_knn(left, right, k, metric)
            found = sk.cycle_knn(left.to(device), right.to(device), k=k, metric=metric)
            assert found == pytest.approx(expected, abs=1e-12)
    assert sk.cycle_knn(a, b, k=len(x) - 1, metric=metric) == 1


def test_second_order_cosine_against_reference(case, device):
    _, x, y = case
    a, b = x.to(device), y.to(device)
    for k in (1, 10, len(x) - 1):
        found = sk.second_order_cosine(a, b, k=k)
        assert found == pytest.approx(reference.second_order_cosine(x, y, k), abs=1e-6)
        assert sk.second_order_cosine(b, a, k=k) == pytest.approx(found, abs=1e-12)
        assert sk.second_order_cosine(a, a, k=k) == pytest.approx(1, abs=1e-12)


def test_cycles_and_ranks_of_points_on_a_line():
    x = torch.tensor([[0.0], [1.0], [2.1], [3.3], [10.0]])
    # nearest: 0→1, 1→0, 2→1, 3→2, 4→3: only 0 and 1 come back
    assert sk.cycle_knn(x, x, k=1, metric="euclidean") == 2 / 5
    # of 0, 1, 2.1 and 0, 1, −1.5 only the last has its neighbours in another order: ranks 1, 2 against 2, 1
    y = torch.tensor([[0.0], [1.0], [-1.5]])
    last = (2 / (2 * 3) + 2 / (2 * 3)) / (1 + 1 / 2)
    assert sk.rank_similarity(x[:3], y, k=2, metric="euclidean") == pytest.approx((1 + 1 + last) / 3, abs=1e-15)
    # nearest: 1, 0, 1 and 1, 0, 0
    assert sk.rank_similarity(x[:3], y, k=1, metric="euclidean") == pytest.approx(2 / 3, abs=1e-15)
    assert sk.cycle_knn(x[:3], y, k=1, metric="euclidean") == pytest.approx(2 / 3, abs=1e-15)


def test_second_order_cosine_is_undefined_for_orthogonal_neighbours():
    with pytest.raises(StatisticsError, match="sample 0 of x is orthogonal"):
        sk.second_order_cosine(torch.eye(5), torch.randn(5, 3), k=2)


def test_cknna_against_reference(case, device):
    _, x, y = case
    a, b = x.to(device), y.to(device)
    for k in (1, 10, len(x) - 1):
        found = sk.cknna(a, b, k=k)
        assert found == pytest.approx(reference.cknna(x, y, k), abs=1e-6)
        assert sk.cknna(b, a, k=k) == pytest.approx(found, abs=1e-12)
        assert sk.cknna(a, a, k=k) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [2, 512, 515])
def test_blocks(n, metric):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 6, generator=g)
    y = x[:, :4] + torch.randn(n, 4, generator=g)
    k = min(n - 1, 7)
    assert sk.mutual_knn(x, y, k=k, metric=metric) == pytest.approx(reference.mutual_knn(x, y, k, metric), abs=1e-12)


def test_ties_go_to_the_first():
    """Points of a grid, every one twice: nearly all distances are tied."""
    side = torch.arange(5.0)
    x = torch.cartesian_prod(side, side).repeat(2, 1).double()
    y = x[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    for k in (1, 2, 3, 10):
        for shift in (0.0, 0.1, 1e3):  # whose mean is no binary fraction
            found = sk.mutual_knn(x + shift, y + shift, k=k, metric="euclidean")
            assert found == pytest.approx(reference.mutual_knn(x, y, k, "euclidean"), abs=1e-12)
    assert sk.mutual_knn(x, torch.cat([x[:25] + 0.25, x[25:] + 0.25]), k=1, metric="euclidean") == 1
    # 2x points the same way as x: each is the other's nearest
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, generator=g)
    assert sk.mutual_knn(torch.cat([x, 2 * x]), torch.cat([x, 3 * x]), k=1) == 1


def test_invariance_and_input_types():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(70, 9, generator=g).double(), torch.randn(70, 6, generator=g).double()
    y = y + x[:, :6]
    turn = torch.linalg.qr(torch.randn(9, 9, generator=g).double()).Q
    half = x.bfloat16(), y.bfloat16()
    for name in ("mutual_knn", "jaccard", "cknna", "cycle_knn", "rank_similarity", "second_order_cosine"):
        ours = getattr(sk, name)
        value = ours(x, y)
        assert 10 / 69 < value < 1, name
        assert ours(x.numpy(), y.numpy()) == value
        assert ours(1e-160 * x @ turn, 1e160 * y) == pytest.approx(value, abs=1e-12)
        assert ours(*half) == pytest.approx(ours(half[0].double(), half[1].double()), abs=1e-12)
    for name in ("mutual_knn", "cycle_knn", "rank_similarity"):
        ours = getattr(sk, name)
        assert ours(x + 1e3, y, metric="euclidean") == pytest.approx(ours(x, y, metric="euclidean"), abs=1e-12)


@pytest.mark.parametrize(
    "name", ["mutual_knn", "jaccard", "cknna", "cycle_knn", "rank_similarity", "second_order_cosine"]
)
def test_bad_input_is_an_error(name):
    ours = getattr(sk, name)
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    zero = x.clone()
    zero[4] = 0
    for error, match, a, options in [
        (ValueError, "k must be 1 … 11 for 12 samples; got 12", (x, x), {"k": 12}),
        (ValueError, "k must be", (x, x), {"k": 0}),
        (ValueError, "k must be", (x, x), {"k": 1.5}),
        (StatisticsError, "sample 4 of y is zero", (x, zero), {}),
        (StatisticsError, "all samples of y point the same way", (x, torch.full((12, 4), 0.1)), {}),
        (StatisticsError, "at least 2 samples; got 1", (x[:1], x[:1]), {}),
        (ShapeError, "same n", (x, x[:9]), {}),
        (NotFiniteError, "x holds NaN", (x / 0, x), {}),
        (TypeError, "x must be a torch tensor", ([1.0], x), {}),
    ]:
        with pytest.raises(error, match=match):
            ours(*a, **{"k": 5, **options})
    if name not in ("cknna", "second_order_cosine"):
        with pytest.raises(StatisticsError, match="x does not vary"):
            ours(torch.ones(12, 2), x, metric="euclidean")
        with pytest.raises(ValueError, match="metric must be cosine or euclidean"):
            ours(x, x, metric="correlation")
