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

OURS = "stitchkern"
ERRORS = {
    "moments": "error: largest of the covariance against float64, relative to the largest variance",
    "lsq": "error: against float64 from the data, relative",
    "hsic": "error: of CKA against float64 distances from differences, over the first 2,048 samples",
    "pairs": "error: against sorted float64 distances, over the first 512 samples",
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
    lines = [
        f"| case | way | ms |{' GFLOP/s |' if rated else ''} error | stitchkern is |",
        f"|---|---|--:|{'--:|' if rated else ''}--:|--:|",
    ]
    for group in groups.values():
        ours = _median(_ours(group))
        for i, bench in enumerate(group):
            info, seconds = bench["extra_info"], _median(bench)
            ratio = "" if info["contender"] == OURS else f"{seconds / ours:.2f}×"
            name = f"**{OURS}**" if info["contender"] == OURS else f"`{info['contender']}`"
            rate = f" {info['flop'] / seconds / 1e9:.0f} |" if info.get("flop") else " |" if rated else ""
            case = info["case"] if i == 0 else ""
            lines.append(f"| {case} | {name} | {seconds * 1e3:.1f} |{rate} {info['error']:.0e} | {ratio} |")
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
            ours, other = _ours(group), min((b for b in group if b is not _ours(group)), key=_median)
            cells = [f"{_median(b) * 1e3:.1f} | {b['extra_info']['error']:.0e}" for b in (ours, other)]
            way = f"`{other['extra_info']['contender']}`"
            ratio = f"{_median(other) / _median(ours):.2f}×"
            lines.append(f"| {ours['extra_info']['case']} | {cells[0]} | {way} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def _ours(group: list[dict[str, Any]]) -> dict[str, Any]:
    return next(b for b in group if b["extra_info"]["contender"] == OURS)


def _median(bench: dict[str, Any]) -> float:
    return float(bench["stats"]["median"])


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
