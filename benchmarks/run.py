"""A result file read back: the machine, and one measurement for each case and way."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bounds import Work, least_seconds
from benchmarks.measure import OURS


@dataclass(frozen=True)
class Measurement:
    """One way through one case; `info` as `measure` wrote it."""

    family: str
    case: str
    contender: str
    threads: int
    rounds: tuple[float, ...]  # seconds
    info: dict[str, Any]

    @property
    def ours(self) -> bool:
        return self.contender == OURS

    @property
    def stopped(self) -> bool:
        return bool(self.info.get("stopped"))

    @property
    def right(self) -> bool:
        return not self.stopped and not self.info.get("wrong")

    @property
    def seconds(self) -> float:
        return median(self.rounds)

    @property
    def work(self) -> Work | None:
        if not self.info.get("flop"):
            return None
        return Work(self.info.get("bytes", 0.0), self.info["flop"], self.info.get("arithmetic", "float32"))

    @property
    def title(self) -> str:
        beyond = f", beyond {self.info['forward']:.1f} s of forward passes" if "forward" in self.info else ""
        return f"{self.case}{beyond}"


Group = list[Measurement]


@dataclass(frozen=True)
class Run:
    machine: dict[str, Any]
    date: str
    measurements: list[Measurement]

    @classmethod
    def read(cls, path: Path) -> Run:
        content = json.loads(path.read_text())
        measurements = []
        for bench in content["benchmarks"]:
            info = bench["extra_info"]
            seconds = info.get("seconds", bench["stats"]["data"])
            rounds = tuple(seconds) if isinstance(seconds, list) else (seconds,)
            measurements.append(
                Measurement(info["family"], info["case"], info["contender"], info["threads"], rounds, info)
            )
        return cls(content["machine_info"], content["datetime"][:10], measurements)

    @property
    def threads(self) -> int:
        return int(self.machine.get("threads") or max(m.threads for m in self.measurements))

    @property
    def processor(self) -> str:
        cpu = self.machine.get("cpu", {})
        return str(cpu.get("brand_raw") or self.machine.get("processor") or self.machine.get("machine"))

    def families(self) -> dict[str, list[Group]]:
        """Family -> its cases in the order of the run, each with all ways; cases without ours are left out."""
        cases: dict[tuple[str, str], Group] = defaultdict(list)
        for m in self.measurements:
            cases[m.family, m.case].append(m)
        found: dict[str, list[Group]] = defaultdict(list)
        for (family, _), group in cases.items():
            if any(m.ours for m in group):
                found[family].append(group)
        return found

    def share(self, m: Measurement) -> float | None:
        """Share of the bound: the least time for the work on this machine over the time taken."""
        bounds = self.machine.get("bounds", {}).get(str(m.threads))
        if bounds is None or m.work is None or m.stopped:
            return None
        return least_seconds(m.work, bounds) / m.seconds


def ours_of(group: Iterable[Measurement]) -> Measurement:
    return next(m for m in group if m.ours)


def best_other(group: Iterable[Measurement]) -> Measurement | None:
    """The fastest of those that are not ours and right; another road of ours is no alternative."""
    others = (m for m in group if m.right and not m.contender.startswith(OURS))
    return min(others, key=lambda m: m.seconds, default=None)
