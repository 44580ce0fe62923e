"""Ridge regression that chooses its penalty, from the data, beside what others would run. Run by `make bench`.

What is verified are the coefficients, against float64 normal equations at the penalties that each has chosen: one for
all targets (ours, scikit-learn) or one for each (himalaya).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from benchmarks.measure import OURS, SMALL, measure

linear_model = pytest.importorskip("sklearn.linear_model")

N, P = (2_000, 32) if SMALL else (20_000, 256)
ALPHAS = np.logspace(-1, 5, 20)
Answer = tuple[np.ndarray, np.ndarray]  # α of each target, coefficients (q, p)


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Features of falling variance, and a noise that makes some penalty worth while."""
    g = np.random.default_rng(0)
    x = g.standard_normal((N, P)) * np.logspace(0, -2, P)
    y = x @ g.standard_normal((P, P)) * np.sqrt(P) + 30 * g.standard_normal((N, P))
    return (x + 1).astype(np.float32), y.astype(np.float32)


def ours(cv: int | None) -> Answer:
    from stitchkern.estimators import RidgeCV

    model = RidgeCV(ALPHAS, cv=cv).fit(*data())
    return np.full(P, model.alpha_), np.asarray(model.coef_)


def scikit_learn(cv: int | None) -> Answer:
    model = linear_model.RidgeCV(ALPHAS, cv=cv).fit(*data())
    return np.full(P, model.alpha_), model.coef_


def himalaya(cv: int | None) -> Answer:
    package = pytest.importorskip("himalaya.ridge")
    from himalaya.backend import set_backend

    set_backend("torch")
    model = package.RidgeCV(ALPHAS, cv=cv, fit_intercept=True, solver_params={"warn": False}).fit(*data())
    return np.asarray(model.best_alphas_), np.asarray(model.coef_).T


@cache
def centred() -> tuple[np.ndarray, np.ndarray]:
    x, y = (t.astype(np.float64) for t in data())
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ x, x.T @ y


def error(found: Answer) -> float:
    """Largest error of one target's coefficients relative to their norm."""
    gram, cross = centred()
    alphas, coefficients = found
    worst = 0.0
    for alpha in np.unique(alphas):
        chosen = alphas == alpha
        expected = np.linalg.solve(gram + alpha * np.eye(P), cross[:, chosen]).T
        apart = np.linalg.norm(coefficients[chosen] - expected, axis=1) / np.linalg.norm(expected, axis=1)
        worst = max(worst, float(apart.max()))
    return worst


CASES: dict[str, tuple[int | None, dict[str, Callable[[int | None], Answer]]]] = {
    f"RidgeCV, 20 α, 5 folds, n = {N:,}, p = q = {P}": (
        5,
        {OURS: ours, "scikit-learn RidgeCV": scikit_learn, "himalaya RidgeCV, torch": himalaya},
    ),
    f"RidgeCV, 20 α, leave-one-out, n = {N:,}, p = q = {P}": (
        None,
        {OURS: ours, "scikit-learn RidgeCV": scikit_learn},
    ),
}


@pytest.mark.parametrize("case, contender", [(case, way) for case, (_, ways) in CASES.items() for way in ways])
def test_choose(case, contender, benchmark):
    cv, ways = CASES[case]
    measure(
        benchmark,
        lambda: ways[contender](cv),
        lambda: 0.0,  # the answer that is timed is the one that is verified
        family="ridge",
        case=case,
        contender=contender,
        rounds=3 if contender == OURS else 1,
        warmup=1 if contender == OURS else 0,
        error=error,
        allowed=1e-5,
        wrong=1e-2,
    )
