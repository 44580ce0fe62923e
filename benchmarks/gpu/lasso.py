"""A Lasso path on the GPU beside the best solvers on the CPU of the same machine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.gpu.case import DEVICE, SMALL, Case, Way, rotate
from benchmarks.measure import OURS
from stitchkern import reference

P, ALPHAS, TARGETS = (24, 10, 2) if SMALL else (512, 100, 4)
RIGHT = 1e-5  # largest violation of optimality, relative to the largest |cov_xy| of the target


def cases() -> Iterator[Case]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20 * P, P, generator=g, dtype=torch.float64)
    y = x @ torch.randn(P, P, generator=g, dtype=torch.float64)
    y = y + y.std(0) * torch.randn(len(y), P, generator=g, dtype=torch.float64)
    moments = sk.Moments(P, P, precision="float64", device=DEVICE).update(x.to(DEVICE), y.to(DEVICE))
    there = sk.Statistics.of(moments)
    here = sk.Statistics.of(sk.Moments(P, P, precision="float64").update(x, y))
    alphas = float(here.cov_xy.abs().max()) * torch.logspace(0, -3, ALPHAS, dtype=torch.float64)
    answers: dict[str, float] = {}

    def path(stats: sk.Statistics) -> sk.LassoPath:
        return sk.lasso_path(stats, alphas.to(stats.device))

    def solved(name: str, stats: sk.Statistics) -> float:
        answers[name] = float(path(stats).violation.max())
        return answers[name]

    ways = {
        OURS: Way(path, lambda: solved("gpu", there), RIGHT, rounds=5, seconds=lambda: rotate(path, [there], 5)),
        "lasso_path on the CPU": Way(path, lambda: solved("cpu", here), seconds=lambda: rotate(path, [here], 3)),
    }
    if find_spec("sklearn"):
        run, error = _scikit_learn(x, y, here, alphas)
        ways[f"scikit-learn, Gram ({TARGETS} targets, × {P // TARGETS})"] = Way(lambda _: None, error, seconds=run)
    yield Case("lasso", f"{ALPHAS} α, p = q = {P}, statistics given", [None], ways)


def _scikit_learn(
    x: Tensor, y: Tensor, stats: sk.Statistics, alphas: Tensor
) -> tuple[Callable[[], list[float]], Callable[[], float]]:
    """(seconds counted for all targets, violation), of some targets."""
    from sklearn.linear_model import lasso_path

    n = len(x)
    some = range(0, P, P // TARGETS)
    centred = ((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy())
    gram, cross = (n * stats.cov_xx.cpu()).numpy(), (n * stats.cov_xy.cpu()).numpy()
    seconds: list[float] = []

    def error() -> float:
        found = []
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for k in some:
                options = {"precompute": gram, "Xy": cross[:, k], "alphas": alphas.numpy(), "tol": 1e-8}
                found.append(lasso_path(centred[0], centred[1][:, k], max_iter=100_000, **options)[1])
        seconds.append((time.perf_counter() - begin) * P / len(some))
        weights, zero = torch.stack([torch.from_numpy(w.T) for w in found], 1), torch.zeros(len(some)).double()
        return max(
            float(reference.lasso_score(
                stats.cov_xx, stats.cov_xy[:, some], zero, weight, alpha.expand(len(some)), zero
            )["violation"].max())
            for alpha, weight in zip(alphas, weights, strict=True)
        )  # fmt: skip

    return lambda: seconds, error
