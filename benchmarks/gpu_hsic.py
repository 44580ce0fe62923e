"""Kernel sums on a GPU, beside the n × n matrices of a torch user: `python -m benchmarks.gpu_hsic [OUT.json]`.

Timed with CUDA events; every answer is verified first, on the first 2,048 samples against float64 matrices; medians.
The share is of the multiplications (n²/2 for each feature; four times as many with the gradient) over the float64 rate
of a large matrix product, measured first. Memory is what a call adds to its inputs at most.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.gpu_moments import median_ms, peaks
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


def extra_memory(run: Callable[[], object]) -> float:
    """MiB that a call has allocated at most beside what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def layers(count: int, n: int, p: int, generator: torch.Generator) -> list[Tensor]:
    common = torch.randn(n, p, generator=generator, device="cuda")
    return [common + torch.randn(n, p, generator=generator, device="cuda") * (1 + i / 4) for i in range(count)]


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


def cases(generator: torch.Generator) -> dict[str, tuple]:
    """name -> inputs, our way, torch's way, float64 answer, multiply-adds in n² Σp."""
    width = {p: 2 * p**0.5 for p in (256, 768)}
    few, many, wide = (
        layers(2, 32768, 768, generator),
        layers(48, 2048, 768, generator),
        layers(2, 8192, 256, generator),
    )
    return {
        "RBF CKA, n = 32,768, p = 768": (
            few,
            lambda s: sk.cka(*s, kernel="rbf", bandwidth=width[768]),
            lambda s: rbf_by_matrices(*s, width[768]),
            lambda s: by_reference(s, "rbf", width[768])[0, 1],
            0.5,
        ),
        "RBF CKA, n = 8,192, p = 256": (
            wide,
            lambda s: sk.cka(*s, kernel="rbf", bandwidth=width[256]),
            lambda s: rbf_by_matrices(*s, width[256]),
            lambda s: by_reference(s, "rbf", width[256])[0, 1],
            0.5,
        ),
        "linear CKA of 24 × 24 layers, n = 2,048, p = 768": (
            many,
            lambda s: sk.cka_matrix(s[:24], s[24:], space="samples"),
            lambda s: pairs_by_matrices(s)[:24, 24:],
            lambda s: by_reference(s, "linear", 1)[:24, 24:],
            0.5,
        ),
        "gradient of RBF CKA, n = 8,192, p = 256": (
            wide,
            lambda s: with_gradient(s, width[256]),
            lambda s: matrices_with_gradient(s, width[256]),
            lambda s: matrices_with_gradient([t.double() for t in s], width[256]),
            2.5,
        ),
    }


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    peak = peaks()
    results = []
    for name, (sides, ours, matrices, exact, share_of) in cases(torch.Generator("cuda").manual_seed(0)).items():
        n, features = len(sides[0]), sum(t.shape[1] for t in sides)
        part = [t[:CHECKED] for t in sides]
        wanted = torch.as_tensor(exact(part), device="cuda").double()
        plain = None
        for way, run, tolerance in (("n × n matrices, float32", matrices, 1e-2), ("stitchkern", ours, 1e-8)):
            found = torch.as_tensor(run(part), device="cuda").double()
            error = ((found - wanted).abs().max() / wanted.abs().max()).item()
            assert error < max(tolerance, 1e-5 if "gradient" in name else 0), (name, way, error)
            ms = median_ms(run, [sides], 9)
            memory = extra_memory(lambda run=run, sides=sides: run(sides))
            plain = plain or ms
            bound = 2 * share_of * n * n * features / peak["float64"] * 1e3
            share = bound / ms if way == "stitchkern" else None
            results.append(
                {"case": name, "way": way, "ms": ms, "MiB": memory, "error": error, "share": share, "ratio": plain / ms}
            )
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **peak}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(machine)
    print("| case | way | ms | MiB | error | share of the bound | × n × n matrices |\n|---|---|--:|--:|--:|--:|--:|")
    for r in results:
        share = "" if r["share"] is None else f"{r['share']:.0%}"
        numbers = f"{r['ms']:.2f} | {r['MiB']:.0f} | {r['error']:.0e} | {share} | {r['ratio']:.2f}"
        print(f"| {r['case']} | {r['way']} | {numbers} |")


if __name__ == "__main__":
    main()
