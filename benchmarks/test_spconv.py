"""Sparse 1×1 convolution beside torch's dense and sparse products, answers verified before they are timed.

One layer of a stitch, float32, at several parts of zeros; forward alone, and forward with all gradients. `SparseStitch`
is timed as users call it, with its own choice of kernel. torch's CSR product needs (p, positions): once it gets that by
copies, as it would have to, and once as if x lay so already. No bias in the forward cases: it costs matmul and CSR a
second pass over y and the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bounds import Work
from benchmarks.measure import OURS, measure
from stitchkern.nn import SparseStitch

CASES = {"NCHW 32×256×28×28": (32, 256, 256, 28, 28), "NCHW 32×512×14×14": (32, 512, 512, 14, 14)}
ZEROS = (0.8, 0.9, 0.95)


def problem(case: str, zeros: float) -> tuple[Tensor, Tensor, Tensor]:
    """x, M and b."""
    n, p, q, h, w = CASES[case]
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(q, p, generator=g) * (torch.rand(q, p, generator=g) >= zeros)
    return torch.randn(n, p, h, w, generator=g), weight, torch.randn(q, generator=g)


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(weight, x.flatten(2)).unflatten(2, x.shape[2:])


def csr(x: Tensor, weight: Tensor) -> Tensor:
    n, p, h, w = x.shape
    y = weight @ x.transpose(0, 1).reshape(p, -1)
    return y.view(-1, n, h, w).transpose(0, 1).contiguous()


def contenders(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    stitch, sparse = SparseStitch.from_dense(weight), weight.to_sparse_csr()
    last, moved = x.to(memory_format=torch.channels_last), x.transpose(0, 1).reshape(x.shape[1], -1).contiguous()
    n, _, h, w = x.shape
    return {
        OURS: lambda: stitch(x),
        "conv2d": lambda: F.conv2d(x, weight[:, :, None, None]),
        "conv2d, channels_last": lambda: F.conv2d(last, weight[:, :, None, None]),
        "matmul": lambda: matmul(x, weight),
        "CSR, x and y copied": lambda: csr(x, sparse),
        "CSR, x as it wants it": lambda: (sparse @ moved).view(-1, n, h, w).transpose(0, 1),
    }


NAMES = (OURS, "conv2d", "conv2d, channels_last", "matmul", "CSR, x and y copied", "CSR, x as it wants it")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("contender", NAMES)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("case", CASES)
def test_forward(case, zeros, contender, benchmark):
    x, weight, _ = problem(case, zeros)
    exact = matmul(x[:2].double(), weight.double())
    run = contenders(x, weight)[contender]
    nonzeros = int((weight != 0).sum())
    positions = x.numel() // x.shape[1]
    with torch.no_grad():
        measure(
            benchmark,
            run,
            lambda: ((run()[:2] - exact).abs().max() / exact.abs().max()).item(),
            family="spconv",
            case=f"{case} → {len(weight)}, {zeros:.0%} zeros",
            contender=contender,
            rounds=25,
            warmup=5,
            allowed=1e-5,
            work=Work(4 * positions * sum(weight.shape) + 8 * nonzeros, 2 * nonzeros * positions),
        )


def with_gradients(module: Callable[[Tensor], Tensor], leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Of x, of the weights, of the bias."""
    return list(torch.autograd.grad(module(leaves[0]), leaves, grad))


@pytest.mark.parametrize("contender", [OURS, "conv2d", "matmul"])
@pytest.mark.parametrize("zeros", ZEROS)
def test_forward_and_gradients(zeros, contender, benchmark):
    case = "NCHW 32×256×28×28"
    x, weight, bias = problem(case, zeros)
    stitch = SparseStitch.from_dense(weight, bias)
    grad = torch.randn(x.shape[0], len(weight), *x.shape[2:], generator=torch.Generator().manual_seed(1))
    x, w, b = (t.requires_grad_() for t in (x, weight.clone(), bias))
    module, parameters = {
        OURS: (stitch, [stitch.values, stitch.bias]),
        "conv2d": (lambda x: F.conv2d(x, w[:, :, None, None], b), [w, b]),
        "matmul": (lambda x: matmul(x, w).add_(b[:, None, None]), [w, b]),
    }[contender]

    def run() -> list[Tensor]:
        return with_gradients(module, [x, *parameters], grad)

    exact = torch.einsum("nqs,nps->qp", grad.double().flatten(2), x.detach().double().flatten(2))
    exact = exact[stitch.row.long(), stitch.col.long()]
    found = run()[1]
    found = found if contender == OURS else found[stitch.row.long(), stitch.col.long()]
    positions = x.numel() // x.shape[1]
    measure(
        benchmark,
        run,
        lambda: ((found - exact).abs().max() / exact.abs().max()).item(),
        family="spconv",
        case=f"{case} → 256 with gradients, {zeros:.0%} zeros",
        contender=contender,
        rounds=15,
        warmup=3,
        allowed=1e-4,
        # x, y, and the gradients of both
        work=Work(8 * positions * sum(weight.shape) + 16 * stitch.nonzeros, 6 * stitch.nonzeros * positions),
    )
