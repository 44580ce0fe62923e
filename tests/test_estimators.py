"""Estimators: scikit-learn's own checks, scikit-learn's own answers."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn import linear_model as theirs  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_diabetes, make_regression  # noqa: E402
from sklearn.model_selection import KFold  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import stitchkern as sk  # noqa: E402
from stitchkern import estimators as ours  # noqa: E402

ALPHAS = np.logspace(-3, 3, 13)
ALL = [
    ours.LinearRegression(),
    ours.LinearRegression(solver="qr", fit_intercept=False),
    ours.Ridge(),
    ours.RidgeCV(),
    ours.RidgeCV(cv=3),
    ours.ReducedRankRegression(),
    ours.ReducedRankRegression(rank=1, alpha=0.1),
    ours.OrthogonalProcrustes(),
    ours.OrthogonalProcrustes(scale=True, fit_intercept=False),
]


@parametrize_with_checks(ALL)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def data(name: str):
    multi = make_regression(200, 12, n_targets=3, noise=3.0, random_state=0)
    hostile = multi[0].copy()
    match name:
        case "diabetes":
            return load_diabetes(return_X_y=True)
        case "diabetes, raw":
            return load_diabetes(return_X_y=True, scaled=False)
        case "n < p":
            return make_regression(30, 70, n_targets=3, noise=1.0, random_state=1)
        case "duplicated":
            hostile[:, 3] = hostile[:, 5]
        case "dead":
            hostile[:, 3] = 0
        case "collinear":
            hostile[:, 3] = hostile[:, 5] + hostile[:, 6] - 2 * hostile[:, 1]
    return hostile, multi[1]


def apart(a, b) -> float:
    """Largest difference beside the largest number."""
    return float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-300))


@pytest.mark.parametrize("name", ["diabetes", "diabetes, raw", "multi", "n < p", "duplicated", "dead", "collinear"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(name, intercept, weighted):
    X, y = data(name)
    g = np.random.default_rng(0)
    w = g.random(len(X)) * (g.random(len(X)) > 0.1) if weighted else None
    pairs = [
        (ours.LinearRegression(), theirs.LinearRegression()),
        (ours.Ridge(0.7), theirs.Ridge(0.7)),
        (ours.RidgeCV(ALPHAS), theirs.RidgeCV(ALPHAS)),
        (ours.RidgeCV(ALPHAS, cv=5), theirs.RidgeCV(ALPHAS, cv=5)),
    ]
    for mine, other in pairs:
        folds = getattr(mine, "cv", None)
        if folds and weighted and not _scores_are_weighted():
            continue
        mine.set_params(fit_intercept=intercept).fit(X, y, sample_weight=w)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's own solver is not content with duplicated features
            other.set_params(fit_intercept=intercept).fit(X, y, sample_weight=w)
        assert mine.coef_.shape == other.coef_.shape and np.shape(mine.intercept_) == np.shape(other.intercept_)
        assert apart(mine.coef_, other.coef_) < 1e-8
        assert apart(mine.intercept_, other.intercept_) < 1e-8 if intercept else mine.intercept_ == 0.0
        assert apart(mine.predict(X), other.predict(X)) < 1e-8
        assert mine.score(X, y, w) == pytest.approx(other.score(X, y, w), rel=1e-8)
        if hasattr(other, "alpha_"):
            assert mine.alpha_ == other.alpha_ and mine.best_score_ == pytest.approx(other.best_score_, rel=1e-8)
        if hasattr(other, "rank_"):
            assert mine.rank_ == other.rank_


def _scores_are_weighted() -> bool:
    """Whether this scikit-learn weights held-out rows (older ones do not)."""
    X, y = load_diabetes(return_X_y=True)
    w = np.random.default_rng(0).random(len(X))
    cv = KFold(5).split(X)
    scores = [theirs.Ridge().fit(X[i], y[i], w[i]).score(X[j], y[j], w[j]) for i, j in cv]
    found = theirs.RidgeCV([1.0], cv=5).fit(X, y, sample_weight=w).best_score_
    return found == pytest.approx(np.mean(scores), rel=1e-9)


@pytest.mark.parametrize("name", ["multi", "n < p", "duplicated", "dead", "collinear"])
def test_huge_offsets(name):
    """Far from zero even exact collinearity is one only up to the rounding of the data."""
    X, y = data(name)
    X = X + 1e6
    for mine, other in [
        (ours.LinearRegression(), theirs.LinearRegression()),
        (ours.RidgeCV(ALPHAS), theirs.RidgeCV(ALPHAS)),
    ]:
        found, expected = mine.fit(X, y).predict(X), other.fit(X, y).predict(X)
        assert apart(found, expected) < 1e-8, mine


def test_no_intercept_far_from_zero():
    """κ = 1e6: right to 1e-10 where scikit-learn's normal equations keep three digits."""
    X, y = data("multi")
    X = X + 1e6
    stacked = np.vstack([X, 0.7**0.5 * np.eye(X.shape[1])])
    expected = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((X.shape[1], y.shape[1]))]))[0].T
    fit = ours.Ridge(0.7, fit_intercept=False).fit(X, y)
    assert fit.map_.method == "qr" and apart(fit.coef_, expected) < 1e-9
    chosen = ours.RidgeCV([0.1, 1, 10], fit_intercept=False).fit(X, y)
    other = theirs.RidgeCV([0.1, 1, 10], fit_intercept=False, gcv_mode="svd").fit(X, y)
    assert chosen.alpha_ == other.alpha_ and chosen.best_score_ == pytest.approx(other.best_score_, rel=1e-8)


