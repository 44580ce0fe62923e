"""The table of a benchmark run, as Markdown: `python -m benchmarks.table results.json [README.md]`.

With a second file, the table also replaces what stands there between the marker comments.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

OURS = "stitchkern"


def table(path: Path) -> str:
    run = json.loads(path.read_text())
    groups: dict[str, list[dict]] = defaultdict(list)
    for bench in run["benchmarks"]:
        groups[bench["group"]].append(bench)

    machine = run["machine_info"]
    threads = run["benchmarks"][0]["extra_info"]["threads"]
    lines = [
        f"{machine['cpu'].get('brand_raw', machine['processor'])}, {threads} threads, {run['datetime'][:10]}; "
        "median of 7; error: largest of the covariance against float64, relative to the largest variance.",
        "",
        "| case | way | ms | GFLOP/s | error | stitchkern is |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for group in groups.values():
        fastest = next(b["stats"]["median"] for b in group if b["extra_info"]["contender"] == OURS)
        for i, bench in enumerate(group):
            info, seconds = bench["extra_info"], bench["stats"]["median"]
            ratio = "" if info["contender"] == OURS else f"{seconds / fastest:.2f}×"
            name = f"**{OURS}**" if info["contender"] == OURS else f"`{info['contender']}`"
            case, rate = info["case"] if i == 0 else "", info["flop"] / seconds / 1e9
            lines.append(f"| {case} | {name} | {seconds * 1e3:.1f} | {rate:.0f} | {info['error']:.0e} | {ratio} |")
    return "\n".join(lines)


def insert(text: str, path: Path) -> None:
    """Put the table between the two markers of a Markdown file."""
    begin, end = "<!-- benchmark table -->", "<!-- end of benchmark table -->"
    page = path.read_text()
    head, rest = page.split(begin)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    made = table(Path(sys.argv[1]))
    print(made)
    for target in sys.argv[2:]:
        insert(made, Path(target))
