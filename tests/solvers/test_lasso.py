"""Lasso paths: every point optimal on its own conditions, equal to scikit-learn's, in any units, found by any wish."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotConvergedWarning, NotFiniteError, ShapeError
from stitchkern.solvers import coefficients as storage
from stitchkern.solvers.lasso_problem import LassoProblem, Penalty
from tests.solvers.conftest import conditioned


def data(g, n=200, p=20, q=6, cond=10.0):
    x, y = conditioned(g, n, p, q, cond)
    return x, y + 0.3 * y.std(0) * torch.randn(y.shape, generator=g, dtype=torch.float64)


def moments(x, y):
    return sk.Moments(x.shape[1], y.shape[1], precision="float64").update(x, y)


def check(path, stats, tol, **options):
    """Every map of the path against the reference, from the statistics as they are."""
    stats = sk.Statistics.of(stats)
    ratio = options.pop("l1_ratio", 1.0)
    energy = stats.cov_yy.diagonal()
    for i in range(len(path)):
        alpha = path.alphas[i].expand(stats.q)
        m = path.weight(i)
        wanted = reference.lasso_score(
            stats.cov_xx, stats.cov_xy, energy, m, alpha * ratio, alpha * (1 - ratio), **options
        )
        assert wanted["violation"].max() <= tol * 1.01 + 1e-11
        assert path.violation[i].item() == pytest.approx(wanted["violation"].max().item(), rel=1e-3, abs=1e-11)
        objective = wanted["objective"].sum().item()
        assert path.objective[i].item() == pytest.approx(objective, rel=1e-9)
        assert -1e-9 * objective <= path.gap[i].item() - max(wanted["gap"].sum().item(), 0) <= 1e-6 * objective
        assert path.sparsity[i].item() == pytest.approx((m == 0).double().mean().item(), abs=1e-12)
        fit = path[i]
        assert torch.equal(fit.weight, m) and fit.r2 == pytest.approx(path.r2[i].item(), abs=1e-9)
        assert fit.residual == pytest.approx(path.residual[i].item(), rel=1e-9)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.4])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_point_is_optimal(grouped, positive, l1_ratio, generator):
    m = moments(*data(generator))
    options = {"l1_ratio": l1_ratio, "positive": positive, "grouped": grouped}
    path = sk.lasso_path(m, n_alphas=12, tol=1e-8, **options)
    check(path, m, 1e-8, **options)
    assert len(path) == 12 and path.converged.all()
    assert path.sparsity[0] == 1 and (path.r2.diff() >= -1e-9).all() and (path.objective.diff() <= 1e-9).all()
    assert path.alphas[-1] == pytest.approx(1e-3 * path.alphas[0].item())
    if grouped:
        used = path.weight(2) != 0
        assert 0 < used.any(0).sum() < 20 and (positive or torch.equal(used.any(0), used.all(0)))
    assert not positive or (path.weight(11) >= 0).all()


@pytest.mark.parametrize("l1_ratio", [1.0, 0.3])
@pytest.mark.parametrize("positive", [False, True])
def test_equals_scikit_learn(positive, l1_ratio, generator):
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = data(generator)
    path = sk.lasso_path(moments(x, y), n_alphas=8, l1_ratio=l1_ratio, positive=positive, tol=1e-10)
    x, y = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    for k in range(y.shape[1]):
        _, theirs, _ = linear.enet_path(
            x, y[:, k], l1_ratio=l1_ratio, alphas=path.alphas.numpy(), tol=1e-13, max_iter=10**5, positive=positive
        )
        ours = np.stack([path.weight(i)[k].numpy() for i in range(8)], 1)
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_groups_equal_scikit_learn(generator):
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = data(generator)
    path = sk.lasso_path(moments(x, y), n_alphas=6, grouped=True, tol=1e-10)
    for i in (1, 3, 5):
        theirs = linear.MultiTaskLasso(path.alphas[i].item(), tol=1e-12, max_iter=10**5).fit(x.numpy(), y.numpy())
        np.testing.assert_allclose(path.weight(i).numpy(), theirs.coef_, atol=1e-6 * np.abs(theirs.coef_).max())
        np.testing.assert_allclose(path[i].bias.numpy(), theirs.intercept_, rtol=1e-6)


@pytest.mark.parametrize("cond", [1e2, 1e4])
def test_ill_conditioned(cond, generator):
    m = moments(*data(generator, n=500, p=60, q=8, cond=cond))
    check(sk.lasso_path(m, n_alphas=10, eps=1e-5), m, 1e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["dead", "duplicated", "n < p", "constant target"])
def test_deficient(kind, grouped, generator):
    x, y = data(generator, n=100)
    if kind == "n < p":
        x, y = x[:12], y[:12]
    if kind == "dead":
        x[:, 3] = 5
    if kind == "duplicated":
        x[:, 3] = x[:, 9]
    if kind == "constant target":
        y[:, 2] = 7
    m = moments(x, y)
    path = sk.lasso_path(m, n_alphas=10, eps=1e-2, grouped=grouped)
    check(path, m, 1e-6, grouped=grouped)
    if kind == "dead":
        assert all((path.weight(i)[:, 3] == 0).all() for i in range(10)) and path[9].dropped == 1
    if kind == "constant target":
        assert all((path.weight(i)[2] == 0).all() for i in range(10)) and path[9].bias[2] == 7
    fit = path.debias(9)
    assert fit.residual <= path.residual[9] * (1 + 1e-9) and not (fit.weight[path.weight(9) == 0] != 0).any()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("unit_x, unit_y", [(1e-100, 1e100), (1e120, 1e-20), (1e-140, 1e-140)])
def test_units(unit_x, unit_y, grouped, generator):
    x, y = data(generator)
    stats = sk.Statistics.of(moments(x, y))
    scaled = sk.Statistics.given(
        stats.cov_xx * unit_x * unit_x,
        stats.cov_xy * unit_x * unit_y,
        stats.cov_yy * unit_y * unit_y,
        mean_x=stats.mean_x * unit_x,
        mean_y=stats.mean_y * unit_y,
    )
    path, other = (sk.lasso_path(s, n_alphas=6, grouped=grouped, tol=1e-9) for s in (stats, scaled))
    for i in range(6):
        torch.testing.assert_close(other.weight(i) * (unit_x / unit_y), path.weight(i), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(other.r2, path.r2, rtol=1e-8, atol=1e-10)


def test_targets_of_any_scale(generator):
    """Each target is solved as if it were alone."""
    x, y = data(generator)
    unit = torch.logspace(-100, 100, 6, dtype=torch.float64)
    stats = sk.Statistics.of(moments(x, y))
    scaled = sk.Statistics.given(stats.cov_xx, stats.cov_xy * unit, stats.cov_yy * unit * unit[:, None])
    grid = torch.logspace(0, -3, 5, dtype=torch.float64)[:, None] * stats.cov_xy.abs().amax(0)
    path, other = sk.lasso_path(stats, grid, tol=1e-9), sk.lasso_path(scaled, grid * unit, tol=1e-9)
    assert path.alphas.shape == (5, 6)
    for i in range(5):
        torch.testing.assert_close(other.weight(i) / unit[:, None], path.weight(i), rtol=1e-6, atol=1e-8)


def test_alphas(generator):
    x, y = data(generator)
    m = moments(x, y)
    stats = sk.Statistics.of(m)
    path = sk.lasso_path(m, [0.0, 0.1, 1e9])
    assert path.alphas.tolist() == [1e9, 0.1, 0.0] and path.sparsity[0] == 1
    torch.testing.assert_close(path.weight(2), sk.least_squares(m).weight, rtol=1e-4, atol=1e-5)
    largest = stats.cov_xy.abs().max().item()
    path = sk.lasso_path(m, [largest * 1.0001, largest * 0.99])
    assert path.sparsity[0] == 1 and path.sparsity[1] < 1
    ridge = sk.lasso_path(m, [0.2], l1_ratio=0, tol=1e-10)
    torch.testing.assert_close(ridge.weight(0), sk.least_squares(m, ridge=0.2).weight, rtol=1e-6, atol=1e-8)


def test_nothing_to_explain(generator):
    x, y = data(generator)
    path = sk.lasso_path(moments(x, y * 0 + 3), n_alphas=4)
    assert (path.sparsity == 1).all() and (path.r2 == 1).all() and (path.alphas > 0).all()
    assert (path[3].bias == 3).all()


@pytest.mark.parametrize("options", [{}, {"grouped": True}, {"l1_ratio": 0.5}])
def test_wanted_sparsity(options, generator):
    m = moments(*data(generator, p=24, q=10))
    wanted = [0.5, 0.9, 0.75]
    path = sk.lasso_path(m, sparsity=wanted, **options)
    group = 1 / 24 if options.get("grouped") else 1 / 240
    for found, share in zip(path.sparsity.tolist(), sorted(wanted, reverse=True), strict=True):
        assert abs(found - share) <= group * 1.01
    check(path, m, 1e-6, **options)
    assert sk.lasso_path(m, sparsity=[1.0, 0.0], **options).sparsity.tolist() == [1.0, 0.0]


def test_at(generator):
    x, y = data(generator)
    m = moments(x, y)
    path = sk.lasso_path(m, n_alphas=20)
    assert torch.equal(path.at(alpha=path.alphas[4].item()).weight, path.weight(4))
    between = float(path.alphas[4:6].mean())
    torch.testing.assert_close(
        path.at(alpha=between).weight, sk.lasso_path(m, [between]).weight(0), rtol=1e-5, atol=1e-6
    )
    sparse = path.at(sparsity=0.6)
    i = int((path.sparsity >= 0.6).nonzero()[-1])
    assert torch.equal(sparse.weight, path.weight(i)) and path.sparsity[i] >= 0.6 > path.sparsity[i + 1]
    good = path.at(r2=0.5)
    assert good.r2 >= 0.5 and torch.equal(good.weight, path.weight(int((path.r2 >= 0.5).nonzero()[0])))
    cut = path.at(alpha=0.0, threshold=0.1)
    assert (cut.weight[cut.weight != 0].abs() >= 0.1).all() and (cut.weight == 0).any()
    assert torch.equal(path[-1].weight, path[len(path) - 1].weight)


@pytest.mark.parametrize("positive", [False, True])
def test_debiased(positive, generator):
    x, y = data(generator)
    path = sk.lasso_path(moments(x, y), n_alphas=10, positive=positive)
    shrunk, fit = path[4], path.at(alpha=path.alphas[4].item(), debias=True)
    assert torch.equal(fit.weight, path.debias(4).weight) and fit.r2 > shrunk.r2
    optimize = pytest.importorskip("scipy.optimize")
    x, y = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    for k in range(6):
        on = (shrunk.weight[k] != 0).numpy()
        solve = (lambda a, b: optimize.nnls(a, b)[0]) if positive else (lambda a, b: np.linalg.lstsq(a, b)[0])
        np.testing.assert_allclose(fit.weight[k].numpy()[on], solve(x[:, on], y[:, k]), atol=1e-7)
        assert (fit.weight[k].numpy()[~on] == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_long_paths_are_stored_sparse(grouped, monkeypatch, generator):
    x, y = data(generator, p=40, q=70)
    m = moments(x, y)
    plain = sk.lasso_path(m, n_alphas=10, grouped=grouped)
    monkeypatch.setattr(storage, "_LONG", 0)
    monkeypatch.setattr("stitchkern.solvers.lasso_problem._NUMBERS", 3 * 40 * 70)  # several blocks
    path = sk.lasso_path(m, n_alphas=10, grouped=grouped)
    assert len(path._coefficients._blocks) > 1
    for i in range(10):
        torch.testing.assert_close(path.weight(i), plain.weight(i), rtol=1e-5, atol=1e-6)
        assert torch.equal(path.weight(i) == 0, plain.weight(i) == 0)
    torch.testing.assert_close(path.objective, plain.objective, rtol=1e-6, atol=0)
    sparse = sk.lasso_path(m, plain.alphas[:2], grouped=grouped)
    assert sparse._coefficients.nbytes < plain.weight(0).nbytes


def test_what_it_refuses(generator):
    m = moments(*data(generator))
    for match, options in [
        (r"alphas must be non-negative", {"alphas": [-1.0]}),
        (r"alphas must be non-negative", {"alphas": []}),
        (r"alphas must be non-negative", {"alphas": [float("nan")]}),
        (r"l1_ratio must be in 0 … 1; got 1.5", {"l1_ratio": 1.5}),
        (r"no α is the largest", {"l1_ratio": 0}),
        (r"tol must be between 0 and 1; got 0", {"tol": 0}),
        (r"eps must be in 0 … 1", {"eps": 2}),
        (r"n_alphas and max_sweeps positive", {"n_alphas": 0}),
        (r"n_alphas and max_sweeps positive", {"max_sweeps": 0}),
        (r"alphas or sparsity, not both", {"alphas": [1.0], "sparsity": [0.5]}),
        (r"sparsity must be shares of zeros", {"sparsity": [1.5]}),
        (r"penalised for all targets together", {"alphas": torch.rand(3, 6), "grouped": True}),
        (r"positive must be True or False; got 'no'", {"positive": "no"}),
        (r"M = 0 is beyond float64 for l1_ratio=5e-324", {"l1_ratio": 5e-324}),
    ]:
        with pytest.raises(ValueError, match=match):
            sk.lasso_path(m, **options)
    for name, given in (("alphas", "0.1"), ("alphas", [1j]), ("alphas", [[0.1], [0.1, 0.2]]), ("sparsity", ["a"])):
        with pytest.raises(TypeError, match=rf"{name} must be real numbers; got"):
            sk.lasso_path(m, **{name: given})
    with pytest.raises(ShapeError, match=r"alphas must be \(a,\) or \(a, q\) = \(a, 6\); got \(2, 5\)"):
        sk.lasso_path(m, torch.ones(2, 5))
    with pytest.raises(ShapeError, match=r"batch dimensions \(2,\)"):
        sk.lasso_path([m, m])
    stats = sk.Statistics.of(m)
    for name in ("cov_xx", "cov_xy", "cov_yy", "mean_x", "mean_y"):
        bad = {f: getattr(stats, f).clone() for f in stats.__dataclass_fields__}
        bad[name][..., 1] = float("nan")
        with pytest.raises(NotFiniteError, match=f"{name} holds NaN or Inf"):
            sk.lasso_path(sk.Statistics(**bad))
    path = sk.lasso_path(m, n_alphas=3)
    for match, options in [
        ("exactly one of alpha", {}),
        ("exactly one of alpha", {"alpha": 1.0, "r2": 0.5}),
        ("no map of the path has r2 >= 1.5; the largest is", {"r2": 1.5}),
        ("no map of the path has sparsity >= 2", {"sparsity": 2}),
        ("alphas must be non-negative", {"alpha": -1.0}),
        ("threshold must be 0 or more; got nan", {"alpha": 1.0, "threshold": float("nan")}),
    ]:
        with pytest.raises(ValueError, match=match):
            path.at(**options)
    with pytest.raises(ValueError, match="every target has its own alphas"):
        sk.lasso_path(m, torch.ones(2, 6)).at(alpha=1.0)
    with pytest.raises(IndexError, match="the path has 3 maps; got index 3"):
        path[3]


def test_grids_as_they_come(generator):
    m = moments(*data(generator))
    grid = np.geomspace(1e-3, 1.0, 5)
    wanted = sk.lasso_path(m, torch.from_numpy(grid))
    learned = torch.from_numpy(grid).requires_grad_()
    for given in (grid[::-1], list(grid), [torch.tensor(a) for a in grid], learned, np.repeat(grid, 2)[::2]):
        path = sk.lasso_path(m, given)
        assert torch.equal(path.alphas, wanted.alphas) and torch.equal(path.weight(4), wanted.weight(4))
        assert not path.objective.requires_grad
    shares = np.array([0.2, 0.9])
    assert torch.equal(sk.lasso_path(m, sparsity=shares[::-1]).alphas, sk.lasso_path(m, sparsity=shares).alphas)
    assert torch.equal(sk.lasso_path(m, grid, max_sweeps=2**40).weight(4), wanted.weight(4))


def test_units_beyond_each_other(generator):
    """Where y's unit over x's is 1e300, the square of M's unit is beyond float64; that of its norm is not."""
    stats = sk.Statistics.of(moments(*data(generator)))
    wanted = sk.lasso_path(stats, n_alphas=3)
    scaled = sk.Statistics.given(stats.cov_xx * 1e-300, stats.cov_xy, stats.cov_yy * 1e300)
    path = sk.lasso_path(scaled, n_alphas=3)
    torch.testing.assert_close(path.objective / 1e300, wanted.objective)