@pytest.mark.parametrize("scoring", [None, "neg_mean_absolute_error", "r2"])
@pytest.mark.parametrize("cv", [None, 4, KFold(3, shuffle=True, random_state=0)])
def test_scoring(scoring, cv):
    X, y = data("multi")
    mine, other = (m.RidgeCV(ALPHAS, scoring=scoring, cv=cv).fit(X, y) for m in (ours, theirs))
    assert mine.alpha_ == other.alpha_ and mine.best_score_ == pytest.approx(other.best_score_, rel=1e-8)


@pytest.mark.parametrize("scoring", [None, "r2"])
@pytest.mark.parametrize("name", ["diabetes", "multi"])
def test_leave_one_out_results(name, scoring):
    X, y = data(name)
    options = {"scoring": scoring, "store_cv_results": True}
    mine, other = (m.RidgeCV(ALPHAS, **options).fit(X, y).cv_results_ for m in (ours, theirs))
    assert mine.shape == other.shape and apart(mine, other) < 1e-8


def test_reduced_rank():
    g = np.random.default_rng(0)
    X = g.standard_normal((400, 9)) + 50
    y = X @ g.standard_normal((9, 2)) @ g.standard_normal((2, 6)) + g.standard_normal((400, 6))
    full = theirs.LinearRegression().fit(X, y)
    v = np.linalg.svd(full.predict(X) - y.mean(0))[2][:2]
    for fit in (ours.ReducedRankRegression().fit(X, y), ours.ReducedRankRegression(rank=2, solver="qr").fit(X, y)):
        assert fit.rank_ == np.linalg.matrix_rank(fit.coef_) == 2
        assert apart(fit.coef_, v.T @ v @ full.coef_) < 1e-9
    chosen = ours.ReducedRankRegression(cv=4).fit(X, y)
    held = []
    for train, test in KFold(4).split(X):
        fold = ours.ReducedRankRegression(rank=3).fit(X[train], y[train])
        held.append(np.square(fold.predict(X[test]) - y[test]).sum(1).mean())
    assert chosen.cv_error_.shape == (6,) and chosen.cv_error_[2] == pytest.approx(np.mean(held), rel=1e-9)


