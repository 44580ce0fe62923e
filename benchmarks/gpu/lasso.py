"""A Lasso path on the GPU beside the best solvers on the CPU of the same machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import torch

import stitchkern as sk
from benchmarks import test_lasso
from benchmarks.gpu.case import DEVICE, SMALL, Case, Way, rotate
from benchmarks.measure import OURS

P, ALPHAS, TARGETS = (24, 10, 2) if SMALL else (512, 100, 4)


def cases() -> Iterator[Case]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20 * P, P, generator=g, dtype=torch.float64)
    y = x @ torch.randn(P, P, generator=g, dtype=torch.float64)
    y = y + y.std(0) * torch.randn(len(y), P, generator=g, dtype=torch.float64)
    moments = sk.Moments(P, P, precision="float64", device=DEVICE).update(x.to(DEVICE), y.to(DEVICE))
    there = sk.Statistics.of(moments)
    here = sk.Statistics.of(sk.Moments(P, P, precision="float64").update(x, y))
    alphas = float(here.cov_xy.abs().max()) * torch.logspace(0, -3, ALPHAS, dtype=torch.float64)

    def path(stats: sk.Statistics) -> sk.LassoPath:
        return sk.lasso_path(stats, alphas.to(stats.device))

    def violation(stats: sk.Statistics) -> float:
        return float(path(stats).violation.max())

    ways = {
        OURS: Way(path, lambda: violation(there), test_lasso.RIGHT, rounds=5),
        "lasso_path on the CPU": Way(path, lambda: violation(here), seconds=lambda: rotate(path, [here], 3)),
    }
    if find_spec("sklearn"):
        problem = replace(test_lasso.Problem.of(here), alphas=alphas)
        run, some = test_lasso.scikit_learn(1e-8), range(0, P, P // TARGETS)
        seconds: list[float] = []

        def solved() -> float:
            begin = time.perf_counter()
            found = run(problem, some)
            seconds.append((time.perf_counter() - begin) * P / len(some))
            return test_lasso.violation(problem, found, some)

        name = f"scikit-learn, Gram ({TARGETS} targets, × {P // TARGETS})"
        ways[name] = Way(lambda _: None, solved, seconds=lambda: seconds)
    yield Case("lasso", f"{ALPHAS} α, p = q = {P}, statistics given", [there], ways)
