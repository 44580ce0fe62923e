"""The Lasso path of all targets beside what others would run, answers verified. Run by `make bench`.

Everyone starts from the same statistics: scikit-learn takes the Gram matrix, celer and skglm the data compressed to p
rows with that Gram matrix. These three go target by target; they are timed on some of the targets, spread evenly, and
counted for all. Each has the tolerance from which on its answers are right to 1e-5.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.measure import OURS, SMALL, measure
from stitchkern import reference

N, P, ALPHAS, SOME = (2_000, 32, 50, 4) if SMALL else (20_000, 256, 50, 16)
RIGHT = 1e-5  # largest violation of optimality, relative to the largest |cov_xy| of the target
PAPER = os.environ.get("STITCHKERN_PAPER_DATA")


@dataclass(frozen=True)
class Problem:
    stats: sk.Statistics
    alphas: Tensor
    x: np.ndarray  # (p, p): p rows of data with that covariance
    y: np.ndarray  # (p, q)

    @classmethod
    def of(cls, stats: sk.Statistics) -> Problem:
        """Penalties as by default; rows by an eigendecomposition, as real activations may be collinear."""
        values, vectors = torch.linalg.eigh(stats.cov_xx)
        root = values.clamp(min=1e-14 * float(values[-1])).sqrt()
        x = stats.p**0.5 * (vectors * root).T
        y = stats.p**0.5 * (vectors / root).T @ stats.cov_xy
        alphas = float(stats.cov_xy.abs().max()) * torch.logspace(0, -3, ALPHAS, dtype=torch.float64)
        return cls(stats, alphas, np.asfortranarray(x.numpy()), np.asfortranarray(y.numpy()))


def synthetic(condition: float) -> sk.Statistics:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, P, generator=g, dtype=torch.float64)
    if condition > 1:
        v = torch.linalg.qr(torch.randn(P, P, generator=g, dtype=torch.float64)).Q
        x = N**0.5 * (torch.linalg.qr(x).Q * torch.logspace(0, -np.log10(condition) / 2, P).double()) @ v.T
    y = x @ torch.randn(P, P, generator=g, dtype=torch.float64)
    y = y + y.std(0) * torch.randn(N, P, generator=g, dtype=torch.float64)
    return sk.Statistics.of(sk.Moments(P, P, precision="float64").update(x, y))


def tiny10() -> sk.Statistics:
    """Of the seventh layer of two of the paper's networks, over the original training images."""
    if not PAPER:
        pytest.skip("STITCHKERN_PAPER_DATA does not name the folder with the paper's weights and images")
    from stitchkern.matching import collect_moments
    from stitchkern.models import load_data, load_model

    models = Path(__file__).parent.parent / "examples" / "paper" / "models.py"
    front, end = (load_model(f"{models}:tiny10@{PAPER}/weights/tiny10-seed{seed}.pt") for seed in (0, 1))
    images = load_data(
        f"{PAPER}/cifar10/cifar10-original-subset.npz",
        split="train",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        batch_size=128,
    )
    return sk.Statistics.of(next(iter(collect_moments(front, end, [("bn7", "bn7")], images).values())))


CASES: dict[str, Callable[[], sk.Statistics]] = {
    f"p = q = {P}, well-conditioned": lambda: synthetic(1.0),
    f"p = q = {P}, cond(G) = 1e4": lambda: synthetic(1e4),
    "Tiny-10, bn7 (64 channels)": tiny10,
}


@cache
def problem(case: str) -> Problem:
    return Problem.of(CASES[case]())


# ------------------------------------------------------------------------------------------ ways: (a, targets, p)


def ours(t: Problem, targets: range) -> Tensor:
    path = sk.lasso_path(t.stats, t.alphas)
    return torch.stack([path.weight(i)[targets] for i in range(len(path))])


def target_by_target(one: Callable[[Problem, int], np.ndarray]) -> Callable[[Problem, range], Tensor]:
    def run(t: Problem, targets: range) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those that stop at their own limits; the error says it
            return torch.from_numpy(np.stack([one(t, k).T for k in targets], 1))

    return run


