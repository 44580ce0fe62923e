"""Batched least squares on a GPU, beside torch's batched forms: `python -m benchmarks.gpu_lsq [OUT.json]`.

Timed with CUDA events; inputs rotate so that no run finds its data in the second-level cache; every answer is verified
first; medians. torch's Cholesky form gives the solution and what is explained, nothing else; `lstsq` gets the
covariances, as it would have to. The share is of the larger of bytes over bandwidth and operations over the float64
rate of a large matrix product, both measured first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.gpu_moments import median_ms, peaks
from stitchkern import ops, reference

CASES = [(256, 16, 16), (256, 32, 32), (256, 64, 64), (1024, 64, 64), (256, 128, 128)]  # problems, p, q
PROBES = 8
ROTATE_BYTES = 256 << 20


def cholesky_form(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    c, s = inputs[:2]
    factor, _ = torch.linalg.cholesky_ex(c)
    z = torch.linalg.solve_triangular(factor, s, upper=False)
    return torch.linalg.solve_triangular(factor.mT, z, upper=True), z.square().sum((1, 2))


def main() -> None:
    peak = peaks()
    generator = torch.Generator("cuda").manual_seed(0)
    results = []
    for count, p, q in CASES:
        bytes_each = 8 * count * p * (p + 2 * q)
        inputs = []
        for _ in range(min(8, max(2, ROTATE_BYTES // bytes_each))):
            x, y = (
                torch.randn(count, 2 * p + 9, c, generator=generator, device="cuda", dtype=torch.float64)
                for c in (p, q)
            )
            probes = torch.randint(0, 2, (p, PROBES), generator=generator, device="cuda").double() * 2 - 1
            ridge = torch.zeros(count, device="cuda", dtype=torch.float64)
            inputs.append((x.mT @ x / len(x[0]), x.mT @ y / len(x[0]), x.mean(1), ridge, probes))

        solution, sums, score = ops.lsq_solve(*inputs[0])
        two = *(t[:2].cpu() for t in inputs[0][:4]), inputs[0][4].cpu()
        wanted, wanted_sums, wanted_score = reference.lsq_solve(*two)
        torch.testing.assert_close(sums[:2].cpu(), wanted_sums, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(solution[:2].cpu(), wanted, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(score[:2].cpu(), wanted_score, rtol=1e-8, atol=0)
        other, explained = cholesky_form(inputs[0])
        error = ((solution - other).abs().max() / other.abs().max()).item()
        assert error < 1e-8, (count, p, q, error)
        torch.testing.assert_close(score[:, 0], explained, rtol=1e-8, atol=0)

        ways = {
            "torch Cholesky": (cholesky_form, 10),
            "torch lstsq": (lambda t: torch.linalg.lstsq(t[0], t[1]).solution, 3),
            "lsq_solve": (lambda t: ops.lsq_solve(*t), 30),
        }
        multiplies = count * (p**3 / 6 + p * p * (q + PROBES))
        bound = max(bytes_each / peak["bandwidth"], 2 * multiplies / peak["float64"]) * 1e3
        plain = None
        for way, (run, rounds) in ways.items():
            ms = median_ms(run, inputs, rounds)
            plain = plain or ms
            results.append(
                {
                    "problems": count,
                    "p": p,
                    "q": q,
                    "way": way,
                    "us": 1e3 * ms,
                    "share": bound / ms,
                    "ratio": plain / ms,
                }
            )
        del inputs
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **peak}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(machine)
    print("| problems | p | q | way | µs | share of the bound | × torch Cholesky |\n|--:|--:|--:|---|--:|--:|--:|")
    for r in results:
        size = f"| {r['problems']} | {r['p']} | {r['q']} "
        print(f"{size}| {r['way']} | {r['us']:.1f} | {r['share']:.0%} | {r['ratio']:.2f} |")


if __name__ == "__main__":
    main()
