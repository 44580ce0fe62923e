"""The pictures of studies: lines in panels, matrices; for light and dark surfaces."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stitchkern import plotting
from stitchkern.plotting import LIGHT, Theme, label, write_title
from stitchkern.studies.study.result import Curves, Line, Matrix

_MARKERS = "osD^vPX*"
_MORE = 3  # panels beside one another


def curves(data: Curves, theme: Theme = LIGHT, *, title: str = "") -> Figure:
    """One panel after another on common axes; what the paper states is dashed, with hollow marks."""
    names = list(dict.fromkeys(line.name for panel in data.panels for line in panel.lines))
    own = [name for name in names if not _is_paper(data, name)]
    count = len(data.panels)
    columns = min(count, _MORE)
    rows = -(-count // columns)
    wide, high = (7.2, 3.2) if count == 1 else (3.3, 2.3)
    legend_rows = -(-len(names) // 3)
    left, right, between, below = 0.75, 0.25, 0.3, 0.6 + 0.45 * _tilted(data)
    above = 0.34 if any(panel.title for panel in data.panels) else 0.12
    top = 0.2 + 0.26 * legend_rows + 0.45 * bool(title)
    width, height = left + columns * wide + (columns - 1) * between + right, top + rows * (above + high) + below
    figure = Figure(figsize=(width, height), facecolor=theme.surface)
    grid = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, subplot_kw={"facecolor": "none"},
        gridspec_kw={
            "left": left / width, "right": 1 - right / width, "wspace": between / wide,
            "top": 1 - (top + above) / height, "bottom": below / height, "hspace": (above + 0.12) / high,
        },
    )  # fmt: skip
    if title:
        write_title(figure, theme, title, y=1 - 0.14 / height)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for i, (axes, panel) in enumerate(zip(grid.flat, data.panels, strict=False)):
        for line in panel.lines:
            _draw(axes, line, *_look(line, own, theme), theme)
        _dress(axes, data, theme, last=i + columns >= count)
        axes.set_title(label(panel.title), loc="left", fontsize=10.5, color=theme.ink, pad=6)
    figure.supxlabel(data.x, fontsize=10, color=theme.muted, x=left / width, ha="left", y=0.08 / height)
    grid[0, 0].set_ylabel(data.y, fontsize=10, color=theme.muted)
    lines = {line.name: line for panel in data.panels for line in panel.lines}
    handles = [Line2D([], [], **_style(line, *_look(line, own, theme), theme)) for line in lines.values()]
    figure.legend(
        handles, [label(name) for name in lines], loc="upper left", ncols=3, frameon=False, fontsize=9.5,
        bbox_to_anchor=(0.02, 1 - (0.1 + 0.45 * bool(title)) / height), labelcolor=theme.ink, borderaxespad=0,
        borderpad=0.2,
    )  # fmt: skip
    return figure


def matrix(data: Matrix, theme: Theme = LIGHT, *, title: str = "") -> Figure:
    return plotting.heat_map(
        data.values, data.rows, data.columns, measure=data.measure, names=(data.row_label, data.column_label),
        title=title, theme=theme,
    )  # fmt: skip


def _is_paper(data: Curves, name: str) -> bool:
    return any(line.of_paper for panel in data.panels for line in panel.lines if line.name == name)


def _look(line: Line, own: list[str], theme: Theme) -> tuple[str, str]:
    """(colour, marker) of a line: the same in every panel, and of what the paper says those of ours beside it."""
    name = line.like if line.like in own else line.name
    at = own.index(name) if name in own else len(own)
    colours = (theme.accuracy, theme.cka, theme.procrustes, theme.r2, theme.ink)
    return colours[at % len(colours)], _MARKERS[at % len(_MARKERS)]


def _style(line: Line, colour: str, marker: str, theme: Theme) -> dict[str, Any]:
    many = len(line.x) > 12
    return {
        "color": colour,
        "linewidth": 1.2 if line.of_paper else 1.8,
        "linestyle": (0, (3, 2)) if line.of_paper else "-",
        "marker": "" if many else marker,
        "markersize": 5,
        "markerfacecolor": theme.surface if line.of_paper else colour,
        "markeredgecolor": colour if line.of_paper else theme.surface,
        "markeredgewidth": 1.2 if line.of_paper else 0.8,
    }


def _draw(axes: Axes, line: Line, colour: str, marker: str, theme: Theme) -> None:
    axes.plot(line.x, line.y, zorder=3 if line.of_paper else 4, **_style(line, colour, marker, theme))
    if line.error:
        spread = [e if math.isfinite(e) else 0.0 for e in line.error]
        axes.errorbar(line.x, line.y, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.1, capsize=0, zorder=3)


def _dress(axes: Axes, data: Curves, theme: Theme, *, last: bool) -> None:
    axes.grid(axis="y", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    seen = [x for panel in data.panels for line in panel.lines for x in line.x]
    if data.log_x:
        counts = min(seen) >= 1 and max(seen) <= 4096  # ranks and widths, which double
        axes.set_xscale("log", base=2 if counts else 10)
        if counts:
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
    elif all(x == int(x) for x in seen if math.isfinite(x)) and not data.ticks:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if data.ticks:
        axes.set_xticks(range(len(data.ticks)), [label(name) for name in data.ticks])
        axes.set_xlim(-0.3, len(data.ticks) - 0.7)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0, pad=5, which="both", labelbottom=last)
    if _tilted(data):
        axes.tick_params(axis="x", labelrotation=60)


def _tilted(data: Curves) -> bool:
    """Whether names on the axis need more room than they have beside one another."""
    room = 70 if len(data.panels) == 1 else 28
    return sum(len(name) + 2 for name in data.ticks) > room