def test_says_where_it_did_not_converge(generator):
    m = moments(*data(generator, p=60, cond=1e3))
    with pytest.warns(NotConvergedWarning, match="did not reach tol=1e-06 in 1 sweeps"):
        path = sk.lasso_path(m, n_alphas=3, max_sweeps=1)
    assert not path.converged.all() and (path.violation[~path.converged] > 1e-6).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.lasso_path(m, n_alphas=3)


@pytest.mark.parametrize("per_target", [False, True])
def test_error_on_other_data(generator, per_target):
    x, y = conditioned(generator, 400, 12, 3)
    held_x, held_y = x[300:] + 5, y[300:]
    alphas = torch.rand(4, 3, generator=generator, dtype=torch.float64) if per_target else [1.0, 0.3, 0.01]
    path = sk.lasso_path(moments(x[:300], y[:300]), alphas)
    found = path.error(sk.Statistics.of(moments(held_x, held_y)))
    expected = torch.stack([(path[i](held_x) - held_y).square().mean(0) for i in range(len(path))])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (path.target_gap.sum(1) - path.gap).abs().max() <= 1e-12 and path.target_sweeps.shape == found.shape
    assert (path.target_sweeps.amax(1) == path.sweeps).all()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("l1_ratio", [1.0, 0.3, 0.0])
def test_approach_ends_near(generator, grouped, l1_ratio):
    """Each step of the way is an optimum, the last one of at most about twice the penalty; α = 0 ends it too."""
    x, y = conditioned(generator, 300, 10, 4)
    stats = sk.Statistics.of(moments(x, y))
    problem = LassoProblem(stats, Penalty(l1_ratio, False, grouped, 1e-10, 10_000))
    for share in (0.0, 0.01, 0.5, 2.0):
        alphas = (share * stats.cov_xy.abs().max()).expand(4)
        start, steps = problem.approach(alphas)
        assert start.shape == (4, 10) and steps.shape == (4,)
        near, far = (torch.cat([b.coefficients[-1] for b in problem.solve(alphas[None], s)]) for s in (start, None))
        torch.testing.assert_close(near, far, rtol=1e-6, atol=1e-8)
        if l1_ratio == 1 and share == 0.01:
            assert (start - near).norm() < 0.5 * near.norm() and (steps > 0).any()
        if l1_ratio == 1 and share == 2.0:
            assert (start == 0).all()
