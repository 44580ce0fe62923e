"""CKA with kernels beside the n × n matrices that a torch user would make, answers verified before they are timed.

Run by `make bench`. Errors are those over the first 2,048 samples, beside float64 distances from differences, which
would cost too much for all.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.bounds import Work
from benchmarks.measure import OURS, SMALL, measure
from stitchkern import reference

N, P, CHECKED = (512, 32, 256) if SMALL else (8192, 256, 2048)


def centre(k: Tensor) -> Tensor:
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def cka_of(k: Tensor, l: Tensor) -> float:
    k, l = centre(k), centre(l)
    return ((k * l).sum() / (k.square().sum() * l.square().sum()).sqrt()).item()


def by_matrices(kernel: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor, list[float]], list[float]]:
    def matrix(x: Tensor, sigma: float) -> Tensor:
        d = torch.cdist(x.to(dtype), x.to(dtype))
        return torch.exp(-d.square() / (2 * sigma**2) if kernel == "rbf" else -d / sigma)

    return lambda x, y, sigmas: [cka_of(matrix(x, sigma), matrix(y, sigma)) for sigma in sigmas]


def ours(kernel: str) -> Callable[[Tensor, Tensor, list[float]], list[float]]:
    return lambda x, y, sigmas: sk.cka(x, y, kernel=kernel, bandwidth=sigmas).tolist()


CASES = {  # kernel, offset, bandwidths; the one with an offset is there for its errors
    "RBF": ("rbf", 1.0, [16.0]),
    "RBF, 4 bandwidths": ("rbf", 1.0, [16.0, 24.0, 32.0, 64.0]),
    "RBF, features + 1000": ("rbf", 1000.0, [16.0]),
    "Laplace": ("laplace", 1.0, [16.0]),
}
WAYS: dict[str, Callable[[str], Callable]] = {
    OURS: ours,
    "cdist, exp, centring (float32)": lambda kernel: by_matrices(kernel, torch.float32),
    "cdist, exp, centring (float64)": lambda kernel: by_matrices(kernel, torch.float64),
}
PAIRS = [(c, w) for c in CASES for w in WAYS if "float64" not in w or len(CASES[c][2]) == 1]


@pytest.fixture(scope="module")
def features() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, P, generator=g)
    return x, x @ torch.randn(P, P, generator=g) / P**0.5 + torch.randn(N, P, generator=g)


@pytest.fixture(scope="module")
def expected() -> dict[str, list[float]]:
    """What was computed so far."""
    return {}


@pytest.mark.parametrize("case, contender", PAIRS)
def test_cka(case, contender, features, expected, benchmark):
    kernel, offset, sigmas = CASES[case]
    x, y = (t + offset for t in features)
    run = WAYS[contender](kernel)
    rows = slice(0, CHECKED)
    if case not in expected:
        expected[case] = [
            cka_of(*(reference.kernel_matrix(t[rows], kernel, sigma) for t in (x, y))) for sigma in sigmas
        ]

    def check() -> float:
        found = run(x[rows], y[rows], sigmas)
        return max(abs(a - b) for a, b in zip(found, expected[case], strict=True))

    measure(
        benchmark,
        lambda: run(x, y, sigmas),
        check,
        family="hsic",
        case=f"CKA, {case}; n = 8,192, p = q = 256",
        contender=contender,
        rounds=5 if contender == OURS else 2,
        work=Work(8 * N * P, 2 * N * N * P, "float64" if kernel == "laplace" else "float32"),
        accuracy=offset == 1000,
    )
