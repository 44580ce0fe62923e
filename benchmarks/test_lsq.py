"""Maps from moments beside what a torch user would write, answers verified before they are timed. Run by `make bench`.

The last cases are there for their errors, against float64 QR of the data at three conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.bounds import Work
from benchmarks.measure import OURS, measure

# ------------------------------------------------------------------------------------------ the curve over all ranks

N, P = 50_000, 512


@pytest.fixture(scope="module")
def features() -> tuple[Tensor, Tensor, sk.Statistics, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, P, generator=g) + 1
    y = x @ torch.randn(P, P, generator=g) / P**0.5 * torch.logspace(0, -2, P) + torch.randn(N, P, generator=g)
    stats = sk.Statistics.of(sk.Moments(P, P).update(x, y))
    xd, yd = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    weight = torch.linalg.solve(xd.T @ xd, xd.T @ yd)
    explained = torch.linalg.eigvalsh((xd @ weight).T @ (xd @ weight) / N).flip(0).cumsum(0)
    return x, y, stats, weight, yd.square().sum() / N - explained


def svd_of_fitted(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All residuals, and the maps as factors: (W V) Vᵀ."""
    xc = x - x.mean(0)
    s, v = torch.linalg.svd(xc @ weight, full_matrices=False)[1:]
    left = (y - y.mean(0)).square().sum() / len(x)
    return left - s.square().cumsum(0) / len(x), weight @ v.T, v


def fit_then_svd(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    xc, yc = x - x.mean(0), y - y.mean(0)
    return svd_of_fitted(x, y, torch.cholesky_solve(xc.T @ yc, torch.linalg.cholesky(xc.T @ xc)))


RANK_WAYS: dict[str, dict[str, Callable]] = {
    "statistics given": {
        OURS: lambda x, y, stats, weight: sk.reduced_rank_path(stats).residual,
        "fitted values, SVD (float32)": lambda x, y, stats, weight: svd_of_fitted(x, y, weight.float())[0],
        "fitted values, SVD (float64)": lambda x, y, stats, weight: svd_of_fitted(x.double(), y.double(), weight)[0],
    },
    "from the data": {
        OURS: lambda x, y, *_: sk.reduced_rank_path(sk.Moments(P, P).update(x, y)).residual,
        "normal equations, SVD (float32)": lambda x, y, *_: fit_then_svd(x, y)[0],
        "normal equations, SVD (float64)": lambda x, y, *_: fit_then_svd(x.double(), y.double())[0],
    },
}


@pytest.mark.parametrize("start, contender", [(s, c) for s, ways in RANK_WAYS.items() for c in ways])
def test_all_ranks(start, contender, features, benchmark):
    x, y, stats, weight, expected = features
    run = RANK_WAYS[start][contender]
    measure(
        benchmark,
        lambda: run(x, y, stats, weight),
        lambda: ((run(x, y, stats, weight) - expected).abs().max() / expected[0]).item(),
        family="lsq",
        case=f"all 512 ranks with maps, n = 50,000, {start}",
        contender=contender,
        rounds=5 if contender == OURS else 2,
        warmup=1,
    )


# ------------------------------------------------------------------------------------------ many small problems


@lru_cache(maxsize=1)
def batch(p: int, count: int = 256) -> sk.Statistics:
    g = torch.Generator().manual_seed(0)
    return sk.Statistics.of(
        [
            sk.Moments(p, p).update(torch.randn(4 * p, p, generator=g), torch.randn(4 * p, p, generator=g))
            for _ in range(count)
        ]
    )


def cholesky_score(s: sk.Statistics) -> Tensor:
    """Map and residual, as one would write it: no scaling, no check of what the factorisation is worth."""
    lower, _ = torch.linalg.cholesky_ex(s.cov_xx)
    z = torch.linalg.solve_triangular(lower, s.cov_xy, upper=False)
    weight = torch.linalg.solve_triangular(lower.mT, z, upper=True)
    _ = s.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1) - z.square().sum((-2, -1))
    return weight


def work_of(stats: sk.Statistics) -> Work:
    """Both covariances read and the maps written, in float64; a Cholesky factorisation and two solutions with it."""
    count, p, q = stats.cov_xy.shape
    return Work(8 * count * p * (p + 2 * q), count * (p**3 / 3 + 2 * p * p * q), "float64")


PROBLEMS: dict[str, Callable[[sk.Statistics], Tensor]] = {
    OURS: lambda s: sk.least_squares(s).weight.mT,
    "cholesky_ex, two solves, score": cholesky_score,
    "linalg.lstsq (normal equations)": lambda s: torch.linalg.lstsq(s.cov_xx, s.cov_xy).solution,
    "linalg.solve": lambda s: torch.linalg.solve(s.cov_xx, s.cov_xy),
}


@pytest.mark.parametrize("contender", PROBLEMS)
@pytest.mark.parametrize("p", [16, 64, 128, 256])
def test_small_problems(p, contender, benchmark):
    stats = batch(p, 256 if p < 256 else 64)
    expected = torch.linalg.solve(stats.cov_xx, stats.cov_xy)
    run = PROBLEMS[contender]
    measure(
        benchmark,
        lambda: run(stats),
        lambda: ((run(stats) - expected).abs().max() / expected.abs().max()).item(),
        family="lsq",
        case=f"{len(stats.count)} problems, p = q = {p}",
        contender=contender,
        rounds=15,
        warmup=3,
        allowed=1e-9,
        work=work_of(stats),
    )


