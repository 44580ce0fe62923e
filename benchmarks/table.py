"""The tables of a benchmark run, as Markdown: `python -m benchmarks.table results.json [FILE.md …]`.

Each table also replaces what stands between its marker comments in the files named: one of each family, and a summary
with one row per case, ours beside the fastest other way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import OURS
from benchmarks.run import Group, Measurement, Run, best_other, ours_of

ERRORS = {
    "moments": "error: largest of the covariance against float64, relative to the largest variance",
    "lsq": "error: against float64 from the data, relative",
    "spconv": "GFLOP/s: of the non-zeros alone; error: largest of the result (with gradients: of those of the weights) "
    "against float64, relative to the largest value",
    "lasso": "error: largest violation of optimality over all α and targets, relative to the largest covariance",
    "ridge": "error: largest of a target's coefficients, relative to their norm, at the penalty that was chosen",
    "similarity": "error: largest difference to float64",
    "hsic": "error: of CKA against float64 distances from differences, over the first 2,048 samples",
    "task": "time of one step, error: of the weights to those of the plain way, relative to how far they moved; or "
    "time of a study, error: of its relative accuracies to the plain way's",
    "scaling": "errors as in the tables of the families",
}
NOT_IN_SUMMARY = ("scaling",)


def tables(run: Run) -> dict[str, str]:
    """Name of a marker -> the table that belongs there."""
    families = run.families()
    head = f"{run.processor}, {run.threads} threads, {run.date}; medians"
    made = {family: f"{head}; {ERRORS[family]}.\n\n{family_table(run, groups)}" for family, groups in families.items()}
    summary = [g for family, groups in families.items() if family not in NOT_IN_SUMMARY for g in groups]
    return {"machine": machine(run), "summary": f"{head}.\n\n{summary_table(run, summary)}", **made}


def machine(run: Run) -> str:
    """What the bounds of this run were measured to be."""
    m = run.machine
    if not m.get("bounds"):
        return f"{run.processor}, {run.date}."
    software = f"torch {m['torch']} ({m['vectors']}, {m['blas'].upper()}), Python {m['python_version']}"
    lines = [
        f"{run.processor}, {software}, {run.date}.",
        "",
        "| threads | read GB/s | write | copy | add | float32 GFLOP/s | float64 |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for threads, bounds in m["bounds"].items():
        names = ("read", "write", "copy", "add", "float32", "float64")
        lines.append(f"| {threads} | " + " | ".join(f"{bounds[name] / 1e9:.1f}" for name in names) + " |")
    return "\n".join(lines)


def family_table(run: Run, groups: list[Group]) -> str:
    """A row for each way; columns that no case fills are left out."""
    columns: dict[str, Callable[[Measurement], str]] = {
        "GB/s": lambda m: f"{m.work.bytes / m.seconds / 1e9:.2g}" if m.work and m.work.bytes and not m.stopped else "",
        "GFLOP/s": lambda m: f"{m.work.flop / m.seconds / 1e9:.3g}" if m.work and not m.stopped else "",
        "share of the bound": lambda m: _percent(run.share(m)),
        "MiB": lambda m: "" if m.info.get("memory") is None else f"{m.info['memory'] / 2**20:.0f}",
    }
    columns = {name: cell for name, cell in columns.items() if any(cell(m) for group in groups for m in group)}
    lines = [
        "| " + " | ".join(["case", "way", "time", *columns, "error", "× best other"]) + " |",
        "|---|---|--:|" + "--:|" * len(columns) + "--:|--:|",
    ]
    for group in groups:
        best = best_other(group)
        for i, m in enumerate(group):
            cells = [m.title if i == 0 else "", f"**{OURS}**" if m.ours else f"`{m.contender}`"]
            cells += ["" if m.stopped else time(m.seconds), *(cell(m) for cell in columns.values())]
            cells += ["stops" if m.stopped else f"{m.info['error']:.0e}"]
            ratio = "" if best is None or m.stopped else f"{best.seconds / m.seconds:.2f}×"
            cells += [ratio if m.right or not ratio else f"({ratio})"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_table(run: Run, groups: list[Group]) -> str:
    lines = [
        "| case | time | share of the bound | error | fastest other way | time | error | stitchkern is |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for ours, other in summary(groups):
        cells = [ours.title, time(ours.seconds), _percent(run.share(ours)), f"{ours.info['error']:.0e}"]
        cells += [f"`{other.contender}`", time(other.seconds), f"{other.info['error']:.0e}"]
        lines.append("| " + " | ".join([*cells, f"{other.seconds / ours.seconds:.2f}×"]) + " |")
    return "\n".join(lines)


def summary(groups: list[Group]) -> list[tuple[Measurement, Measurement]]:
    """Ours and the fastest other right way of each case; not of those that are about errors."""
    pairs = ((ours_of(group), best_other(group)) for group in groups if not any(m.info.get("accuracy") for m in group))
    return [(ours, other) for ours, other in pairs if other is not None and not ours.stopped]


def time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            number = seconds / size
            return f"{number:.{max(0, 2 - (number >= 9.995) - (number >= 99.95))}f} {unit}"
    raise AssertionError("unreachable")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def insert(name: str, text: str, path: Path) -> None:
    """Put the table between the two markers of a Markdown file, where it has them."""
    begin, end = f"<!-- benchmark table: {name} -->", f"<!-- end of benchmark table: {name} -->"
    page = path.read_text()
    if begin in page:
        head, rest = page.split(begin)
        path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    for name, made in tables(Run.read(Path(sys.argv[1]))).items():
        print(f"\n## {name}\n\n{made}")
        for target in sys.argv[2:]:
            insert(name, made, Path(target))
