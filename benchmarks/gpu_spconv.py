"""The sparse 1×1 convolution on a GPU beside dense products: `python -m benchmarks.gpu_spconv [OUT.json]`.

Timed with CUDA events; inputs rotate so that no run finds its data in the second-level cache; every answer is verified
first; medians. float32 products are IEEE (no TF32). The bound is reading x and writing y once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.gpu_moments import median_ms, peaks
from stitchkern.nn import SparseStitch

CASES = [(32, 256, 256, 28), (256, 256, 256, 28), (64, 1024, 1024, 14)]  # images, p, q, side
ROTATE_BYTES = 256 << 20


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    peak = peaks()
    generator = torch.Generator("cuda").manual_seed(0)
    results = []
    for n, p, q, side in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            size = torch.finfo(dtype).bits // 8
            bound = size * n * side * side * (p + q) / peak["bandwidth"] * 1e3
            count = min(8, max(2, ROTATE_BYTES // (size * n * p * side * side)))
            inputs = [torch.randn(n, p, side, side, generator=generator, device="cuda").to(dtype) for _ in range(count)]
            for zeros in (0.8, 0.9, 0.95):
                weight = torch.randn(q, p, generator=generator, device="cuda")
                weight = (weight * (torch.rand(q, p, generator=generator, device="cuda") >= zeros)).to(dtype)
                stitch = SparseStitch.from_dense(weight, kernel="sparse").requires_grad_(False)
                auto = SparseStitch.from_dense(weight).requires_grad_(False)
                exact = torch.einsum("qp,nphw->nqhw", weight.double(), inputs[0][:2].double())
                for given in (stitch, auto):
                    error = ((given(inputs[0])[:2] - exact).abs().max() / exact.abs().max()).item()
                    assert error < (1e-2 if dtype == torch.bfloat16 else 1e-5), (n, p, q, side, dtype, zeros, error)
                dense = weight[:, :, None, None]
                leaf = stitch.values.requires_grad_()

                def gradients(x: torch.Tensor, stitch=stitch, leaf=leaf) -> object:
                    x = x.detach().requires_grad_()
                    y = stitch(x)
                    return torch.autograd.grad(y, [x, leaf], y.detach())

                ways = {
                    "conv2d": lambda x, w=dense: F.conv2d(x, w),
                    "matmul": lambda x, w=weight: torch.matmul(w, x.flatten(2)),
                    "sparse": torch.no_grad()(stitch),
                    f"auto: {auto.chosen}": torch.no_grad()(auto),
                    "sparse with gradients": gradients,
                }
                for way, run in ways.items():
                    ms = median_ms(run, inputs)
                    case = {"shape": [n, p, side, side, q], "dtype": str(dtype)[6:], "zeros": zeros, "way": way}
                    results.append({**case, "us": 1e3 * ms, "share": bound / ms})
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **peak}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(machine)
    print("| x → q | type | zeros | way | µs | share of the bandwidth |\n|---|---|--:|---|--:|--:|")
    for r in results:
        *x, q = r["shape"]
        print(
            f"| {'×'.join(map(str, x))} → {q} | {r['dtype']} | {r['zeros']:.0%} | {r['way']} | {r['us']:.1f} "
            f"| {r['share']:.0%} |"
        )


if __name__ == "__main__":
    main()