# ------------------------------------------------------------------------------------------ resamples


@pytest.fixture(scope="module")
def blocks() -> tuple[Tensor, Tensor, sk.Statistics]:
    g = torch.Generator().manual_seed(0)
    p = 256
    x = torch.randn(N, p, generator=g) + 1
    y = x @ torch.randn(p, p, generator=g) / p**0.5 + torch.randn(N, p, generator=g)
    return x, y, sk.Statistics.of([sk.Moments(p, p).update(x[i::64], y[i::64]) for i in range(64)])


def refit(x: Tensor, y: Tensor) -> Tensor:
    xc, yc = x - x.mean(0), y - y.mean(0)
    weight = torch.cholesky_solve(xc.T @ yc, torch.linalg.cholesky(xc.T @ xc))
    return 1 - (xc @ weight - yc).square().sum() / yc.square().sum()


@pytest.mark.parametrize("contender", [OURS, "20 refits, normal equations", "20 refits, linalg.lstsq"])
def test_bootstrap(contender, blocks, benchmark):
    x, y, stats = blocks
    expected = (
        1
        - torch.linalg.lstsq(torch.cat([x, torch.ones(N, 1)], 1).double(), y.double(), driver="gels").residuals.sum()
        / (y.double() - y.double().mean(0)).square().sum()
    )

    def many() -> Tensor:
        found = sk.bootstrap(stats, lambda s: sk.least_squares(s).r2, resamples=1000)
        assert 0.1 < found.low <= found.high < 1
        return found.value

    def lstsq() -> Tensor:
        xc, yc = x - x.mean(0), y - y.mean(0)
        weight = torch.linalg.lstsq(xc, yc).solution
        return 1 - (xc @ weight - yc).square().sum() / yc.square().sum()

    one = {OURS: many, "20 refits, normal equations": lambda: refit(x, y), "20 refits, linalg.lstsq": lstsq}
    times = 1 if contender == OURS else 20
    measure(
        benchmark,
        lambda: [one[contender]() for _ in range(times)],
        lambda: abs(float(one[contender]()) - float(expected)) / float(expected),
        family="lsq",
        case="1,000 resamples of 64 blocks (ours), 20 refits (theirs); p = q = 256, n = 50,000",
        contender=contender,
        rounds=2,
    )


# ------------------------------------------------------------------------------------------ accuracy


def conditioned(cond: float) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    n, p = 4_000, 64
    u = torch.linalg.qr(torch.randn(n, p, generator=g, dtype=torch.float64)).Q * n**0.5
    v = torch.linalg.qr(torch.randn(p, p, generator=g, dtype=torch.float64)).Q
    x = (u * torch.logspace(0, -torch.tensor(cond).log10().item(), p, dtype=torch.float64)) @ v.T + 3
    y = x @ torch.randn(p, 32, generator=g, dtype=torch.float64) + 0.1 * torch.randn(n, 32, generator=g).double()
    ones = torch.ones(n, 1, dtype=torch.float64)
    q, r = torch.linalg.qr(torch.cat([ones, x], 1))
    return x, y, torch.linalg.solve_triangular(r, q.T @ y, upper=True)[1:].T


def with_ones(solve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: solve(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y)[:-1].T


def scikit_learn(x: Tensor, y: Tensor) -> Tensor:
    linear = pytest.importorskip("sklearn.linear_model")
    return torch.from_numpy(linear.LinearRegression().fit(x.numpy(), y.numpy()).coef_)


ACCURATE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    OURS: lambda x, y: sk.lstsq([(x, y)]).weight,
    "stitchkern, moments alone": lambda x, y: sk.lstsq([(x, y)], road="moments").weight,
    "linalg.lstsq gelsd": with_ones(lambda x, y: torch.linalg.lstsq(x, y, driver="gelsd").solution),
    "linalg.lstsq gels": with_ones(lambda x, y: torch.linalg.lstsq(x, y, driver="gels").solution),
    "linalg.pinv": with_ones(lambda x, y: torch.linalg.pinv(x) @ y),
    "scikit-learn": scikit_learn,
}


@pytest.mark.parametrize("contender", ACCURATE)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("cond", [1e2, 1e5, 1e8])
def test_accuracy(cond, dtype, contender, benchmark):
    x, y, expected = conditioned(cond)
    scale = x.std(0)
    if dtype == "float32":  # the problem that the rounded data pose
        x, y = x.float(), y.float()
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        q, r = torch.linalg.qr(torch.cat([ones, x.double()], 1))
        expected = torch.linalg.solve_triangular(r, q.T @ y.double(), upper=True)[1:].T
    run = ACCURATE[contender]
    measure(
        benchmark,
        lambda: run(x, y),
        lambda: (((run(x, y).double() - expected) * scale).norm() / (expected * scale).norm()).item(),
        family="lsq",
        case=f"{dtype}, cond {cond:.0e}: error of the map",
        contender=contender,
        rounds=3,
        warmup=1,
        accuracy=True,
    )
