"""Moments on a GPU, timed with CUDA events beside torch's best form: `python -m benchmarks.gpu_moments [OUT.json]`.

Inputs rotate so that no run finds its data in the second-level cache; every answer is verified first; medians. The
bound is the larger of bytes over bandwidth and operations over the peak of a large matrix product, both measured first.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import stitchkern as sk

CASES = {
    "(2^20, 256)": (2**20, 256),
    "(2^20, 512)": (2**20, 512),
    "(2^18, 1024)": (2**18, 1024),
    "NCHW 256×256×56×56": (256, 256, 56, 56),
    "NCHW 256×512×7×7": (256, 512, 7, 7),
}
ROTATE_BYTES = 512 << 20


def median_ms(run: Callable[[torch.Tensor], object], inputs: list[torch.Tensor], rounds: int = 20) -> float:
    for x in inputs[:2]:
        run(x)
    times = []
    for i in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(inputs[i % len(inputs)])
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def peaks() -> dict[str, float]:
    """Bandwidth (bytes/s, read plus written) and matrix rates (flop/s) of this device."""
    big = [torch.randn(2**28, device="cuda") for _ in range(2)]
    found = {"bandwidth": 2 * big[0].nbytes / median_ms(lambda x: x.clone(), big) * 1e3}
    for name, dtype, n in (
        ("float64", torch.float64, 8192),
        ("float32", torch.float32, 8192),
        ("bfloat16", torch.bfloat16, 8192),
    ):
        a = [torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2)]
        found[name] = 2 * n**3 / median_ms(lambda x: x @ x, a, 5) * 1e3
    return found


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    peak = peaks()
    unit = {"float64": ("float64", 1), "highest": ("float64", 1), "high": ("bfloat16", 3), "medium": ("bfloat16", 1)}
    results = []
    for name, shape in CASES.items():
        count = max(2, ROTATE_BYTES // (4 * torch.Size(shape).numel()))
        inputs = [torch.randn(*shape, device="cuda") + 3 for _ in range(min(count, 8))]
        flat = rows(inputs[0]).double()
        mean = flat.mean(0)
        reference = (flat.T @ flat) / len(flat) - torch.outer(mean, mean)
        plain = median_ms(lambda x: (r := rows(x)).T @ r, inputs)
        results.append(
            {"case": name, "way": "torch float32 x.T @ x", "ms": plain, "error": None, "share": None, "ratio": 1.0}
        )
        n, c = flat.shape
        for precision, (kind, products) in unit.items():
            error = sk.Moments(c, precision=precision).update(inputs[0]).cov_xx - reference
            error = (error.abs().max() / reference.diagonal().max()).item()
            assert error < 3e-2, (name, precision, error)
            m = sk.Moments(c, precision=precision, device="cuda")
            ms = median_ms(m.update, inputs)
            bound = max(inputs[0].nbytes / peak["bandwidth"], products * n * c * (c + 1) / peak[kind]) * 1e3
            results.append(
                {"case": name, "way": precision, "ms": ms, "error": error, "share": bound / ms, "ratio": plain / ms}
            )
        del inputs, flat
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **peak}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(machine)
    print("| case | way | ms | error | share of the bound | × torch float32 |\n|---|---|--:|--:|--:|--:|")
    for r in results:
        error = "" if r["error"] is None else f"{r['error']:.0e}"
        share = "" if r["share"] is None else f"{r['share']:.0%}"
        print(f"| {r['case']} | {r['way']} | {r['ms']:.3f} | {error} | {share} | {r['ratio']:.2f} |")


if __name__ == "__main__":
    main()
