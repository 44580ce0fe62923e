"""The pictures of a stitching result, for light and dark surfaces, as PNG or as SVG inside a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stitchkern import plotting
from stitchkern.plotting import LIGHT, Theme, label, new_figure, write_title
from stitchkern.studies.result import PairResult, StitchingResult

_Z95 = 1.96
_LABEL_GAP = 0.052  # of the axis' height, between the middles of two labels


def by_layer(result: StitchingResult, theme: Theme = LIGHT, *, title: str = "") -> Figure:
    """Relative accuracy with 95 % intervals, CKA and R² by stitched layer; lines are named where they end."""
    pairs = result.pairs
    at = range(len(pairs))
    figure, axes = new_figure(theme, max(9.6, 2.6 + 0.62 * len(pairs)), 4.3, title)
    series = [
        ("Relative accuracy", [p.relative_accuracy for p in pairs], theme.accuracy, "-", "o", 2.4),
        ("CKA", [p.cka for p in pairs], theme.cka, "-", "s", 1.5),
        ("R²", [p.r2 for p in pairs], theme.r2, (0, (4, 2.5)), "D", 1.5),
    ]
    spread = [_Z95 * p.relative_se for p in pairs]
    axes.axhline(1.0, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2.5)), zorder=1)
    axes.errorbar(at, series[0][1], yerr=spread, fmt="none", ecolor=theme.accuracy, elinewidth=1.3, capsize=0, zorder=3)
    for zorder, (name, values, colour, style, marker, width) in zip((5, 4, 2), series, strict=True):
        axes.plot(at, values, color=colour, linestyle=style, linewidth=width, marker=marker, markersize=5.5,
                  markeredgecolor=theme.surface, markeredgewidth=1.1, label=name, zorder=zorder)  # fmt: skip

    seen = [v for _, values, *_ in series for v in values if v == v]
    seen += [p.relative_accuracy - s for p, s in zip(pairs, spread, strict=True) if s == s]
    seen += [p.relative_accuracy + s for p, s in zip(pairs, spread, strict=True) if s == s]
    low, high = min([*seen, 0.9]), max([*seen, 1.0])
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(-0.35, len(pairs) - 0.95)
    names = [label(p.name) for p in pairs]
    axes.set_xticks(at, names)
    long_names = sum(map(len, names)) > 95
    axes.tick_params(axis="x", labelrotation=90 if long_names else 0, length=0, pad=7)
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_xlabel("stitched layer, from input to output" if len(pairs) > 1 else "stitched layer")

    ends = [values[-1] for _, values, *_ in series]
    for (name, _, colour, *_), end, y in zip(series, ends, _spread(ends, low - margin, high + margin), strict=True):
        axes.annotate(
            f"{name} {end:.2f}", (len(pairs) - 1, y), xytext=(14, 0), textcoords="offset points",
            color=colour, va="center", fontsize=10.5, annotation_clip=False,
            fontweight="bold" if name.startswith("Rel") else "normal",
        )  # fmt: skip
    return figure


def heat_map(result: StitchingResult, theme: Theme = LIGHT, *, title: str = "") -> Figure:
    """Linear CKA of every front layer (rows) with every end layer (columns)."""
    similarity = result.similarity
    return plotting.heat_map(
        similarity.values, similarity.front_layers, similarity.end_layers,
        measure="CKA", names=(result.front.name, result.end.name), title=title, theme=theme,
    )  # fmt: skip


def by_rank(result: StitchingResult, theme: Theme = LIGHT, *, title: str = "") -> Figure:
    """One panel per layer: R² of every rank, relative accuracy of the ranks tested, Procrustes as a level."""
    pairs = [pair for pair in result.pairs if pair.rank_curve]
    columns = _columns(len(pairs))
    rows = -(-len(pairs) // columns)
    # All panels are alike, so margins in inches do, for a fraction of the time that a layout engine takes
    wide, high = (6.2, 2.9) if len(pairs) == 1 else (2.15, 1.5)
    left, right, between, above, below = 0.5, 0.2, 0.28, 0.42, 0.62
    top = 0.36 + 0.5 * bool(title)
    width = max(left + columns * wide + (columns - 1) * between + right, 6.9)
    height = top + rows * (above + high) + below
    figure = Figure(figsize=(width, height), facecolor=theme.surface)
    grid = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, subplot_kw={"facecolor": "none"},
        gridspec_kw={
            "left": left / width, "right": 1 - right / width, "wspace": between / wide,
            "top": 1 - (top + above) / height, "bottom": below / height, "hspace": above / high,
        },
    )  # fmt: skip
    if title:
        write_title(figure, theme, title, y=1 - 0.14 / height)
    _rank_legend(figure, theme, result.has_procrustes, y=1 - (top - 0.36) / height)
    for axes in grid.flat[len(pairs) :]:
        axes.set_visible(False)

    most = max(len(pair.r2_by_rank) for pair in pairs)
    ticks = [2**i for i in range(0, most.bit_length(), 2 if most > 8 else 1)]
    highest = max([1.0, *(f.relative_accuracy + _half(f.relative_se) for pair in pairs for f in pair.rank_curve
                          if math.isfinite(f.relative_accuracy))])  # fmt: skip
    for i, (axes, pair) in enumerate(zip(grid.flat, pairs, strict=False)):
        _rank_panel(axes, pair, theme)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.82, 1.22 * most)
        axes.set_ylim(-0.02, 1.03 * highest)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.tick_params(colors=theme.muted, labelsize=9, length=0, pad=5, labelbottom=i + columns >= len(pairs))
        axes.spines[:].set_visible(False)
        name = label(pair.name)
        axes.set_title(name, loc="left", fontsize=10.5 if len(name) < 20 else 8.5, color=theme.ink, pad=7)
    grid[-1, 0].set_xlabel("rank of the map", loc="left", fontsize=10, color=theme.muted, labelpad=6)
    return figure


def _rank_panel(axes: Axes, pair: PairResult, theme: Theme) -> None:
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    if found := pair.procrustes:
        half = _half(found.relative_se)
        level = found.relative_accuracy
        axes.axhspan(level - half, level + half, color=theme.procrustes, alpha=0.16, linewidth=0, zorder=1.5)
        axes.axhline(level, color=theme.procrustes, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
    listed = _log_spaced(len(pair.r2_by_rank))
    axes.plot(listed, [pair.r2_by_rank[k - 1] for k in listed], color=theme.r2, linewidth=1.4, zorder=3,
              marker="." if len(listed) == 1 else None)  # fmt: skip
    axes.errorbar(
        [found.rank for found in pair.rank_curve], [found.relative_accuracy for found in pair.rank_curve],
        yerr=[_half(found.relative_se) for found in pair.rank_curve], fmt="o", color=theme.accuracy, markersize=4.6,
        markeredgecolor=theme.surface, markeredgewidth=0.7, elinewidth=1.4, capsize=0, zorder=4,
    )  # fmt: skip


def _rank_legend(figure: Figure, theme: Theme, procrustes: bool, *, y: float) -> None:
    """One line above the panels, since no panel has room for names."""
    handles: list[Any] = [
        Line2D([], [], color=theme.accuracy, marker="o", linestyle="", markersize=6),
        Line2D([], [], color=theme.r2, linewidth=1.6),
    ]
    names = ["Relative accuracy", "R²"]
    if procrustes:
        line = Line2D([], [], color=theme.procrustes, linewidth=1.3, linestyle=(0, (4, 2)))
        handles.append((Patch(color=theme.procrustes, alpha=0.16, linewidth=0), line))
        names.append("Relative accuracy of Procrustes")
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.02, y), ncols=3, frameon=False, fontsize=10,
        labelcolor=theme.ink, borderaxespad=0, borderpad=0.4, handletextpad=0.6, columnspacing=2.2,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )  # fmt: skip


def _columns(count: int) -> int:
    """Of panels, so that rows are full where that can be and the page is filled."""
    if count <= 4:
        return count
    most = 4 if count <= 16 else 5
    return min(range(3, most + 1), key=lambda columns: (-count % columns, -columns))


def _log_spaced(count: int) -> list[int]:
    """1 … count, thinned where no eye could tell."""
    return sorted({round(count ** (i / 160)) for i in range(161)} | set(range(1, min(count, 64) + 1)))


def _half(standard_error: float) -> float:
    """Half of the 95 % interval; none where it is undefined."""
    return _Z95 * standard_error if math.isfinite(standard_error) else 0.0


def _spread(values: Sequence[float], low: float, high: float) -> list[float]:
    """The same heights, moved apart where labels would overlap."""
    gap = _LABEL_GAP * (high - low)
    order = sorted(range(len(values)), key=lambda i: values[i])
    heights = [values[i] for i in order]
    for _ in range(50):
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    placed = [0.0] * len(values)
    for i, height in zip(order, heights, strict=True):
        placed[i] = height
    return placed
