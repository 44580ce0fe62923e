"""The tables of a benchmark run, as Markdown: `python -m benchmarks.table results.json [README.md]`.

With a second file, each family's table also replaces what stands there between its marker comments.
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
}


def tables(path: Path) -> dict[str, str]:
    """family -> its table."""
    run = json.loads(path.read_text())
    families: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for bench in run["benchmarks"]:
        families[bench["extra_info"]["family"]][bench["group"]].append(bench)
    machine = run["machine_info"]
    threads = run["benchmarks"][0]["extra_info"]["threads"]
    head = (
        f"{machine['cpu'].get('brand_raw', machine['processor'])}, {threads} threads, {run['datetime'][:10]}; medians"
    )
    return {family: f"{head}; {ERRORS[family]}.\n\n{_table(groups)}" for family, groups in families.items()}


def _table(groups: dict[str, list[dict[str, Any]]]) -> str:
    rated = any(bench["extra_info"].get("flop") for group in groups.values() for bench in group)
    lines = [
        f"| case | way | ms |{' GFLOP/s |' if rated else ''} error | stitchkern is |",
        f"|---|---|--:|{'--:|' if rated else ''}--:|--:|",
    ]
    for group in groups.values():
        ours = next(b["stats"]["median"] for b in group if b["extra_info"]["contender"] == OURS)
        for i, bench in enumerate(group):
            info, seconds = bench["extra_info"], bench["stats"]["median"]
            ratio = "" if info["contender"] == OURS else f"{seconds / ours:.2f}×"
            name = f"**{OURS}**" if info["contender"] == OURS else f"`{info['contender']}`"
            rate = f" {info['flop'] / seconds / 1e9:.0f} |" if info.get("flop") else " |" if rated else ""
            case = info["case"] if i == 0 else ""
            lines.append(f"| {case} | {name} | {seconds * 1e3:.1f} |{rate} {info['error']:.0e} | {ratio} |")
    return "\n".join(lines)


def insert(family: str, text: str, path: Path) -> None:
    """Put the table between the two markers of a Markdown file, where it has them."""
    begin, end = f"<!-- benchmark table: {family} -->", f"<!-- end of benchmark table: {family} -->"
    page = path.read_text()
    if begin in page:
        head, rest = page.split(begin)
        path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    for family, made in tables(Path(sys.argv[1])).items():
        print(f"\n## {family}\n\n{made}")
        for target in sys.argv[2:]:
            insert(family, made, Path(target))