def scikit_learn(tol: float) -> Callable[[Problem, range], Tensor]:
    linear = pytest.importorskip("sklearn.linear_model")

    def one(t: Problem, k: int) -> np.ndarray:
        p = t.stats.p
        gram, cross = (p * t.stats.cov_xx).numpy(), (p * t.stats.cov_xy[:, k]).numpy()
        options = {"precompute": gram, "Xy": cross, "alphas": t.alphas.numpy(), "tol": tol, "max_iter": 100_000}
        return linear.lasso_path(t.x, t.y[:, k], **options)[1]

    return target_by_target(one)


def celer(tol: float) -> Callable[[Problem, range], Tensor]:
    package = pytest.importorskip("celer")
    return target_by_target(
        lambda t, k: package.celer_path(t.x, t.y[:, k], pb="lasso", alphas=t.alphas.numpy(), tol=tol)[1]
    )


def skglm(tol: float) -> Callable[[Problem, range], Tensor]:
    solvers = pytest.importorskip("skglm.solvers")
    from skglm.datafits import Quadratic
    from skglm.penalties import L1

    solver = solvers.AndersonCD(tol=tol, max_iter=1_000, ws_strategy="fixpoint", fit_intercept=False)
    return target_by_target(
        lambda t, k: solver.path(t.x, t.y[:, k].copy(), Quadratic(), L1(1.0), alphas=t.alphas.numpy())[1]
    )


def fista(t: Problem, targets: range) -> Tensor:
    """All targets at once, accelerated proximal gradient with restarts, as one would write it in torch."""
    gram, cross = t.stats.cov_xx, t.stats.cov_xy[:, targets].T
    step = 1 / float(torch.linalg.eigvalsh(gram)[-1])
    w, found = torch.zeros_like(cross), []
    goal = RIGHT * cross.abs().amax(1, keepdim=True) / 2
    for alpha in t.alphas.tolist():
        z, momentum = w, 1.0
        for i in range(20_000):
            slope = cross - z @ gram
            after = torch.nn.functional.softshrink(z + step * slope, alpha * step)
            if i % 10 == 0:
                c = cross - after @ gram
                off = torch.where(after != 0, (c - alpha * after.sign()).abs(), (c.abs() - alpha).clamp(min=0.0))
                if bool((off <= goal).all()):
                    w = after
                    break
            if bool(((z - after) * (after - w)).sum() > 0):
                momentum = 1.0
            later = (1 + (1 + 4 * momentum * momentum) ** 0.5) / 2
            w, z, momentum = after, after + (momentum - 1) / later * (after - w), later
        found.append(w)
    return torch.stack(found)


#: way -> (how, tolerances of its own by condition, whether on some targets only)
WAYS: dict[str, tuple[Callable, dict[str, float], bool]] = {
    OURS: (lambda tol: ours, {}, False),
    "FISTA with restarts, torch": (lambda tol: fista, {}, False),
    "scikit-learn lasso_path, Gram": (scikit_learn, {"well": 1e-8, "1e4": 1e-6, "bn7": 1e-8}, True),
    "celer, compressed data": (celer, {"well": 1e-8, "1e4": 1e-7, "bn7": 1e-8}, True),
    "skglm, compressed data": (skglm, {"well": 3e-5, "1e4": 3e-5, "bn7": 1e-6}, True),
}


def violation(t: Problem, found: Tensor, targets: range) -> float:
    stats, zero = t.stats, torch.zeros(len(targets), dtype=torch.float64)
    worst = 0.0
    for alpha, weight in zip(t.alphas, found, strict=True):
        score = reference.lasso_score(
            stats.cov_xx, stats.cov_xy[:, targets], zero, weight, alpha.expand(len(targets)), zero
        )
        worst = max(worst, float(score["violation"].max()))
    return worst