@pytest.mark.parametrize("p,q", [(5, 5), (4, 7), (7, 4)])
def test_procrustes(p, q):
    g = np.random.default_rng(0)
    X = g.standard_normal((200, p)) @ g.standard_normal((p, p)) + 3
    Q = np.linalg.svd(g.standard_normal((q, p)), full_matrices=False)
    Q = Q[0] @ Q[2]
    y = 2.5 * X @ Q.T - 1
    fit = ours.OrthogonalProcrustes(scale=True).fit(X, y)
    small = fit.coef_ @ fit.coef_.T if q <= p else fit.coef_.T @ fit.coef_
    assert np.allclose(small, np.eye(min(p, q)), atol=1e-12)
    if p <= q:
        assert np.allclose(fit.coef_, Q, atol=1e-9) and fit.scale_ == pytest.approx(2.5)
        assert np.allclose(fit.predict(X), y) and fit.score(X, y) == pytest.approx(1)
    plain = ours.OrthogonalProcrustes().fit(X, y)
    assert plain.scale_ == 1 and np.allclose(plain.coef_, fit.coef_)
    xc, yc = X - X.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd(xc.T @ yc, compute_uv=False).sum()
    distance = ((np.square(xc).sum() + np.square(yc).sum() - 2 * nuclear) / len(X)) ** 0.5
    assert plain.distance_ == pytest.approx(distance, rel=1e-9)
    raw = np.linalg.svd(y.T @ X, full_matrices=False)
    about_zero = ours.OrthogonalProcrustes(fit_intercept=False).fit(X, y)
    assert np.allclose(about_zero.coef_, raw[0] @ raw[2], atol=1e-9) and about_zero.intercept_ == 0.0


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_is_numpy(estimator, dtype, device):
    X, y = (torch.from_numpy(t).to(dtype) for t in data("multi"))
    w = torch.rand(len(X), generator=torch.Generator().manual_seed(0))
    a, b = clone(estimator), clone(estimator)
    a.fit(X.numpy(), y.numpy(), w.numpy())
    b.fit(X.to(device), y.to(device), w.to(device))
    found = b.predict(X.to(device))
    assert found.device.type == device.type and found.dtype == dtype == b.coef_.dtype
    assert a.predict(X.numpy()).dtype == a.coef_.dtype == X.numpy().dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert apart(found.cpu(), a.predict(X.numpy())) < tolerance
    assert b.score(X.to(device), y.to(device), w.to(device)) == pytest.approx(
        a.score(X.numpy(), y.numpy(), w.numpy()), abs=1e-5
    )
    assert apart(b.predict(X.numpy()), a.predict(X.numpy())) < tolerance  # one kind fitted, the other predicted
    flat = clone(estimator).fit(X.to(device), y[:, 0].to(device)) if estimator.__class__ is ours.Ridge else None
    assert flat is None or (flat.coef_.shape == (12,) and flat.predict(X.to(device)).shape == (200,))


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_pieces_are_the_whole(estimator):
    X, y = data("multi")
    w = np.random.default_rng(0).random(len(X))
    whole, pieces, on = clone(estimator), clone(estimator), clone(estimator)
    if isinstance(estimator, ours.RidgeCV):  # leave-one-out needs all rows, folds are dealt in another order
        row, k = np.arange(200), estimator.cv or 5
        whole.set_params(cv=[(row[row % k != i], row[row % k == i]) for i in range(k)])
    whole.fit(X, y, w)
    for start, end in [(0, 60), (60, 61), (61, 143), (143, 200)]:
        pieces.partial_fit(X[start:end], y[start:end], w[start:end])
    assert pieces.moments_.rows == 200
    assert apart(pieces.coef_, whole.coef_) < 1e-10 and apart(pieces.intercept_, whole.intercept_) < 1e-10
    if hasattr(whole, "alpha_"):
        assert pieces.alpha_ == whole.alpha_ and pieces.best_score_ == pytest.approx(whole.best_score_, rel=1e-10)
    on.fit(X[:100], y[:100], w[:100])
    before = on.moments_
    on.partial_fit(torch.from_numpy(X[100:]), torch.from_numpy(y[100:]), torch.from_numpy(w[100:]))
    assert before.rows == 100 and on.moments_.rows == 200
    assert apart(on.predict(X), pieces.predict(X)) < 1e-10


def test_one_row_at_a_time():
    X, y = data("diabetes")
    fit = ours.LinearRegression()
    for i in range(40):
        fit.partial_fit(X[i : i + 1], y[i : i + 1])
        assert np.isfinite(fit.predict(X)).all()
        if i == 0:
            assert (fit.coef_ == 0).all() and fit.intercept_ == y[0]
    assert apart(fit.coef_, theirs.LinearRegression().fit(X[:40], y[:40]).coef_) < 1e-8


def test_the_road_of_fit_is_kept():
    X, y = data("collinear")
    fit = ours.LinearRegression().fit(X[:100], y[:100])
    assert fit.map_.method == "qr" and fit.partial_fit(X[100:], y[100:]).map_.method == "qr"
    assert apart(fit.predict(X), theirs.LinearRegression().fit(X, y).predict(X)) < 1e-9
    few = ours.LinearRegression().partial_fit(X[:5], y[:5])  # fewer rows than features say nothing about the road
    assert few.map_.method == "eigh" and few.rank_ == 4
    moments = ours.LinearRegression(solver="moments").fit(X, y)
    assert moments.map_.method == "eigh" and apart(moments.predict(X), fit.predict(X)) < 1e-6
    with pytest.raises(ValueError, match="solver='qr' cannot continue"):
        moments.set_params(solver="qr").partial_fit(X, y)


