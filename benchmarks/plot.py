"""The picture of a benchmark run: `python -m benchmarks.plot results.json OUT.svg`.

One line per case of the summary: how many times as fast as the fastest other right way ours is, on a logarithmic axis.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.run import Measurement, Run
from benchmarks.table import NOT_IN_SUMMARY, summary
from stitchkern.plotting import LIGHT, Theme, new_figure

LONGEST = 64  # characters of a case


def draw(run: Run, theme: Theme = LIGHT) -> Figure:
    """Cases from top to bottom as in the summary, families apart; dots right of the line at 1 are faster."""
    rows: list[tuple[float, Measurement, float]] = []
    at = 0.0
    for family, groups in run.families().items():
        pairs = [] if family in NOT_IN_SUMMARY else summary(groups)
        for ours, other in pairs:
            rows.append((at, ours, other.seconds / ours.seconds))
            at += 1
        at += 0.6 * bool(pairs)
    if not rows:
        raise ValueError("the run has no case with another way beside ours")
    title = f"Times as fast as the fastest other way ({run.processor}, {run.threads} threads, {run.date})"
    figure, axes = new_figure(theme, 10.5, 0.9 + 0.24 * at, title)
    axes.axvline(1, color=theme.muted, linewidth=1, zorder=1)
    for y, _, ratio in rows:
        colour = theme.accuracy if ratio >= 1 else theme.cka
        axes.plot([1, ratio], [y, y], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot([ratio], [y], "o", color=colour, markersize=6, zorder=3)
        place = {"xytext": (7, 0), "ha": "left"} if ratio >= 1 else {"xytext": (-7, 0), "ha": "right"}
        text = f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.0f}×"
        axes.annotate(text, (ratio, y), textcoords="offset points", va="center", fontsize=8.5, color=theme.ink, **place)
    axes.set_xscale("log")
    low, high = min(ratio for *_, ratio in rows), max(ratio for *_, ratio in rows)
    axes.set_xlim(min(0.6 * low, 0.5), 1.6 * max(high, 2.0))
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 1, 2, 4, 10, 25, 50, 100, 250, 500]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.set_yticks([y for y, *_ in rows], [_shorter(ours.case) for _, ours, _ in rows])
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set_ylim(at, -0.8)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure


def _shorter(title: str) -> str:
    return title if len(title) <= LONGEST else title[: LONGEST - 1].rstrip() + "…"


def main(results: Path, out: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"}):  # the same run, the same bytes
        draw(Run.read(results)).savefig(out, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
