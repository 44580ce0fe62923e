"""The sparse 1×1 convolution beside dense products, float32 ones without TF32. Bound: x read and y written once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bounds import Work
from benchmarks.gpu.case import DEVICE, SMALL, Case, Way, copies, farthest
from benchmarks.measure import OURS
from stitchkern.nn import SparseStitch

SHAPES = [(32, 256, 256, 28), (256, 256, 256, 28), (64, 1024, 1024, 14)]  # images, p, q, side
ZEROS = (0.8, 0.9, 0.95)
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def cases() -> Iterator[Case]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    for n, p, q, side in SHAPES:
        name = f"{n}×{p}×{side}×{side} → {q}"
        images, p, q, edge = (2, 64, 64, 4) if SMALL else (n, p, q, side)
        for dtype in ALLOWED:
            size = torch.finfo(dtype).bits // 8

            def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
                return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

            inputs = [draw(images, p, edge, edge) for _ in range(copies(size * images * p * edge * edge))]
            work = Work(size * images * edge * edge * (p + q), 1.0)
            for zeros in ZEROS:
                kept = torch.rand(q, p, generator=generator, device=DEVICE) >= zeros
                weight = draw(q, p) * kept
                shape = f"{name}, {zeros:.0%} zeros, {str(dtype)[6:]}"
                yield _forward(f"sparse 1×1 convolution {shape}", weight, inputs, work)
                if dtype == torch.float32 and zeros == 0.9:
                    yield _gradients(f"sparse 1×1 convolution {shape}, with gradients", weight, inputs, work)


def _forward(name: str, weight: Tensor, inputs: list[Tensor], work: Work) -> Case:
    kernel = weight[:, :, None, None]
    few = inputs[0][:2]
    exact = torch.einsum("qp,nphw->nqhw", weight.double(), few.double())
    ways: dict[str, Way] = {}

    def add(way: str, run, allowed: float | None = None) -> None:
        ways[way] = Way(torch.no_grad()(run), torch.no_grad()(lambda: farthest(run(inputs[0])[:2], exact)), allowed)

    allowed = ALLOWED[weight.dtype]
    auto = SparseStitch.from_dense(weight).requires_grad_(False)
    add(OURS, SparseStitch.from_dense(weight, kernel="sparse").requires_grad_(False), allowed)
    add(f"{OURS}, auto", auto, allowed)
    add("conv2d", lambda x: F.conv2d(x, kernel))
    add("matmul", lambda x: torch.matmul(weight, x.flatten(2)).unflatten(2, x.shape[2:]))
    return Case("spconv", name, inputs, ways, work)


def _gradients(name: str, weight: Tensor, inputs: list[Tensor], work: Work) -> Case:
    """Forward, gradients of x and of the weights; a dense weight that training keeps sparse has a dense gradient."""
    stitch = SparseStitch.from_dense(weight, kernel="sparse")
    dense = weight[:, :, None, None].clone().requires_grad_()

    def ours(x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        y = stitch(x)
        return torch.autograd.grad(y, [x, stitch.values], y.detach())

    def conv2d(x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        y = F.conv2d(x, dense)
        return torch.autograd.grad(y, [x, dense], y.detach())

    few = inputs[0][:2].double()
    wide = weight.double()
    y = torch.einsum("qp,nphw->nqhw", wide, few)
    expected = torch.einsum("qp,nqhw->nphw", wide, y)
    ways = {
        name: Way(run, lambda run=run: farthest(run(inputs[0])[0][:2], expected), 1e-5)
        for name, run in ((OURS, ours), ("conv2d", conv2d))
    }
    return Case("spconv", name, inputs, ways, Work(3 * work.bytes, 1.0))
