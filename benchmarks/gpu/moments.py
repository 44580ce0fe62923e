"""Second moments beside torch's float32 product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import stitchkern as sk
from benchmarks.bounds import Work
from benchmarks.gpu.case import DEVICE, SMALL, Case, Way, copies
from benchmarks.measure import OURS
from benchmarks.test_moments import float64, plain, product_only, rows

SHAPES: dict[str, tuple[int, ...]] = {
    "(2^20, 256)": (2**20, 256),
    "(2^20, 512)": (2**20, 512),
    "(2^18, 1024)": (2**18, 1024),
    "NCHW 256×256×56×56": (256, 256, 56, 56),
    "NCHW 256×512×7×7": (256, 512, 7, 7),
    "(256, 512), one small batch": (256, 512),
}
#: precision -> arithmetic of its products, how many of them, the error allowed
PRECISIONS = {
    "highest": ("float64", 1, 1e-6 if SMALL else 1e-8),
    "high": ("bfloat16", 3, 1e-4),
    "medium": ("bfloat16", 1, 3e-2),
}


def cases() -> Iterator[Case]:
    for name, shape in SHAPES.items():
        shape = tuple(min(s, 64) for s in shape) if SMALL else shape
        inputs = [torch.randn(*shape, device=DEVICE) + 3 for _ in range(copies(4 * torch.Size(shape).numel()))]
        n, c = rows(inputs[0]).shape
        expected = float64(rows(inputs[0]))

        def error(cov: Tensor, expected: Tensor = expected) -> float:
            return float((cov - expected).abs().max() / expected.diagonal().max())

        ways = {
            "x.T @ x, float32": Way(
                lambda x: product_only(rows(x)), lambda error=error, x=inputs[0]: error(plain(rows(x)))
            )
        }
        for precision, (arithmetic, products, allowed) in PRECISIONS.items():
            m = sk.Moments(c, precision=precision, device=DEVICE)
            once = sk.Moments(c, precision=precision, device=DEVICE)
            ways[OURS if precision == "highest" else f"{OURS}, {precision}"] = Way(
                m.update,
                lambda once=once, x=inputs[0], error=error: error(once.update(x).cov_xx),
                allowed,
                work=Work(inputs[0].nbytes, products * n * c * (c + 1), arithmetic),
            )
        yield Case("moments", f"second moments {name}", inputs, ways, Work(inputs[0].nbytes, n * c * (c + 1)))
