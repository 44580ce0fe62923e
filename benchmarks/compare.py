"""Real change or noise: `python -m benchmarks.compare OLD.json NEW.json`.

For each case of ours the ratio r = new / old time and an interval for it. Three things move a ratio: what was changed,
how much the rounds of a run differ, and how much runs differ. The last is read off the ways that are not ours: nothing
was changed about them, so that the median of their log ratios is how much slower the machine was as a whole, which is
taken out, and the spread of these is the noise between runs. With s² = spread² + the variances of both medians,

    log r − drift ± z s,        z so wide that of all cases together one in twenty runs has a false alarm.

Exit status: 0 where nothing of ours became slower, 1 where something did, 2 where there is nothing to compare, because
machines or threads differ or no case is in both.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median, quantiles

from benchmarks.run import Measurement, Run

#: noise between runs where too few other ways say how large it is, and the least that is believed otherwise
ASSUMED_NOISE, LEAST_NOISE = 0.15, 0.02
ENOUGH = 8  # other ways
FALSE_ALARMS = 0.05
#: standard deviations of a normal distribution between its quartiles, and from its median to half of all distances
IQR, MAD = 1.349, 0.6745
#: standard error of a median over that of a mean
MEDIAN = math.sqrt(math.pi / 2)

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """The interval (low, high) of new / old time, the machine's drift taken out of all three."""

    case: str
    old: float
    new: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "same"


@dataclass(frozen=True)
class Comparison:
    changes: list[Change]
    drift: float  # new / old of what did not change
    noise: float  # standard deviation of log ratios
    others: int  # ways that say so
    remarks: list[str]

    @property
    def status(self) -> int:
        if not self.changes:
            return 2
        return int(any(change.verdict == "slower" for change in self.changes))


def compare(old: Run, new: Run) -> Comparison:
    if differ := machines_differ(old, new):
        return Comparison([], 1.0, ASSUMED_NOISE, 0, [f"not compared: the machines differ in {differ}"])
    remarks = []
    before, after = ({_key(m): m for m in run.measurements if not m.stopped} for run in (old, new))
    shared = [key for key in after if key in before]
    for name, only in (("old", before.keys() - after.keys()), ("new", after.keys() - before.keys())):
        if count := sum(before.get(key, after.get(key)).ours for key in only):  # type: ignore[union-attr]
            remarks.append(f"{count} cases are in the {name} run alone")
    same = [key for key in shared if before[key].threads == after[key].threads]
    remarks += [
        f"not compared: {key[1]} ran with {before[key].threads} and {after[key].threads} threads"
        for key in shared
        if key not in same and after[key].ours
    ]
    pairs = [(before[key], after[key]) for key in same]
    software = [
        f"{name} {old.machine.get(name)} and {new.machine.get(name)}"
        for name in ("torch", "python_version")
        if old.machine.get(name) != new.machine.get(name)
    ]
    if software:
        remarks.append(f"the runs have {', '.join(software)}: the other ways changed too and say nothing of the noise")
    controls = [_log_ratio(pair) for pair in pairs if not pair[0].ours and not software]
    drift, noise = _between_runs(controls)
    mine = [pair for pair in pairs if pair[0].ours]
    z = NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * max(1, len(mine))))
    changes = []
    for pair in mine:
        moved, s = _log_ratio(pair) - drift, math.hypot(noise, *map(_error_of_median, pair))
        ends = [math.exp(v) for v in (moved, moved - z * s, moved + z * s)]
        changes.append(Change(pair[1].case, pair[0].seconds, pair[1].seconds, *ends))
    return Comparison(changes, math.exp(drift), noise, len(controls), remarks)


def machines_differ(old: Run, new: Run) -> str:
    """What they differ in, in words; empty where nothing that a time depends on does."""
    facts = [
        {
            "processor": run.processor,
            "processors": run.machine.get("cpu", {}).get("count"),
            "system": f"{run.machine.get('system')} {run.machine.get('machine')}",
            "threads": run.threads,
        }
        for run in (old, new)
    ]
    return ", ".join(
        f"{name} ({facts[0][name]}, {facts[1][name]})" for name in facts[0] if facts[0][name] != facts[1][name]
    )


def _key(m: Measurement) -> Key:
    return m.family, m.case, m.contender


def _log_ratio(pair: tuple[Measurement, Measurement]) -> float:
    return math.log(pair[1].seconds / pair[0].seconds)


def _between_runs(controls: list[float]) -> tuple[float, float]:
    """Drift and noise, both by medians: of many ways a few may have changed in earnest."""
    if len(controls) < ENOUGH:
        return 0.0, ASSUMED_NOISE
    drift = median(controls)
    return drift, max(LEAST_NOISE, median(abs(c - drift) for c in controls) / MAD)


def _error_of_median(m: Measurement) -> float:
    """Standard error of the logarithm of the median, from the quartiles of the rounds; few rounds say little."""
    if len(m.rounds) < 4:
        return 0.0  # what the noise between runs, of medians too, stands for
    low, _, high = quantiles(m.rounds, method="inclusive")
    return MEDIAN * (high - low) / (IQR * m.seconds * math.sqrt(len(m.rounds)))


def text(found: Comparison) -> str:
    lines = list(found.remarks)
    if found.changes:
        source = f"from {found.others} ways that are not ours" if found.others >= ENOUGH else "assumed"
        lines += [
            f"machine: {found.drift:.3f}× the old time, taken out below; "
            f"noise between runs: ± {found.noise:.1%} ({source})",
            "",
            f"{'old ms':>10} {'new ms':>10} {'ratio':>7}  {'interval':<15} {'':<7} case",
        ]
        for c in sorted(found.changes, key=lambda c: -c.ratio):
            interval = f"{c.low:.3f} … {c.high:.3f}"
            lines.append(
                f"{c.old * 1e3:10.2f} {c.new * 1e3:10.2f} {c.ratio:7.3f}  {interval:<15} {c.verdict:<7} {c.case}"
            )
        counts = {v: sum(c.verdict == v for c in found.changes) for v in ("faster", "slower", "same")}
        lines += ["", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())]
    elif not found.remarks:
        lines.append("nothing to compare: no case is in both runs")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Real change or noise.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    paths = parser.parse_args(arguments)
    found = compare(Run.read(paths.old), Run.read(paths.new))
    print(text(found))
    return found.status


if __name__ == "__main__":
    sys.exit(main())
