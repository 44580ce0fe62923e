"""What every picture here is drawn with: the colours of light and dark surfaces, a figure, the heat map of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from stitchkern.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Theme:
    """Colours of one surface. The series differ in hue and in lightness, for every kind of colour vision.

    `ramp`: from nothing to much; `below`: the same for numbers below zero.
    """

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    accuracy: str
    cka: str
    r2: str
    procrustes: str
    ramp: tuple[str, ...]
    below: tuple[str, ...]


LIGHT = Theme(
    "light", "#ffffff", "#16202c", "#5c6773", "#e3e7eb", "#0b5fa5", "#cf5a00", "#7a8794", "#2a8050",
    ("#f2f6fa", "#bcd6ea", "#6aa9d4", "#1f74b5", "#08335f"), ("#f2f6fa", "#f3cfae", "#dd8a44", "#a85200", "#5c2c00"),
)  # fmt: skip
DARK = Theme(
    "dark", "#12181f", "#e8edf2", "#9aa7b4", "#2b343e", "#62b4f5", "#f2994a", "#8d9aa8", "#63c48b",
    ("#18222c", "#1c4468", "#2277b3", "#6fb7e6", "#e4f3fd"), ("#18222c", "#58371a", "#b0682a", "#eeaa6c", "#fdeedd"),
)  # fmt: skip

_LONGEST = 28  # characters of a name in a plot
_CELL = 0.62  # inches; what a number needs is a little less
_NUMBER, _TWO_NUMBERS = 0.5, 0.55
_SIDE = 8.4  # inches that more cells share


def label(name: str) -> str:
    """A layer or model name as text: no formula where it holds dollars, its telling end where it is long."""
    short = name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
    return _plain(short)


def write_title(figure: Figure, theme: Theme, title: str, **place: float) -> None:
    """Bold, in the upper left corner."""
    figure.suptitle(_plain(title), x=0.02, ha="left", fontsize=12, fontweight="bold", color=theme.ink, **place)


def new_figure(theme: Theme, width: float, height: float, title: str = "") -> tuple[Figure, Axes]:
    """A figure of so many inches (and what the title needs) with one pair of axes; no window, no global state."""
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12)
    figure = Figure(figsize=(width, height + 0.5 * bool(title)), layout=layout, facecolor=theme.surface)
    if title:
        write_title(figure, theme, title)
    axes = figure.add_subplot(facecolor="none")
    axes.tick_params(colors=theme.ink, labelsize=10)
    axes.tick_params(axis="y", length=0)
    for name in (axes.xaxis.label, axes.yaxis.label):
        name.set(color=theme.muted, fontsize=10.5)
    axes.xaxis.labelpad = axes.yaxis.labelpad = 9
    return figure, axes


def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    measure: str = "",
    names: tuple[str, str] = ("", ""),
    title: str = "",
    standard_error: ArrayLike | None = None,
    limits: tuple[float, float] | None = None,
    reverse: bool = False,
    theme: Theme = LIGHT,
    ax: Axes | None = None,
) -> Figure:
    """A matrix (L, M) as coloured cells under the names of its rows and columns, the first row on top.

    Cells that are large enough hold their number, and its standard error where there is one; names are thinned where
    there is no room for all. Numbers below zero have a hue of their own, and the same number above and below zero the
    same strength. What is not finite is hatched.

    Args:
        values: (L, M).
        rows, columns: L and M names.
        measure: what the numbers are; stands on the colour bar.
        names: what the rows and what the columns belong to.
        title: above the picture.
        standard_error: (L, M); what is not finite is left out.
        limits: of the colours; numbers outside have the colour of the nearer end. None: 0 and 1, and further where
            numbers lie outside.
        reverse: the strongest colour for the smallest number, as suits distances.
        ax: draw into these axes, with room for what fits into them; otherwise the figure is made to measure.

    Returns:
        The figure that it was drawn into.

    Raises:
        ShapeError: values or standard errors are not (L, M).
        ValueError: limits that are not finite and ascending.
    """
    numbers = _matrix("values", values, rows, columns)
    errors = None if standard_error is None else _matrix("standard_error", standard_error, rows, columns)
    low, high = limits or _limits(numbers)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"limits must be finite and ascending; got ({low}, {high})")
    if ax is None:
        cells = max(numbers.shape)
        cell = _CELL if cells <= 12 else min(0.3, _SIDE / cells)
        room = [max(_letters(side) - 5, 0) * 0.6 * _letter(cell) for side in (rows, columns)]
        width = max(2.4 + room[0] + cell * len(columns), 0.3 + 0.11 * len(title))
        height = room[1] + max(1.2 + cell * len(rows), 0.6 + 0.09 * len(measure))
        figure, axes = new_figure(theme, width, height, title)
    else:
        figure, axes = ax.figure.figure, ax  # not the part of a figure that they may stand in
        cell = min(side / count for side, count in zip(_inches(axes), (len(columns), len(rows)), strict=True))
        if title:
            axes.set_title(_plain(title), loc="left", fontsize=12, fontweight="bold", color=theme.ink)

    colours = _colours(theme, low, high, reverse)
    shown = np.ma.masked_invalid(numbers)
    mesh = axes.pcolormesh(
        shown, cmap=colours, vmin=low, vmax=high, edgecolors=theme.surface, linewidth=min(1.5, 5 * cell) * (cell > 0.1),
        rasterized=numbers.size > 4096,  # as paths they would make pages of megabytes
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    _name_cells(axes, rows, columns, names, cell, theme)
    if cell > _NUMBER:
        inks = [[_readable_on(rgba) for rgba in row] for row in colours((numbers - low) / (high - low))]
        _write_numbers(axes, numbers, errors if cell > _TWO_NUMBERS else None, inks)
    ticks = [0, 0.5, 1] if (low, high) == (0.0, 1.0) else MaxNLocator(5)
    bar = figure.colorbar(
        mesh, ax=axes, shrink=0.62, aspect=22, pad=0.03, ticks=ticks, extend=_beyond(shown, low, high),
        panchor=(1.0, 0.0) if ax is None else False,  # elsewhere the layout leaves no room for long names
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=theme.muted)
    if len(measure) <= 6 and min(numbers.shape) > 2:
        bar.ax.set_title(_plain(measure), fontsize=10, color=theme.muted, pad=8)
    else:  # which the layout would put on top of the cells
        bar.set_label(_plain(measure), fontsize=10, color=theme.muted, labelpad=8)
    if shown.mask.any():
        _hatch(axes, bar.ax, shown, theme)
    return figure


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def _matrix(name: str, values: ArrayLike, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    matrix = np.asarray(values, dtype=float)
    if matrix.shape != (len(rows), len(columns)) or not matrix.size:
        wanted = f"({len(rows)}, {len(columns)}), one for each row and column name"
        raise ShapeError(f"{name} must be {wanted}; got {matrix.shape}")
    return matrix


def _limits(numbers: np.ndarray) -> tuple[float, float]:
    finite = numbers[np.isfinite(numbers)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=1.0))
    rounding = 1e-6 * max(1.0, -low, high)
    return 0.0 if low >= -rounding else low, 1.0 if high <= 1 + rounding else high


def _colours(theme: Theme, low: float, high: float, reverse: bool) -> Colormap:
    """Of `low` … `high`: one ramp, or two that meet at zero."""
    ramp = LinearSegmentedColormap.from_list("ramp", theme.ramp)
    if reverse:
        return ramp.reversed()
    if low >= 0:
        return ramp
    below = LinearSegmentedColormap.from_list("below", theme.below)
    shares = np.linspace(low, high, 512) / max(-low, high)
    return ListedColormap(np.where((shares < 0)[:, None], below(-shares), ramp(np.maximum(shares, 0))))


def _beyond(shown: Any, low: float, high: float) -> str:
    """Which ends of the colour bar stand for more than themselves."""
    under, over = bool((shown < low).any()), bool((shown > high).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[under, over]


def _inches(axes: Axes) -> tuple[float, float]:
    extent, dpi = axes.get_window_extent(), axes.figure.dpi
    return extent.width / dpi, extent.height / dpi


def _letter(cell: float) -> float:
    """Size of the letters beside cells of so many inches, in inches too."""
    return min(10.0, max(7.0, 60 * cell)) / 72


def _letters(names: Sequence[str]) -> int:
    return min(max(map(len, names)), _LONGEST)


def _name_cells(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], names: tuple[str, str], cell: float, theme: Theme
) -> None:
    step = max(1, math.ceil(_letter(cell) / cell))  # a name is as high as its letters
    x, y = range(0, len(columns), step), range(0, len(rows), step)
    axes.set_xticks([j + 0.5 for j in x], [label(columns[j]) for j in x])
    axes.set_yticks([i + 0.5 for i in y], [label(rows[i]) for i in y])
    upright = _letters(columns) <= 5 and cell > _NUMBER
    axes.tick_params(length=0, pad=6, labelsize=72 * _letter(cell), labelcolor=theme.ink)
    axes.tick_params(axis="x", labelrotation=0 if upright else 90)
    axes.set_xlabel(label(names[1]))
    axes.set_ylabel(label(names[0]))
    axes.spines[:].set_visible(False)


def _write_numbers(axes: Axes, numbers: np.ndarray, errors: np.ndarray | None, inks: list[list[str]]) -> None:
    large = bool((np.abs(numbers[np.isfinite(numbers)]) >= 9.995).any())
    for (i, j), value in np.ndenumerate(numbers):
        if not math.isfinite(value):
            continue
        ink = inks[i][j]
        error = math.nan if errors is None else float(errors[i, j])
        two = math.isfinite(error)
        at = (j + 0.5, i + (0.42 if two else 0.5))
        text = f"{value:#.3g}".rstrip(".") if large else _short(f"{value:.2f}")
        axes.text(*at, text, ha="center", va="center", fontsize=9.5 if len(text) < 6 else 7, color=ink)
        if two:
            axes.text(at[0], i + 0.76, f"± {_short(f'{error:.2g}')}", ha="center", va="center", fontsize=6.5, color=ink)


def _short(number: str) -> str:
    """Without the zero before the point, with a minus instead of a hyphen; nothing is called −.00."""
    if float(number) == 0:
        number = number.removeprefix("-")
    sign, digits = ("−", number[1:]) if number.startswith("-") else ("", number)
    return sign + (digits[1:] if digits.startswith("0.") else digits)


def _hatch(axes: Axes, bar: Axes, shown: Any, theme: Theme) -> None:
    """What is undefined, and under the colour bar what that means."""
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": theme.muted, "hatch": "////", "linewidth": 0}
    gap = 0.04
    cells = [Rectangle((j + gap, i + gap), 1 - 2 * gap, 1 - 2 * gap) for i, j in np.argwhere(shown.mask)]
    axes.add_collection(PatchCollection(cells, **style), autolim=False)
    bar.legend(
        handles=[Patch(**style)], labels=["undefined"], loc="upper left", bbox_to_anchor=(-0.6, -0.06), frameon=False,
        fontsize=9, labelcolor=theme.muted, borderpad=0, borderaxespad=0, handlelength=1.1, handleheight=1.1,
        handletextpad=0.6,
    )  # fmt: skip


def _readable_on(rgba: Sequence[float]) -> str:
    red, green, blue, _ = rgba
    return "#16202c" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"
