"""Second moments: one `Moments.update` beside what a torch user would write, answers verified before they are timed.

Run by `make bench`; `python -m benchmarks.table FILE.json` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import stitchkern as sk
from benchmarks.bounds import Work
from benchmarks.measure import OURS, measure

MEAN = 3.0  # activations are rarely centred; every contender gets the same data


def covariance(second: torch.Tensor, total: torch.Tensor, n: int) -> torch.Tensor:
    mean = total / n
    return second / n - torch.outer(mean, mean)


def plain(x: torch.Tensor) -> torch.Tensor:
    """x.T @ x, and the sum that a covariance needs."""
    return covariance(x.T @ x, x.sum(0), len(x))


def float64(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return covariance(x.T @ x, x.sum(0), len(x))


def centred(x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(0)
    return x.T @ x / len(x)


def torch_cov(x: torch.Tensor) -> torch.Tensor:
    return torch.cov(x.T, correction=0)


def product_only(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x


CONTENDERS: dict[str, Callable[[torch.Tensor], object]] = {
    OURS: lambda x: sk.Moments(x.shape[1]).update(x).cov_xx,
    "x.T @ x": product_only,
    "x.T @ x, sum": plain,
    "centre, x.T @ x": centred,
    "torch.cov": torch_cov,
    "float64 x.T @ x": float64,
}
CASES = {
    "(65536, 64)": (65536, 64),
    "(65536, 256)": (65536, 256),
    "(32768, 512)": (32768, 512),
    "(16384, 1024)": (16384, 1024),
    "(8192, 2048)": (8192, 2048),
    "NCHW 128×64×28×28": (128, 64, 28, 28),
    "NCHW 128×256×28×28": (128, 256, 28, 28),
}


def rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, torch.Tensor, torch.Tensor]:
    x = torch.randn(CASES[request.param], generator=torch.Generator().manual_seed(0)) + MEAN
    return request.param, x, float64(rows(x))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_second_moments(case, contender, benchmark):
    name, x, reference = case
    function = CONTENDERS[contender]
    if contender == OURS:  # timed: one batch of a stream; read: once, at its end
        moments = sk.Moments(x.shape[1])
        answer, run = function(x), lambda: moments.update(x)
    else:
        answer, run = (plain if contender == "x.T @ x" else function)(rows(x)), lambda: function(rows(x))
    n, c = rows(x).shape
    measure(
        benchmark,
        run,
        lambda: ((answer.double() - reference).abs().max() / reference.diagonal().max()).item(),
        family="moments",
        case=f"second moments {name}",
        contender=contender,
        rounds=7,
        warmup=2,
        work=Work(bytes=x.numel() * x.element_size(), flop=n * c * (c + 1)),  # what the upper triangle takes
    )
