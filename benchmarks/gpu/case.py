"""A case of a GPU benchmark, its ways verified and then timed by CUDA events.

Inputs rotate, so that no run finds its data in the second-level cache. The device is kept busy until the host has
launched what is timed, so that small kernels are not timed by their launches; what waits for the device itself, as an
index does that returns a number, still holds that wait. Where there is no GPU everything runs on the CPU
by its clock, at small sizes, so that the code can be tried.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.bounds import Work
from benchmarks.measure import OURS, WRONG

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: whether sizes are those of a look at whether everything runs
SMALL = DEVICE.type == "cpu"
ROTATE_BYTES, MOST_INPUTS = 512 << 20, 64
#: cycles that the device waits before it starts, about a millisecond: by then the host has launched what is timed
_AHEAD = 2_000_000


@dataclass(frozen=True)
class Way:
    """One way through a case.

    Attributes:
        run: called with one of the case's inputs.
        error: of its answer, computed before it is timed.
        allowed: what the error may be; None: anything is noted. Ours has a bound.
        work: what it takes at least, where that is not what the case says.
        seconds: of each round, where run and inputs do not tell.
    """

    run: Callable[[Any], object]
    error: Callable[[], float]
    allowed: float | None = None
    rounds: int = 20
    work: Work | None = None
    seconds: Callable[[], list[float]] | None = None


@dataclass(frozen=True)
class Case:
    family: str
    name: str
    inputs: Sequence[Any]
    ways: dict[str, Way]
    work: Work | None = None

    def measured(self) -> Iterator[dict[str, Any]]:
        """For each way an entry of a result file. What of ours is wrong is not timed, and said in the entry."""
        for name, way in self.ways.items():
            error = way.error()
            stopped, seconds = None, [math.nan]
            if name.startswith(OURS) and not (way.allowed is not None and error <= way.allowed):
                stopped = f"an error of {error:.1e} is not worth timing"
            else:
                seconds = rotate(way.run, self.inputs, way.rounds) if way.seconds is None else way.seconds()
            work = way.work or self.work
            info = {
                "family": self.family,
                "case": f"{self.name} [small run]" if SMALL else self.name,
                "contender": name,
                "threads": 1,
                "error": error,
                "wrong": not error <= WRONG,
                "stopped": stopped,
                "memory": None if way.seconds or stopped else extra_memory(lambda way=way: way.run(self.inputs[0])),
                **({} if work is None else asdict(work)),
            }
            yield {"extra_info": info, "stats": {"data": seconds}}


def rotate(run: Callable[[Any], object], inputs: Sequence[Any], rounds: int = 20) -> list[float]:
    """Seconds of each round."""
    for given in inputs[:2]:
        run(given)
    rounds = 2 if SMALL else rounds
    return [_seconds(lambda i=i: run(inputs[i % len(inputs)])) for i in range(rounds)]


def least(run: Callable[[], object]) -> float:
    """The fewest seconds of some rounds."""
    return min(rotate(lambda _: run(), [None], 5))


def _seconds(run: Callable[[], object]) -> float:
    if DEVICE.type == "cpu":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(_AHEAD)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def copies(bytes_each: float) -> int:
    """How many inputs of that size go beyond the second-level cache."""
    return 2 if SMALL else int(min(MOST_INPUTS, max(2, ROTATE_BYTES // bytes_each)))


def extra_memory(run: Callable[[], object]) -> int | None:
    """Bytes that a call has allocated at most beside what is there."""
    if DEVICE.type == "cpu":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def farthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest number expected."""
    return float((found.double() - expected).abs().max() / expected.abs().max())
