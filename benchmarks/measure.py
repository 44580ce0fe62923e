"""What all benchmarks share: one measurement, its peak memory, and what a result file keeps of it."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bounds import Work

OURS = "stitchkern"
#: for a look at whether everything runs: no number of such a run means anything
SMALL = bool(os.environ.get("STITCHKERN_BENCH_SMALL"))
#: seconds that short runs are repeated for, as a moment of few rounds may be a bad one; the most rounds made
ENOUGH, MOST_ROUNDS = 0.2, 50
#: an error above this makes an answer wrong; generous, so that more of the others count
WRONG = 1e-2


def measure(
    benchmark: Any,
    run: Callable,
    check: Callable[[], float],
    *,
    family: str,
    case: str,
    contender: str,
    rounds: int = 1,
    warmup: int = 0,
    setup: Callable[[], tuple] = tuple,
    error: Callable[[Any], float] | None = None,
    allowed: float = 1e-6,
    wrong: float = WRONG,
    work: Work | None = None,
    clock: Callable[[], list[float]] | None = None,
    **more: Any,
) -> None:
    """Time run(*setup()) after check() has said how large the error of its answers is.

    ``rounds`` are made at least; of what has a ``warmup`` and is short, more.

    ``error``, of the answer that was timed, takes the place of check()'s in the table, for those whose full problem is
    too long to be done twice. Ours must not err by more than ``allowed``; of others an error above ``wrong`` is marked,
    and whoever stops with an exception is kept with that as its answer. ``work`` is what the case takes at least, of
    which the table makes rates and the share of the bound. ``clock`` gives the seconds of each round where they are not
    those of the whole run. ``more`` goes to the result file: ``accuracy`` marks cases that are there for their errors.
    """
    try:
        found, stopped = check(), None
    except Exception as e:
        if contender == OURS:
            raise
        found, stopped = math.nan, f"{type(e).__name__}: {e}"[:200]
    assert contender != OURS or found < allowed, f"a wrong answer is not worth timing: {found}"
    case = f"{case} [small run]" if SMALL else case
    benchmark.group = case
    if warmup and not stopped:
        rounds = max(rounds, min(MOST_ROUNDS, int(ENOUGH / _seconds(run, setup))))
    before = resident()
    rounds = 1 if SMALL or stopped else rounds
    answer = benchmark.pedantic(
        run if stopped is None else lambda *_: None, setup=lambda: (setup(), {}), rounds=rounds, warmup_rounds=warmup
    )
    memory = None if before is None or stopped else max(peak() - before, 0)
    if error is not None and not stopped:
        found = error(answer)
        assert contender != OURS or found < allowed, f"a wrong answer is not worth its time: {found}"
    benchmark.extra_info.update(
        family=family,
        case=case,
        contender=contender,
        error=found,
        wrong=not found <= wrong,
        stopped=stopped,
        memory=memory,
        threads=torch.get_num_threads(),
        **({} if work is None else asdict(work)),
        **({} if clock is None or stopped else {"seconds": clock()}),
        **more,
    )


def _seconds(run: Callable, setup: Callable[[], tuple]) -> float:
    arguments = setup()
    begin = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - begin


def resident() -> int | None:
    """Bytes in memory now, free ones given back first; from here on `peak` counts. None where the system won't say."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def peak() -> int:
    """The most bytes that were in memory at once since `resident`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
