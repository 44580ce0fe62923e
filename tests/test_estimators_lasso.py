"""Lasso and elastic net as estimators: scikit-learn's own checks, scikit-learn's own answers."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

from sklearn import exceptions
from sklearn import linear_model as theirs
from sklearn.base import clone
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from stitchkern import estimators as ours
from stitchkern.errors import NotConvergedWarning
from tests.test_estimators import apart, data

ALL = [
    ours.Lasso(),
    ours.Lasso(0.01, positive=True, fit_intercept=False),
    ours.ElasticNet(),
    ours.MultiTaskLasso(),
    ours.MultiTaskElasticNet(),
    ours.LassoCV(alphas=5, cv=3),
    ours.ElasticNetCV(alphas=5, cv=3, l1_ratio=[0.3, 0.9]),
    ours.MultiTaskLassoCV(alphas=5, cv=3),
    ours.MultiTaskElasticNetCV(alphas=5, cv=3),
]


@parametrize_with_checks(ALL)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def largest(X, y, w=None) -> float:
    w = np.ones(len(X)) if w is None else w
    center = [t - np.average(t, axis=0, weights=w) for t in (X, y)]
    return float(np.abs((center[0].T * w) @ center[1]).max() / w.sum())


def weights(n: int) -> np.ndarray:
    g = np.random.default_rng(0)
    return g.random(n) * (g.random(n) > 0.1)


def fitted(name: str, X, y, w=None, **options):
    """Ours and theirs, at tolerances that leave no doubt."""
    mine = getattr(ours, name)(tol=1e-10, **options).fit(X, y, w)
    other = getattr(theirs, name)(tol=1e-11, max_iter=100_000, **options)
    if "l1_ratio" in mine.get_params():
        other.set_params(l1_ratio=mine.l1_ratio)
    return mine, other.fit(X, y) if w is None else other.fit(X, y, sample_weight=w)


def objective(fit, X, y, alpha: float) -> float:
    left = np.square(y - X @ np.atleast_2d(fit.coef_).T - fit.intercept_).sum(1).mean()
    return left / 2 + alpha * np.abs(fit.coef_).sum()


@pytest.mark.parametrize("name", ["diabetes", "diabetes, raw", "multi", "n < p", "dead", "collinear"])
@pytest.mark.parametrize("how", ["plain", "far", "tiny"])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(name, how, weighted):
    X, y = data(name)
    X, y = {"plain": (X, y), "far": (X + 1e3, y - 1e3), "tiny": (X * 1e-6, y * 1e-6)}[how]
    w = weights(len(X)) if weighted else None
    alpha = 0.05 * largest(X, y, w)
    for kind, options in [("Lasso", {}), ("Lasso", {"positive": True}), ("ElasticNet", {"l1_ratio": 0.3})]:
        for intercept in (True, False) if how != "far" else (True,):
            mine, other = fitted(kind, X, y, w, alpha=alpha, fit_intercept=intercept, **options)
            assert mine.coef_.shape == other.coef_.shape and np.shape(mine.intercept_) == np.shape(other.intercept_)
            assert apart(mine.coef_, other.coef_) < 1e-6 and apart(mine.predict(X), other.predict(X)) < 1e-8
            assert ((mine.coef_ == 0) == (other.coef_ == 0)).all()
            assert mine.sparse_coef_.shape == other.sparse_coef_.shape
            assert (mine.sparse_coef_.toarray() == np.atleast_2d(mine.coef_)).all()
            assert np.shape(mine.dual_gap_) == np.shape(other.dual_gap_)
            assert np.shape(mine.n_iter_) == np.shape(other.n_iter_) and np.max(mine.n_iter_) > 0
            assert (np.asarray(mine.dual_gap_) <= 1e-8 * y.var(0)).all()


@pytest.mark.parametrize("name", ["multi", "n < p", "dead", "collinear"])
@pytest.mark.parametrize("far", [0.0, 1e3])
def test_groups_agree_with_scikit_learn(name, far):
    X, y = data(name)
    X = X + far
    alpha = 0.7 * largest(X, y)
    for kind, options in [("MultiTaskLasso", {}), ("MultiTaskElasticNet", {"l1_ratio": 0.7})]:
        mine, other = fitted(kind, X, y, alpha=alpha, **options)
        assert apart(mine.coef_, other.coef_) < 1e-6 and apart(mine.intercept_, other.intercept_) < 1e-6
        used = mine.coef_ != 0
        assert (used.all(0) | ~used.any(0)).all() and used.any() and not used.all()
        assert isinstance(mine.dual_gap_, float) and isinstance(mine.n_iter_, int)


def test_weights_of_groups_are_repetitions():
    X, y = data("multi")
    w = np.random.default_rng(0).integers(0, 4, len(X))
    a = ours.MultiTaskLasso(3.0, tol=1e-10).fit(X, y, w)
    b = ours.MultiTaskLasso(3.0, tol=1e-10).fit(X.repeat(w, 0), y.repeat(w, 0))
    assert apart(a.coef_, b.coef_) < 1e-9
    assert apart(a.coef_, ours.MultiTaskLasso(3.0, tol=1e-10).fit(X, y, 1e-5 * w).coef_) < 1e-9


@pytest.mark.parametrize("name", ["duplicated", "collinear"])
def test_where_the_optimum_is_not_unique_the_objective_is(name):
    X, y = data(name)
    for alpha in (1e-3, 1.0):
        mine, other = fitted("Lasso", X, y, alpha=alpha)
        assert objective(mine, X, y, alpha) == pytest.approx(objective(other, X, y, alpha), rel=1e-10)


def test_no_intercept_far_from_zero():
    """κ = 1e3, where coordinate descent stops long before the optimum."""
    X, y = data("multi")
    X, alpha = X + 1e3, 1.0
    mine = ours.Lasso(alpha, fit_intercept=False, tol=1e-8).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = theirs.Lasso(alpha, fit_intercept=False, max_iter=3000).fit(X, y)
    assert objective(mine, X, y, alpha) < objective(other, X, y, alpha)
    c = X.T @ (y - mine.predict(X)) / len(X)
    assert (np.abs(c) <= alpha + 1e-7 * np.abs(X.T @ y / len(X)).max()).all()


def test_an_alpha_for_each_target():
    X, y = data("multi")
    alphas = [0.1, 5.0, 1e9]
    fit = ours.Lasso(alphas, tol=1e-10).fit(X, y)
    for k, alpha in enumerate(alphas):
        assert apart(fit.coef_[k], ours.Lasso(alpha, tol=1e-10).fit(X, y[:, k]).coef_) < 1e-9
    assert (fit.coef_[2] == 0).all() and fit.n_iter_[2] == 0 and apart(fit.intercept_[2], y[:, 2].mean()) < 1e-12


@pytest.mark.parametrize("name", ["diabetes", "multi", "n < p", "dead"])
@pytest.mark.parametrize("options", [{}, {"positive": True, "fit_intercept": False}, {"weighted": True, "cv": 3}])
def test_choice_agrees_with_scikit_learn(name, options):
    X, y = data(name)
    y = y if y.ndim == 1 else y[:, 0]
    options = dict(options)
    w = weights(len(X)) if options.pop("weighted", False) else None
    for kind, more in [("LassoCV", {}), ("ElasticNetCV", {"l1_ratio": [0.2, 0.9]})]:
        mine = getattr(ours, kind)(alphas=20, eps=1e-2, tol=1e-10, **options, **more).fit(X, y, w)
        other = getattr(theirs, kind)(alphas=mine.alphas_, tol=1e-10, max_iter=100_000, **options, **more)
        if mine.alphas_.ndim == 2:  # theirs takes one list of numbers for all ratios
            other.set_params(alphas=np.geomspace(1, 0.01, 7) * mine.alphas_[0, 0])
            mine.set_params(alphas=other.alphas).fit(X, y, w)
        other.fit(X, y, w)
        assert mine.mse_path_.shape == other.mse_path_.shape and apart(mine.mse_path_, other.mse_path_) < 1e-6
        assert apart(mine.alphas_, other.alphas_) == 0 and mine.alpha_ == pytest.approx(other.alpha_, rel=1e-12)
        assert apart(mine.coef_, other.coef_) < 1e-6
        assert kind == "LassoCV" or mine.l1_ratio_ == other.l1_ratio_


def test_default_penalties_are_scikit_learns():
    X, y = data("diabetes")
    for options in ({}, {"positive": True}, {"fit_intercept": False}):
        mine, other = (m.LassoCV(tol=1e-8, max_iter=100_000, **options).fit(X, y) for m in (ours, theirs))
        assert mine.alphas_.shape == (100,) and apart(mine.alphas_, other.alphas_) < 1e-12
        assert mine.alpha_ == pytest.approx(other.alpha_, rel=1e-12)


def test_groups_are_chosen_as_scikit_learn_chooses():
    X, y = data("multi")
    for kind in ("MultiTaskLassoCV", "MultiTaskElasticNetCV"):
        grid = np.geomspace(30, 0.03, 15)
        mine, other = fitted(kind, X, y, alphas=grid, cv=KFold(4, shuffle=True, random_state=0))
        assert apart(mine.mse_path_, other.mse_path_) < 1e-7 and mine.alpha_ == other.alpha_
        assert apart(mine.coef_, other.coef_) < 1e-7


def test_many_targets_choose_together_or_alone():
    X, y = data("multi")
    y = y * [1.0, 10.0, 0.1]
    each = [ours.LassoCV(alphas=15, tol=1e-10).fit(X, t) for t in y.T]
    alone = ours.LassoCV(alphas=15, alpha_per_target=True, tol=1e-10).fit(X, y)
    assert alone.alpha_.shape == (3,) and alone.alphas_.shape == (15, 3) and alone.mse_path_.shape == (15, 5, 3)
    for k, fit in enumerate(each):
        assert alone.alpha_[k] == pytest.approx(fit.alpha_) and apart(alone.alphas_[:, k], fit.alphas_) < 1e-12
        assert apart(alone.mse_path_[..., k], fit.mse_path_) < 1e-9 and apart(alone.coef_[k], fit.coef_) < 1e-9
    grid = np.geomspace(100, 0.1, 9)
    together = ours.LassoCV(alphas=grid, tol=1e-10).fit(X, y)
    mean = np.mean([ours.LassoCV(alphas=grid, tol=1e-10).fit(X, t).mse_path_ for t in y.T], 0)
    assert apart(together.mse_path_, mean) < 1e-9 and together.alpha_ == grid[mean.mean(1).argmin()]


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_is_numpy(estimator, dtype, device):
    X, y = (torch.from_numpy(t).to(dtype) for t in data("multi"))
    a, b = clone(estimator).fit(X.numpy(), y.numpy()), clone(estimator).fit(X.to(device), y.to(device))
    found = b.predict(X.to(device))
    assert found.device.type == device.type and found.dtype == dtype == b.coef_.dtype
    assert apart(found.cpu(), a.predict(X.numpy())) < (1e-6 if dtype == torch.float64 else 1e-4)
    assert b.sparse_coef_.layout == torch.sparse_coo and (b.sparse_coef_.to_dense() == b.coef_).all()


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_pieces_are_the_whole(estimator):
    X, y = data("multi")
    w = np.random.default_rng(0).random(len(X))
    whole, pieces = clone(estimator), clone(estimator)
    if hasattr(estimator, "cv"):  # folds of pieces are dealt in another order
        row = np.arange(200)
        whole.set_params(cv=[(row[row % 3 != i], row[row % 3 == i]) for i in range(3)])
    whole.set_params(tol=1e-10).fit(X, y, w)
    pieces.set_params(tol=1e-10)
    for start, end in [(0, 60), (60, 61), (61, 143), (143, 200)]:
        pieces.partial_fit(X[start:end], y[start:end], w[start:end])
    assert pieces.moments_.rows == 200 and apart(pieces.coef_, whole.coef_) < 1e-8
    if hasattr(whole, "mse_path_"):
        assert pieces.alpha_ == pytest.approx(whole.alpha_) and apart(pieces.mse_path_, whole.mse_path_) < 1e-8
    assert apart(pickle.loads(pickle.dumps(pieces)).predict(X), whole.predict(X)) < 1e-8


def test_not_converged_is_both_warnings():
    X, y = data("multi")
    for kind in (NotConvergedWarning, exceptions.ConvergenceWarning):
        with pytest.warns(kind, match="Lasso: 1 of 1 α did not reach tol=1e-06 in 1 sweeps"):
            fit = ours.Lasso(0.1, max_iter=1, fit_intercept=False).fit(X + 1e3, y)
    assert np.isfinite(fit.coef_).all() and (fit.dual_gap_ > 0).any()


def test_nothing_to_explain():
    X, _ = data("multi")
    for estimator in (ours.Lasso(0.0), ours.LassoCV(), ours.ElasticNetCV(alpha_per_target=True)):
        fit = estimator.fit(X, np.full((len(X), 2), 3.0))
        assert (fit.coef_ == 0).all() and apart(fit.intercept_, np.full(2, 3.0)) < 1e-14
    assert (
        apart(ours.Lasso(0.0).fit(X, data("multi")[1]).coef_, theirs.LinearRegression().fit(*data("multi")).coef_)
        < 1e-6
    )


@pytest.mark.parametrize(
    "estimator,message",
    [
        (ours.Lasso(-1.0), "alpha must be a non-negative number"),
        (ours.Lasso([1.0, 2.0]), r"alpha must be a number or \(3,\), one for each target; got \(2,\)"),
        (ours.Lasso([1.0, 2.0, np.inf]), "alpha must be non-negative and finite"),
        (ours.MultiTaskLasso([1.0, 2.0, 3.0]), "alpha must be a non-negative number"),
        (ours.Lasso(tol=0), "tol must be a number between 0 and 1"),
        (ours.Lasso(max_iter=0), "max_iter must be a positive integer"),
        (ours.Lasso(positive=1), "positive must be True or False"),
        (ours.ElasticNet(l1_ratio=1.5), "l1_ratio must be a number in 0 … 1"),
        (ours.LassoCV(alphas=0), "alphas must be a positive number of them"),
        (ours.LassoCV(alphas=[]), "alphas must be numbers, one or more"),
        (ours.LassoCV(alphas=[1.0, -1.0]), "alphas must be non-negative"),
        (ours.LassoCV(eps=0), "eps must be a number between 0 and 1"),
        (ours.LassoCV(cv=1), "cv must be None, a number of folds"),
        (ours.LassoCV(cv=[([0], [1])]), "cv must train on all rows"),
        (ours.LassoCV(alpha_per_target=3), "alpha_per_target must be True or False"),
        (ours.ElasticNetCV(l1_ratio=[0.5, 2]), "l1_ratio must be a number in 0 … 1; got 2"),
        (ours.ElasticNetCV(l1_ratio=[]), "l1_ratio must be one number or more"),
        (ours.ElasticNetCV(l1_ratio=0), "give alphas"),
    ],
)
def test_bad_parameters(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(*data("multi"))


@pytest.mark.parametrize("name", ["MultiTaskLasso", "MultiTaskElasticNetCV"])
def test_groups_need_targets(name):
    X, y = data("diabetes")
    with pytest.raises(ValueError, match=f"{name} takes y .n, q.; .*use {name[9:]}"):
        getattr(ours, name)().fit(X, y)
    assert getattr(ours, name)().fit(X, y[:, None]).coef_.shape == (1, 10)
