"""A case of a GPU benchmark, its ways verified and then timed by CUDA events.

Inputs rotate, so that no run finds its data in the second-level cache. Where there is no GPU everything runs on the CPU
by its clock, at small sizes, so that the code can be tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.bounds import Work
from benchmarks.measure import OURS, WRONG

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: whether sizes are those of a look at whether everything runs
SMALL = DEVICE.type == "cpu"
ROTATE_BYTES, MOST_INPUTS = 512 << 20, 8


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
    more: dict[str, Any] = field(default_factory=dict)

    def measured(self) -> Iterator[dict[str, Any]]:
        """For each way an entry of a result file. AssertionError: ours is wrong."""
        for name, way in self.ways.items():
            error = way.error()
            if name.startswith(OURS):
                assert way.allowed is not None and error <= way.allowed, (self.name, name, error)
            seconds = rotate(way.run, self.inputs, way.rounds) if way.seconds is None else way.seconds()
            work = way.work or self.work
            info = {
                "family": self.family,
                "case": f"{self.name} [small run]" if SMALL else self.name,
                "contender": name,
                "threads": 1,
                "error": error,
                "wrong": not error <= WRONG,
                "stopped": None,
                "memory": None if way.seconds else extra_memory(lambda way=way: way.run(self.inputs[0])),
                **({} if work is None else asdict(work)),
                **self.more,
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
