"""The tables of a benchmark run, as Markdown: `python -m benchmarks.table results.json [FILE.md …]`.

Each table also replaces what stands between its marker comments in the files named: one of each family, and a summary
with one row per case, ours beside the fastest other way.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.measure import OURS

ERRORS = {
    "moments": "error: largest of the covariance against float64, relative to the largest variance",
    "lsq": "error: against float64 from the data, relative",
    "spconv": "GFLOP/s: of the non-zeros alone; error: largest of the result (with gradients: of those of the weights) "
    "against float64, relative to the largest value",
    "lasso": "error: largest violation of optimality over all α and targets, relative to the largest covariance",
    "similarity": "error: largest difference to float64; MiB: most memory at once beyond what was there before",
    "hsic": "error: of CKA against float64 distances from differences, over the first 2,048 samples",
    "task": "time of one step; error: of the weights to those of the plain way, relative to how far they moved",
}
Groups = dict[str, list[dict[str, Any]]]


def tables(path: Path) -> dict[str, str]:
    """Name of a marker -> the table that belongs there."""
    run = json.loads(path.read_text())
    families: dict[str, Groups] = defaultdict(lambda: defaultdict(list))
    for bench in run["benchmarks"]:
        families[bench["extra_info"]["family"]][bench["group"]].append(bench)
    machine = run["machine_info"]
    threads = run["benchmarks"][0]["extra_info"]["threads"]
    head = (
        f"{machine['cpu'].get('brand_raw', machine['processor'])}, {threads} threads, {run['datetime'][:10]}; medians"
    )
    made = {family: f"{head}; {ERRORS[family]}.\n\n{_table(groups)}" for family, groups in families.items()}
    return {"summary": f"{head}.\n\n{_summary(families)}", **made}


def _table(groups: Groups) -> str:
    rated = any(bench["extra_info"].get("flop") for group in groups.values() for bench in group)
    weighed = any(bench["extra_info"].get("memory") for group in groups.values() for bench in group)
    extra = [name for name, there in (("GFLOP/s", rated), ("MiB", weighed)) if there]
    lines = [
        "| " + " | ".join(["case", "way", "ms", *extra, "error", "stitchkern is"]) + " |",
        "|---|---|--:|" + "--:|" * len(extra) + "--:|--:|",
    ]
    for group in groups.values():
        ours = _seconds(_ours(group))
        for i, bench in enumerate(group):
            info, seconds = bench["extra_info"], _seconds(bench)
            cells = [_case(group) if i == 0 else ""]
            cells += [f"**{OURS}**" if info["contender"] == OURS else f"`{info['contender']}`"]
            cells += ["" if info.get("stopped") else f"{seconds * 1e3:.1f}"]
            if rated:
                cells += [f"{info['flop'] / seconds / 1e9:.0f}" if info.get("flop") else ""]
            if weighed:
                cells += ["" if info.get("memory") is None else f"{info['memory'] / 2**20:.0f}"]
            cells += ["stops" if info.get("stopped") else f"{info['error']:.0e}"]
            ratio = "" if info["contender"] == OURS or info.get("stopped") else f"{seconds / ours:.2f}×"
            lines.append("| " + " | ".join([*cells, f"({ratio})" if ratio and info.get("wrong") else ratio]) + " |")
    return "\n".join(lines)


def _summary(families: dict[str, Groups]) -> str:
    lines = [
        "| case | ms | error | fastest other way | ms | error | stitchkern is |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for groups in families.values():
        for group in groups.values():
            if any(bench["extra_info"].get("accuracy") for bench in group):
                continue  # these are about the error; their times are in the family's table
            ours, other = _ours(group), _fastest_right(group)
            if other is None:
                continue
            cells = [f"{_seconds(b) * 1e3:.1f} | {b['extra_info']['error']:.0e}" for b in (ours, other)]
            way = f"`{other['extra_info']['contender']}`"
            ratio = f"{_seconds(other) / _seconds(ours):.2f}×"
            lines.append(f"| {_case(group)} | {cells[0]} | {way} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def _ours(group: list[dict[str, Any]]) -> dict[str, Any]:
    return next(b for b in group if b["extra_info"]["contender"] == OURS)


def _fastest_right(group: list[dict[str, Any]]) -> dict[str, Any] | None:
    others = (b for b in group if b is not _ours(group) and not b["extra_info"].get("wrong"))
    return min(others, key=_seconds, default=None)


def _seconds(bench: dict[str, Any]) -> float:
    """The median, of the time itself or of the part of it that the benchmark is about."""
    return float(bench["extra_info"].get("seconds", bench["stats"]["median"]))


def _case(group: list[dict[str, Any]]) -> str:
    info = _ours(group)["extra_info"]
    beyond = f", beyond {info['forward']:.1f} s of forward passes" if "forward" in info else ""
    return f"{info['case']}{beyond}"


def insert(name: str, text: str, path: Path) -> None:
    """Put the table between the two markers of a Markdown file, where it has them."""
    begin, end = f"<!-- benchmark table: {name} -->", f"<!-- end of benchmark table: {name} -->"
    page = path.read_text()
    if begin in page:
        head, rest = page.split(begin)
        path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    for name, made in tables(Path(sys.argv[1])).items():
        print(f"\n## {name}\n\n{made}")
        for target in sys.argv[2:]:
            insert(name, made, Path(target))
