"""Rank, ridge, orthogonality, permutation: each against its definition on the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import stitchkern as sk
from tests.solvers.conftest import conditioned


def error(f, x, y, weight=None):
    square = (f(x) - y).square()
    return (square if weight is None else square * weight).sum(1).mean().item()


@pytest.mark.parametrize("sizes", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_every_rank_of_the_path(sizes, ridge, generator):
    x, y = conditioned(generator, 300, *sizes)
    m = sk.Moments(*sizes).update(x, y)
    path = sk.reduced_rank_path(m, ridge=ridge)
    full = sk.least_squares(m, ridge=ridge)
    assert path.ranks.tolist() == list(range(1, min(sizes) + 1))
    for k in path.ranks.tolist():
        f = path.at(k)
        a, b = f.factors
        assert (a.shape, b.shape) == ((sizes[1], k), (k, sizes[0])) and torch.allclose(a @ b, f.weight)
        assert torch.linalg.matrix_rank(f.weight) == k == f.rank
        assert f.residual == pytest.approx(error(f, x, y), rel=1e-9)
        assert path.residual[k - 1].item() == pytest.approx(f.residual, rel=1e-10)
        assert path.r2[k - 1].item() == pytest.approx(f.r2, abs=1e-11)
        assert torch.allclose(f.weight, sk.least_squares(m, ridge=ridge, rank=k).weight, atol=1e-12)
    assert torch.allclose(f.weight, full.weight, rtol=1e-9, atol=1e-11)
    # ridge regression is least squares with √ridge·I as further rows: Eckart and Young on their fitted values
    c = torch.cat([x - x.mean(0), (ridge * 300) ** 0.5 * torch.eye(sizes[0])])
    fitted = c @ full.weight.T
    assert torch.allclose(path.singular_values, torch.linalg.svdvals(fitted)[: min(sizes)] / 300**0.5, rtol=1e-8)
    some = sk.reduced_rank_path(m, [2, 4], ridge=ridge)
    assert torch.equal(some.residual, path.residual[[1, 3]]) and some.ranks.tolist() == [2, 4]


@pytest.mark.parametrize("kind", ["dead", "duplicated", "n < p"])
def test_rank_path_of_deficient_data(kind, generator):
    n, p, q = (6, 9, 4) if kind == "n < p" else (100, 9, 4)
    x, y = torch.randn(n, p, generator=generator).double(), torch.randn(n, q, generator=generator).double()
    if kind == "dead":
        x[:, 1] = 5
    if kind == "duplicated":
        x[:, 1] = x[:, 7]
    path = sk.reduced_rank_path(sk.Moments(p, q).update(x, y))
    pinv = np.linalg.pinv((x - x.mean(0)).numpy(), rcond=1e-9) @ (y - y.mean(0)).numpy()
    assert np.allclose(path.at(q).weight.numpy(), pinv.T, atol=1e-8)
    assert (path.residual.diff() <= 1e-12).all() and path.at(1).rank == 1
    assert path.at(2).residual == pytest.approx(error(path.at(2), x, y), abs=1e-10)


def test_weighted_targets_move_the_constrained_optimum(generator):
    x, y = conditioned(generator, 300, 6, 5)
    m = sk.Moments(6, 5).update(x, y)
    weight = torch.tensor([100.0, 1, 1, 1, 0.01])
    weighted, plain = sk.least_squares(m, rank=2, target_weight=weight), sk.least_squares(m, rank=2)
    assert error(weighted, x, y, weight) < 0.99 * error(plain, x, y, weight)
    assert error(plain, x, y) < 0.99 * error(weighted, x, y)
    assert weighted.residual == pytest.approx(error(weighted, x, y, weight), rel=1e-9)
    assert torch.allclose(weighted.factors[0] @ weighted.factors[1], weighted.weight)
    # scaling the targets by hand is the same problem
    root = weight.sqrt().double()
    by_hand = sk.least_squares(sk.Moments(6, 5).update(x, y * root), rank=2)
    assert torch.allclose(by_hand.weight / root[:, None], weighted.weight, atol=1e-10)
    free = sk.least_squares(m, target_weight=weight)
    assert torch.allclose(free.weight, sk.least_squares(m).weight, rtol=1e-9, atol=1e-12)


def test_ridge_path_agrees_with_each_ridge(generator):
    x, y = conditioned(generator, 300, 10, 4, cond=1e5)
    m = sk.Moments(10, 4).update(x, y)
    ridges = [0.0, 1e-14, 1e-9, 1e-4, 1.0, 1e6]
    path = sk.ridge_path(m, ridges)
    for i, ridge in enumerate(ridges):
        alone, f = sk.least_squares(m, ridge=ridge), path.at(ridge)
        assert torch.allclose(f.weight, alone.weight, rtol=1e-6, atol=1e-7 * alone.weight.abs().max())
        assert path.residual[i].item() == pytest.approx(f.residual, rel=1e-8)
        assert path.norm[i].item() == pytest.approx(f.weight.square().sum().item(), rel=1e-6)
        assert f.residual == pytest.approx(error(f, x, y), rel=1e-7)
    assert path.at(1e6).r2 < 1e-3 and path.at(1.0).method == "eigh path" and path.at(0).method == "cholesky"


@pytest.mark.parametrize("sizes", [(5, 5), (4, 7), (7, 4)])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_procrustes_is_the_best_rotation(sizes, scale, center, generator):
    p, q = sizes
    x = torch.randn(200, p, generator=generator).double() + 1
    turn = torch.linalg.qr(torch.randn(max(sizes), max(sizes), generator=generator).double()).Q[:q, :p]
    y = 2.5 * x @ turn.T + 0.3 * torch.randn(200, q, generator=generator).double() - 4
    m = sk.Moments(p, q).update(x, y)
    f = sk.procrustes(m, scale=scale, center=center)
    rotation = f.weight / f.scale
    gram = rotation.T @ rotation if p <= q else rotation @ rotation.T
    assert torch.allclose(gram, torch.eye(min(sizes)).double(), atol=1e-12)
    assert f.residual == pytest.approx(error(f, x, y), rel=1e-9) and f.rank == min(sizes)
    assert center or (f.bias == 0).all()
    # scipy on the padded features
    from scipy.linalg import orthogonal_procrustes

    a, b = (np.pad(t.numpy(), ((0, 0), (0, max(sizes) - t.shape[1]))) for t in (x, y))
    if center:
        a, b = a - a.mean(0), b - b.mean(0)
    r, _ = orthogonal_procrustes(a, b)
    if p <= q:  # with p > q the padding leaves r free beyond Q
        assert np.allclose(r[:p, :q].T, rotation.numpy(), atol=1e-9)
    assert f.distance == pytest.approx(np.linalg.norm(a @ r - b) / 200**0.5, rel=1e-9)
    back = sk.procrustes(sk.Moments(q, p).update(y, x), center=center)
    assert back.distance == pytest.approx(f.distance, rel=1e-9)
    if scale:
        for factor in (0.99, 1.01):
            other = factor * f.weight
            shift = y.mean(0) - other @ x.mean(0) if center else 0
            assert (x @ other.T + shift - y).square().sum(1).mean() > f.residual


def test_procrustes_says_where_it_is_not_unique(generator):
    x = torch.randn(50, 4, generator=generator)
    x[:, 3] = 0
    f = sk.procrustes(sk.Moments(4, 4).update(x, torch.randn(50, 4, generator=generator)))
    assert f.rank == 3 and torch.isfinite(f.weight).all()
    twice = sk.procrustes(sk.Moments(4, 4).update(x[:, [0, 1, 3, 3]], x))
    assert twice.rank == 2 and twice.error == float("inf")


def test_full_rank_lifts_only_what_is_short(generator):
    x, y = conditioned(generator, 300, 6, 4, noise=0.01)
    m = sk.Moments(6, 4).update(x, y)
    plain = sk.least_squares(m)
    s = torch.linalg.svdvals(plain.weight)
    same = sk.full_rank(m, floor=s[-1].item() / 2)
    assert torch.equal(same.weight, plain.weight) and same.loss_increase == 0
    floor = (s[-1] + s[-2]).item() / 2
    lifted = sk.full_rank(m, floor=floor)
    found = torch.linalg.svdvals(lifted.weight)
    assert found[-1].item() == pytest.approx(floor) and torch.allclose(found[:-1], s[:-1])
    assert (lifted.weight - plain.weight).norm().item() == pytest.approx(floor - s[-1].item(), rel=1e-9)
    assert lifted.loss_increase == pytest.approx(error(lifted, x, y) - error(plain, x, y), rel=1e-6)
    assert lifted.residual == pytest.approx(error(lifted, x, y), rel=1e-9) and lifted.rank == 4
    y[:, 3] = y[:, 0]  # a map of rank 3
    lifted = sk.full_rank(sk.Moments(6, 4).update(x, y), floor=0.1)
    assert torch.linalg.svdvals(lifted.weight)[-1].item() == pytest.approx(0.1)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3), (3, 5)])
def test_permutation_is_the_best_of_all(sizes, generator):
    p, q = sizes
    x = torch.randn(100, p, generator=generator).double() * torch.tensor([3.0, 1, 1, 0.2, 1][:p])
    y = torch.randn(100, q, generator=generator).double()
    y[:, : min(sizes)] += x[:, torch.randperm(p, generator=generator)[: min(sizes)]]
    m = sk.Moments(p, q).update(x, y)
    f = sk.permutation(m)
    best = float("inf")
    for picks in itertools.permutations([*range(p), *[-1] * max(0, q - p)], q):
        weight = torch.zeros(q, p, dtype=torch.float64)
        for k, j in enumerate(picks):
            if j >= 0:
                weight[k, j] = 1
        best = min(best, ((x - x.mean(0)) @ weight.T - (y - y.mean(0))).square().sum(1).mean().item())
    assert f.residual == pytest.approx(best, rel=1e-9)
    assert (f.weight.sum(0) <= 1).all() and (f.weight.sum(1) <= 1).all() and f.weight.sum() == min(sizes)
    assert f.rank == min(sizes) and (f.matches >= 0).sum() == min(sizes)
    if p == q:
        assert f.distance == pytest.approx(f.residual**0.5)
        soft = sk.soft_matching(m)
        assert torch.allclose(soft.weight, f.weight, atol=1e-9)
        assert soft.distance == pytest.approx(f.distance / p**0.5)


def test_permutation_by_correlation_ignores_scales(generator):
    x = torch.randn(200, 5, generator=generator)
    order = torch.tensor([3, 0, 4, 1, 2])
    y = -(x[:, order] * torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.1])) + 2
    m = sk.Moments(5, 5).update(x, y)
    f = sk.permutation(m, criterion="absolute", scale=True)
    assert torch.equal(f.matches, order) and f.r2 == pytest.approx(1.0, abs=1e-6)
    g = sk.semi_matching(m, criterion="absolute")
    assert torch.equal(g.matches, order) and torch.allclose(f.weight, g.weight)


def test_semi_matching_may_use_a_feature_twice(generator):
    x = torch.randn(200, 3, generator=generator)
    y = torch.stack([x[:, 1], 2 * x[:, 1] + 1, torch.full((200,), 4.0)], 1)
    f = sk.semi_matching(sk.Moments(3, 3).update(x, y))
    assert f.matches.tolist() == [1, 1, -1] and f.rank == 1
    assert torch.allclose(f.weight, torch.tensor([[0, 1, 0], [0, 2, 0], [0, 0, 0]]).double(), atol=1e-6)


@pytest.mark.parametrize("sizes", [(6, 4), (7, 5)])
def test_soft_matching_is_the_transport(sizes, generator, monkeypatch):
    """Copies and linear programme agree; marginals hold; the reference is POT's definition solved by scipy."""
    from stitchkern.solvers import assignment

    p, q = sizes
    x, y = torch.randn(80, p, generator=generator), torch.randn(80, q, generator=generator)
    y += x[:, :q]
    m = sk.Moments(p, q).update(x, y)
    copies = sk.soft_matching(m)
    monkeypatch.setattr(assignment, "_COPIES", 0)
    programme = sk.soft_matching(m)
    assert copies.distance == pytest.approx(programme.distance, rel=1e-9)
    for f in (copies, programme):
        assert torch.allclose(f.weight.sum(1), torch.ones(q).double(), atol=1e-9)
        assert torch.allclose(f.weight.sum(0), torch.full((p,), q / p).double(), atol=1e-9)


def test_bottleneck_modules_are_the_map(generator):
    x, y = conditioned(generator, 200, 8, 6)
    f = sk.least_squares(sk.Moments(8, 6).update(x, y), rank=3)
    image = torch.randn(2, 8, 5, 4, generator=generator, dtype=torch.float64)
    for spatial, shape in ((None, "any"), (True, "image"), (False, "rows")):
        module = f.to_module(low_rank=True, spatial=spatial, dtype=torch.float64)
        data = x if shape == "rows" else image
        assert torch.allclose(module(data), f(data), atol=1e-10)
        assert sum(t.numel() for t in module.parameters()) == 3 * (8 + 6) + 6
    bottleneck = f.to_module(low_rank=True, dtype=torch.float64)
    assert isinstance(bottleneck, sk.nn.LowRankStitch) and bottleneck.rank == 3
    norms = bottleneck.up.norm(dim=0), bottleneck.down.norm(dim=1)
    assert torch.allclose(*norms)
    resized = f.to_module(low_rank=True, size=(2, 2), resize="bilinear")
    assert resized(image.float()).shape == (2, 6, 2, 2)
