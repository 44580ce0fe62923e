"""Batched least squares beside torch's batched forms.

torch's Cholesky form gives the solution and what is explained, nothing else; `lstsq` gets the covariances, as it would
have to. The bound is that of the float64 tensor cores, where there are such; the kernel uses none, so that half of it
is the most it can reach.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.bounds import Work
from benchmarks.gpu.case import DEVICE, SMALL, Case, Way, copies, farthest
from benchmarks.measure import OURS
from stitchkern import ops, reference

SIZES = [(256, 16, 16), (256, 32, 32), (256, 64, 64), (1024, 64, 64), (256, 128, 128)]  # problems, p, q
PROBES = 8
Problems = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def cholesky_form(given: Problems) -> tuple[Tensor, Tensor]:
    c, s = given[:2]
    factor, _ = torch.linalg.cholesky_ex(c)
    z = torch.linalg.solve_triangular(factor, s, upper=False)
    return torch.linalg.solve_triangular(factor.mT, z, upper=True), z.square().sum((1, 2))


def problems(count: int, p: int, q: int, generator: torch.Generator) -> Problems:
    def randn(width: int) -> Tensor:
        return torch.randn(count, 2 * p + 9, width, generator=generator, device=DEVICE, dtype=torch.float64)

    x, y = randn(p), randn(q)
    probes = torch.randint(0, 2, (p, PROBES), generator=generator, device=DEVICE).double() * 2 - 1
    ridge = torch.zeros(count, device=DEVICE, dtype=torch.float64)
    return x.mT @ x / len(x[0]), x.mT @ y / len(x[0]), x.mean(1), ridge, probes


def cases() -> Iterator[Case]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    for count, p, q in SIZES:
        some = min(count, 4) if SMALL else count
        bytes_each = 8 * some * p * (p + 2 * q)
        inputs = [problems(some, p, q, generator) for _ in range(copies(bytes_each))]
        first = inputs[0]
        two: Problems = *(t[:2].cpu() for t in first[:4]), first[4].cpu()  # type: ignore[assignment]
        expected = torch.linalg.solve(first[0], first[1])

        def error(first: Problems = first, two: Problems = two, expected: Tensor = expected) -> float:
            solution, sums, score = ops.lsq_solve(*first)
            for found, wanted in zip((solution, sums, score), reference.lsq_solve(*two), strict=True):
                torch.testing.assert_close(found[:2].cpu(), wanted, rtol=1e-8, atol=1e-10)
            return farthest(solution, expected)

        ways = {
            OURS: Way(lambda t: ops.lsq_solve(*t), error, 1e-8, rounds=64),
            "torch, Cholesky": Way(
                cholesky_form, lambda first=first, e=expected: farthest(cholesky_form(first)[0], e), rounds=10
            ),
            "torch, lstsq": Way(
                lambda t: torch.linalg.lstsq(t[0], t[1]).solution,
                lambda first=first, e=expected: farthest(torch.linalg.lstsq(first[0], first[1]).solution, e),
                rounds=3,
            ),
        }
        flop = 2 * some * (p**3 / 6 + p * p * (q + PROBES))
        yield Case("lsq", f"{count} problems, p = {p}, q = {q}", inputs, ways, Work(bytes_each, flop, "float64"))