@pytest.mark.parametrize("contender", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_path(case, contender, benchmark):
    make, tolerances, some = WAYS[contender]
    t = problem(case)
    run = make(next((tol for mark, tol in tolerances.items() if mark in case), 0.0))
    q = t.stats.q
    targets = range(0, q, max(1, q // SOME)) if some else range(q)
    run(t, range(0, q, q // 2))  # what compiles itself at first use has done so
    counted = f" ({len(targets)} targets, × {q // len(targets)})" if some else ""
    seconds: list[float] = []

    def timed() -> Tensor | sk.LassoPath:
        begin = time.perf_counter()
        answer = sk.lasso_path(t.stats, t.alphas) if contender == OURS else run(t, targets)
        seconds.append((time.perf_counter() - begin) * q / len(targets))
        return answer

    measure(
        benchmark,
        timed,
        lambda: violation(t, run(t, targets), targets) if contender == OURS else 0.0,
        family="lasso",
        case=f"{ALPHAS} α, {case}, statistics given",
        contender=contender + counted,
        rounds=5 if contender == OURS else 1,
        error=lambda found: float(found.violation.max()) if contender == OURS else violation(t, found, targets),
        allowed=RIGHT,
        wrong=2 * RIGHT,
        clock=lambda: seconds,
    )


# ------------------------------------------------------------------------------------------ one penalty, from the data


@cache
def rows() -> tuple[np.ndarray, np.ndarray, sk.Statistics, float]:
    """X and Y as scikit-learn prefers them in memory, their statistics, and an α that leaves a part of the features."""
    g = np.random.default_rng(0)
    x = g.standard_normal((N, P))
    y = x @ (g.standard_normal((P, P)) * (g.random((P, P)) < 0.2))
    y += y.std(0) * g.standard_normal((N, P)) + 3
    stats = sk.Statistics.of(sk.Moments(P, P, precision="float64").update(torch.from_numpy(x), torch.from_numpy(y)))
    return np.asfortranarray(x), np.asfortranarray(y), stats, 0.1 * float(stats.cov_xy.abs().max())


#: way -> whether the Gram matrix of all targets is made first (None: ours)
FITS = {OURS: None, "scikit-learn Lasso.fit": False, "scikit-learn Lasso.fit, precompute=True": True}


@pytest.mark.parametrize("contender", FITS)
def test_fit(contender, benchmark):
    """With a Gram matrix scikit-learn, too, is timed on all targets.

    Without, on 1 and on 1 + SOME, so that what it does once is counted once.
    """
    linear = pytest.importorskip("sklearn.linear_model")
    from stitchkern import estimators

    x, y, stats, alpha = rows()
    gram = FITS[contender]
    counts = [1, 1 + SOME] if gram is False else [P]

    def fit(count: int) -> Tensor:
        if gram is None:
            model = estimators.Lasso(alpha)
        else:
            model = linear.Lasso(alpha, tol=1e-9, max_iter=100_000, precompute=gram)
        return torch.from_numpy(np.atleast_2d(model.fit(x, y[:, :count]).coef_))

    def violation_of(weight: Tensor) -> float:
        some, zero = slice(0, len(weight)), torch.zeros(len(weight), dtype=torch.float64)
        score = reference.lasso_score(
            stats.cov_xx, stats.cov_xy[:, some], zero, weight, torch.full_like(zero, alpha), zero
        )
        return float(score["violation"].max())

    error = violation_of(fit(counts[-1]))
    if contender == OURS:
        assert error <= RIGHT, "a wrong answer is not worth timing"
    seconds = []

    def timed() -> None:
        taken = []
        for count in counts:
            begin = time.perf_counter()
            fit(count)
            taken.append(time.perf_counter() - begin)
        seconds.append(taken[0] if len(counts) == 1 else taken[0] + (taken[1] - taken[0]) / SOME * (P - 1))

    case = f"Lasso.fit from the data, n = {N:,}, p = q = {P}"
    benchmark.group = case
    benchmark.pedantic(timed, rounds=3, warmup_rounds=0)
    benchmark.extra_info.update(
        family="lasso",
        case=case,
        contender=contender + ("" if len(counts) == 1 else f" ({1 + SOME} targets, counted for {P})"),
        error=error,
        wrong=not error <= 2 * RIGHT,
        threads=torch.get_num_threads(),
        seconds=sorted(seconds)[len(seconds) // 2],
    )
