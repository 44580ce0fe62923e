"""What the machine can do at best, measured by the run itself, and the least time that a piece of work takes there.

Bandwidth by torch's own passes over arrays far larger than the caches; arithmetic by the largest product that the BLAS
under torch makes, which comes closer to the hardware's rate than anything else at hand (about 90 % of two fused
multiply-adds per cycle on x86). Both are what somebody attains and not what a data sheet says, so that a share of the
bound close to 1 means: as fast as the machine's best code. The share may exceed 1 where the data stay in a cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROUNDS = 5
#: bfloat16 products are a GPU's, where the sums are float32
ARITHMETIC = ("float32", "float64", "bfloat16")


@dataclass(frozen=True)
class Work:
    """What any way must do for the answer: bytes read and written once, operations, and the type of the latter."""

    bytes: float
    flop: float
    arithmetic: str = "float32"

    def __post_init__(self) -> None:
        if self.arithmetic not in ARITHMETIC:
            raise ValueError(f"arithmetic must be one of {', '.join(ARITHMETIC)}; got {self.arithmetic!r}")


def least_seconds(work: Work, bounds: Mapping[str, float]) -> float:
    """max(bytes / bandwidth, operations / peak)."""
    bandwidth = max(bounds[name] for name in ("read", "write", "copy", "add"))
    return max(work.bytes / bandwidth, work.flop / bounds[work.arithmetic])


def measure_bounds(
    elements: int = 2**26,
    side: int = 2304,
    *,
    arithmetic: Sequence[str] = ("float32", "float64"),
    device: str | torch.device = "cpu",
    least: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, float]:
    """Bytes per second of four passes over `elements` floats, operations per second of side × side products.

    ``least`` gives the seconds of a call at best; None: by the clock of the CPU.
    """
    least = least or _least
    x, y = torch.ones(2, elements, device=device)
    passes: dict[str, tuple[Callable[[], object], int]] = {
        "read": (lambda: torch.dot(x, y), 2),
        "write": (lambda: x.fill_(1.0), 1),
        "copy": (lambda: x.copy_(y), 2),
        "add": (lambda: torch.add(x, y, out=x), 3),
    }
    found = {name: arrays * 4 * elements / least(run) for name, (run, arrays) in passes.items()}
    for name in arithmetic:
        # no zeros, on which some chips are faster
        a, b, out = torch.randn(3, side, side, device=device).to(getattr(torch, name))
        found[name] = 2 * side**3 / least(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    return found


def bounds_by_threads(**sizes: int) -> dict[str, dict[str, float]]:
    """The bounds of one thread, and of as many as torch uses; the keys are text, as in a result file.

    Each in a process of its own: `torch.set_num_threads` leaves MKL in another mode than it was in, in which what
    follows may take another time, and `torch.linalg.solve` of batches stops with an error.
    """
    found = {}
    for threads in sorted({1, torch.get_num_threads()}):
        count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        answer = subprocess.run(
            [sys.executable, "-m", "benchmarks.bounds", json.dumps(sizes)],
            env={**os.environ, **count},
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[str(threads)] = json.loads(answer.stdout)
    return found


def _least(run: Callable[[], object]) -> float:
    """The best time: a bound is what is possible."""
    run()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(measure_bounds(**json.loads(sys.argv[1]))))
