"""How times grow with samples n, features p and layers: few sizes of each family, ours beside a plain way.

With threads: test_threads.py. The shares of the bound say where fixed costs end; the rows of one axis, whether time
grows as the work does. Answers are verified first, as in the files of the families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import stitchkern as sk
from benchmarks import formulas
from benchmarks.bounds import Work
from benchmarks.measure import OURS, measure
from benchmarks.test_hsic import by_matrices, cka_of
from benchmarks.test_lsq import PROBLEMS, batch, work_of
from benchmarks.test_moments import float64, product_only
from benchmarks.test_similarity import largest, work_of_layers
from stitchkern import reference


@dataclass(frozen=True)
class Problem:
    """Ways to an answer, each with its error: run(), check()."""

    ways: dict[str, tuple[Callable[[], object], Callable[[], float]]]
    work: Work | None


def data(n: int, p: int, sides: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=g)
    return [x + i * torch.randn(n, p, generator=g) for i in range(sides)]


def moments(n: int, p: int) -> Problem:
    (x,) = data(n, p)
    stream, expected = sk.Moments(p), float64(x)

    def error(found: Tensor) -> float:
        return largest(found, expected) / expected.diagonal().max().item()

    return Problem(
        {
            OURS: (lambda: stream.update(x), lambda: error(sk.Moments(p).update(x).cov_xx)),
            "x.T @ x": (lambda: product_only(x), lambda: error(product_only(x - x.mean(0)) / n)),
        },
        Work(4 * x.numel(), n * p * (p + 1)),
    )


def rbf_cka(n: int, p: int) -> Problem:
    x, y = data(n, p, 2)
    sigma, few = p**0.5, slice(0, 1024)
    plain = by_matrices("rbf", torch.float32)
    expected = cka_of(*(reference.kernel_matrix(t[few], "rbf", sigma) for t in (x, y)))

    def ours(x: Tensor, y: Tensor) -> float:
        return float(sk.cka(x, y, kernel="rbf", bandwidth=sigma))

    return Problem(
        {
            OURS: (lambda: ours(x, y), lambda: abs(ours(x[few], y[few]) - expected)),
            "cdist, exp, centring (float32)": (
                lambda: plain(x, y, [sigma]),
                lambda: abs(plain(x[few], y[few], [sigma])[0] - expected),
            ),
        },
        Work(8 * x.numel(), 2 * n * n * p),
    )


def cka_matrix(layers: int, n: int = 1024, p: int = 768) -> Problem:
    sides = data(n, p, 2 * layers)
    xs, ys = sides[:layers], sides[layers:]
    centred = [t.double() - t.double().mean(0) for t in sides]
    products = torch.stack([(t @ t.T).flatten() for t in centred])
    products = products @ products.T
    own = products.diagonal().sqrt()
    expected = (products / torch.outer(own, own))[:layers, layers:]
    ways: dict[str, Callable] = {
        OURS: sk.cka_matrix,
        "centred Grams, one product (float32)": formulas.pairs_of_features,
    }
    return Problem(
        {
            way: (lambda run=run: run(xs, ys), lambda run=run: largest(run(xs, ys), expected))
            for way, run in ways.items()
        },
        work_of_layers(xs, ys),
    )


def maps(count: int, p: int = 64) -> Problem:
    stats = batch(p, count)
    expected = torch.linalg.solve(stats.cov_xx, stats.cov_xy)
    ways = {way: PROBLEMS[way] for way in (OURS, "cholesky_ex, two solves, score")}
    return Problem(
        {way: (lambda run=run: run(stats), lambda run=run: largest(run(stats), expected)) for way, run in ways.items()},
        work_of(stats),
    )


def lasso(p: int) -> Problem:
    """Ours alone: how long others take depends on the condition, see test_lasso.py."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20 * p, p, generator=g, dtype=torch.float64)
    y = x @ torch.randn(p, p, generator=g, dtype=torch.float64) / p**0.5
    y = y + torch.randn(y.shape, generator=g, dtype=torch.float64)
    stats = sk.Statistics.of(sk.Moments(p, p, precision="float64").update(x, y))
    alphas = float(stats.cov_xy.abs().max()) * torch.logspace(0, -3, 50, dtype=torch.float64)

    def check() -> float:
        return float(sk.lasso_path(stats, alphas).violation.max())

    return Problem({OURS: (lambda: sk.lasso_path(stats, alphas), check)}, None)


BASELINES = {
    moments: "x.T @ x",
    rbf_cka: "cdist, exp, centring (float32)",
    cka_matrix: "centred Grams, one product (float32)",
    maps: "cholesky_ex, two solves, score",
    lasso: None,
}
#: name -> problem, its arguments
CASES: dict[str, tuple[Callable[..., Problem], tuple[int, ...]]] = {
    **{f"moments in n: ({n}, 256)": (moments, (n, 256)) for n in (1024, 8192, 65536)},
    **{f"moments in p: (8192, {p})": (moments, (8192, p)) for p in (64, 256, 1024)},
    **{f"RBF CKA in n: n = {n:,}, p = q = 128": (rbf_cka, (n, 128)) for n in (1024, 2048, 4096)},
    **{f"RBF CKA in p: n = 2,048, p = q = {p}": (rbf_cka, (2048, p)) for p in (32, 128, 512)},
    **{f"CKA in layers: {k} × {k}, n = 1,024, p = 768": (cka_matrix, (k,)) for k in (2, 6, 18)},
    **{f"maps in pairs of layers: {k} problems, p = q = 64": (maps, (k,)) for k in (8, 32, 128)},
    **{f"Lasso path in p: 50 α, p = q = {p}": (lasso, (p,)) for p in (32, 64, 128)},
}


def ways(problem: Callable[..., Problem]) -> list[str]:
    return [way for way in (OURS, BASELINES[problem]) if way]


def record(benchmark, case: str, contender: str, make: Callable[..., Problem], sizes: tuple[int, ...]) -> None:
    problem = make(*sizes)
    run, check = problem.ways[contender]
    measure(
        benchmark,
        run,
        check,
        family="scaling",
        case=case,
        contender=contender,
        rounds=5,
        warmup=1,
        allowed=1e-5 if make is lasso else 1e-6,
        work=problem.work,
    )


@pytest.mark.parametrize("case, contender", [(c, w) for c in CASES for w in ways(CASES[c][0])])
def test_sizes(case, contender, benchmark):
    record(benchmark, case, contender, *CASES[case])