def test_nothing_is_kept_of_the_rows():
    """State does not grow with the number of rows, and views of any strides are read as they are."""
    g = np.random.default_rng(0)
    sizes = []
    for n in (1000, 20000):
        X, y = g.standard_normal((n, 6), dtype=np.float32), g.standard_normal((n, 2))
        sizes.append(len(pickle.dumps(ours.RidgeCV(solver="moments").fit(X, y))))
        for view in (X[::-1], np.asfortranarray(X)[:, ::-1], X[::3]):
            target = y[: len(view)]
            a, b = (ours.Ridge(solver="moments").fit(v, target).coef_ for v in (view, np.ascontiguousarray(view)))
            assert apart(a, b) < 1e-6
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_read_only_arrays_are_read_without_a_word():
    X, y = data("multi")
    X.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(ours.Ridge().fit(X, y).predict(X)).all()


def test_integers_and_booleans():
    g = np.random.default_rng(0)
    X, y = g.integers(0, 9, (50, 4)), g.integers(0, 3, 50)
    expected = theirs.LinearRegression().fit(X, y)
    for kind in (np.asarray, torch.as_tensor):
        assert apart(ours.LinearRegression().fit(kind(X), kind(y)).coef_, expected.coef_) < 1e-9
    b = torch.from_numpy(X > 4)
    assert apart(ours.Ridge().fit(b, torch.from_numpy(y)).coef_, theirs.Ridge().fit(X > 4, y).coef_) < 1e-9


def test_in_a_pipeline_and_pickled():
    X, y = data("diabetes, raw")
    pipeline = make_pipeline(StandardScaler(), ours.RidgeCV(ALPHAS)).fit(X, y)
    expected = make_pipeline(StandardScaler(), theirs.RidgeCV(ALPHAS)).fit(X, y).predict(X)
    assert apart(pickle.loads(pickle.dumps(pipeline)).predict(X), expected) < 1e-8


@pytest.mark.parametrize(
    "estimator,message",
    [
        (ours.LinearRegression(solver="refine"), "solver must be one of 'auto', 'moments', 'qr'"),
        (ours.LinearRegression(precision="double"), "precision must be one of"),
        (ours.LinearRegression(fit_intercept="yes"), "fit_intercept must be True or False"),
        (ours.Ridge(-1.0), "alpha must be a non-negative number"),
        (ours.RidgeCV([1.0, 0.0]), "alphas must be one or more positive numbers"),
        (ours.RidgeCV([]), "alphas must be one or more"),
        (ours.RidgeCV(cv=1), "cv must be None, a number of folds"),
        (ours.RidgeCV(cv=3, store_cv_results=True), "store_cv_results=True needs cv=None"),
        (ours.RidgeCV(cv=[([0], [1])]), "cv must train on all rows"),
        (ours.ReducedRankRegression(rank=9), "rank must be 1 … 3"),
        (ours.ReducedRankRegression(rank="auto"), "rank must be a positive integer or 'cv'"),
        (ours.ReducedRankRegression(cv=500), "rank='cv' needs at least cv=500 rows"),
        (ours.OrthogonalProcrustes(scale=2.0), "scale must be True or False"),
    ],
)
def test_bad_parameters(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(*data("multi"))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_bad_data_changes_nothing(kind):
    X, y = (kind(t) for t in data("multi"))
    fit = ours.Ridge().fit(X, y)
    coef, rows = fit.coef_, fit.moments_.rows
    bad = X + 0.0
    bad[150, 2] = np.nan
    negative = kind(np.full(200, -1.0))
    for arguments in [(bad, y), (X[:, :5], y), (X, y[:, :2]), (X, y[:, 0]), (X, y[:9]), (X, y, negative), (X, None)]:
        with pytest.raises(ValueError):
            fit.partial_fit(*arguments)
    with pytest.raises(ValueError, match="5 features"):
        fit.predict(X[:, :5])
    assert fit.coef_ is coef and fit.moments_.rows == rows


def test_pieces_that_cannot_be_chosen_from():
    X, y = data("multi")
    with pytest.raises(ValueError, match="a row for each of 5 folds; got 3"):
        ours.RidgeCV().partial_fit(X[:3], y[:3])
    with pytest.raises(ValueError, match="came in pieces cannot be left out"):
        ours.RidgeCV(store_cv_results=True).partial_fit(X, y)
    with pytest.raises(ValueError, match="scoring must be None"):
        ours.RidgeCV(scoring="max_error").partial_fit(X, y)
    with pytest.raises(ValueError, match="cannot continue 5 folds with 3"):
        ours.RidgeCV().fit(X, y).set_params(cv=3).partial_fit(X, y)


def test_scikit_learn_is_optional():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import stitchkern as sk; sk.Moments(2); assert 'stitchkern.estimators' not in sys.modules\n"
        "try: sk.estimators\n"
        "except ImportError as e: assert 'pip install stitchkern[sklearn]' in str(e); print('said so')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "said so\n", done.stderr
    assert sk.estimators is ours
