"""Kernel sums beside the n × n matrices of a torch user.

Answers are verified on the first 2,048 samples against float64 matrices. The bound is that of the multiplications, n²/2
for each feature, five times as many with the gradient, at the float64 rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.bounds import Work
from benchmarks.gpu.case import DEVICE, SMALL, Case, Way, farthest
from benchmarks.measure import OURS
from stitchkern import reference

CHECKED = 2048  # samples


def centre(k: Tensor) -> Tensor:
    k -= k.mean(0)
    k -= k.mean(1, keepdim=True)
    return k


def rbf_matrix(x: Tensor, sigma: float) -> Tensor:
    x = x - x.mean(0)
    norms = x.square().sum(1)
    return (x @ x.T).mul_(2).sub_(norms[:, None]).sub_(norms).clamp_(max=0).div_(2 * sigma**2).exp_()


def rbf_by_matrices(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    k, l = centre(rbf_matrix(x, sigma)), centre(rbf_matrix(y, sigma))
    return (k.flatten() @ l.flatten()) / (k.norm() * l.norm())


def pairs_by_matrices(sides: list[Tensor]) -> Tensor:
    grams = []
    for t in sides:
        t = t - t.mean(0)
        k = (t @ t.T).flatten()
        grams.append(k / k.norm())
    stacked = torch.stack(grams)
    return stacked @ stacked.T


def by_reference(sides: list[Tensor], kernel: str, sigma: float) -> Tensor:
    k = torch.stack([reference.kernel_matrix(t, kernel, sigma) for t in sides])
    k = (k - k.mean(1, keepdim=True) - k.mean(2, keepdim=True) + k.mean((1, 2), keepdim=True)).flatten(1)
    products = k @ k.T
    return products / (products.diag()[:, None] * products.diag()).sqrt()


def layers(count: int, n: int, p: int, generator: torch.Generator) -> list[Tensor]:
    common = torch.randn(n, p, generator=generator, device=DEVICE)
    return [common + torch.randn(n, p, generator=generator, device=DEVICE) * (1 + i / 4) for i in range(count)]


def with_gradient(sides: list[Tensor], sigma: float) -> Tensor:
    for t in sides:
        t.requires_grad_().grad = None
    sk.cka(*sides, kernel="rbf", bandwidth=sigma).backward()
    found = sides[0].grad
    for t in sides:
        t.requires_grad_(False)
    return found


def matrices_with_gradient(sides: list[Tensor], sigma: float) -> Tensor:
    leaves = [t.detach().requires_grad_() for t in sides]
    matrices = []
    for t in leaves:
        t = t - t.mean(0)
        norms = t.square().sum(1)
        k = torch.exp(-(norms[:, None] + norms - 2 * t @ t.T) / (2 * sigma**2))
        k = k - k.mean(0)
        matrices.append((k - k.mean(1, keepdim=True)).flatten())
    k, l = matrices
    return torch.autograd.grad((k @ l) / (k.norm() * l.norm()), leaves)[0]


def cases() -> Iterator[Case]:
    generator = torch.Generator(DEVICE).manual_seed(0)

    def sides(count: int, n: int, p: int) -> list[Tensor]:
        return layers(count, *((96, 32) if SMALL else (n, p)), generator)

    def width(given: list[Tensor]) -> float:
        return 2 * given[0].shape[1] ** 0.5

    for n, p in ((32768, 768), (8192, 256)):
        yield _case(
            f"RBF CKA, n = {n:,}, p = {p}",
            sides(2, n, p),
            lambda s: sk.cka(*s, kernel="rbf", bandwidth=width(s)),
            lambda s: rbf_by_matrices(*s, width(s)),
            lambda s: by_reference(s, "rbf", width(s))[0, 1],
        )
    yield _case(
        "linear CKA of 24 × 24 layers, n = 2,048, p = 768",
        sides(48, 2048, 768),
        lambda s: sk.cka_matrix(s[:24], s[24:], space="samples"),
        lambda s: pairs_by_matrices(s)[:24, 24:],
        lambda s: by_reference(s, "linear", 1)[:24, 24:],
    )
    yield _case(
        "gradient of RBF CKA, n = 8,192, p = 256",
        sides(2, 8192, 256),
        lambda s: with_gradient(s, width(s)),
        lambda s: matrices_with_gradient(s, width(s)),
        lambda s: matrices_with_gradient([t.double() for t in s], width(s)),
        multiplications=2.5,
        allowed=1e-5,
    )


def _case(
    name: str,
    sides: list[Tensor],
    ours: Callable[[list[Tensor]], object],
    matrices: Callable[[list[Tensor]], object],
    exact: Callable[[list[Tensor]], object],
    multiplications: float = 0.5,
    allowed: float = 1e-6 if SMALL else 1e-8,
) -> Case:
    """``multiplications``: in n² for each feature."""
    n, features = len(sides[0]), sum(t.shape[1] for t in sides)
    part = [t[:CHECKED] for t in sides]
    expected = torch.as_tensor(exact(part), device=DEVICE).double()

    def error(run: Callable[[list[Tensor]], object]) -> float:
        return farthest(torch.as_tensor(run(part), device=DEVICE), expected)

    ways = {
        OURS: Way(ours, lambda: error(ours), allowed, rounds=9),
        "n × n matrices, float32": Way(matrices, lambda: error(matrices), rounds=9),
    }
    work = Work(sum(t.nbytes for t in sides), 2 * multiplications * n * n * features, "float64")
    return Case("hsic", name, [sides], ways, work)
