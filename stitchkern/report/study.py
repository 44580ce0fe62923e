"""Writes what a study found as files; `index.html` needs none of the others, and nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stitchkern.report import study_plots
from stitchkern.report.page import new_folder, render, save_png, write_csv
from stitchkern.studies.study.result import Cell, Curves, Matrix, StudyResult, Table


def write(result: StudyResult, out_dir: str | Path) -> Path:
    """Write `index.html`, `result.json`, and of each picture and table its PNG and CSV; return the page.

    The folder is made if need be; files of these names and of another report are replaced or removed. Raises OSError
    where that fails.
    """
    out = new_folder(out_dir)
    (out / "result.json").write_text(result.to_json(), encoding="utf-8")
    for curves in result.curves:
        save_png(study_plots.curves(curves, title=curves.title), out / f"{curves.name}.png")
        write_csv(_points(curves), out / f"{curves.name}.points.csv")
    for matrix in result.matrices:
        save_png(study_plots.matrix(matrix, title=matrix.title), out / f"{matrix.name}.png")
        write_csv(_cells(matrix), out / f"{matrix.name}.matrix.csv")
    for table in result.tables:
        write_csv(_rows(table), out / f"{table.name}.csv")
    page = out / "index.html"
    page.write_text(html(result), encoding="utf-8")
    return page


def html(result: StudyResult) -> str:
    """The page: one document with style and plots inside, for light and dark screens."""
    drawn: dict[str, Any] = {c.name: (partial(study_plots.curves, c), c.title) for c in result.curves}
    drawn |= {m.name: (partial(study_plots.matrix, m), m.title) for m in result.matrices}
    return render("study.html.j2", drawn, result=result, definitions=result.definitions, cell=cell)


def cell(value: Cell) -> str:
    """A cell as text, with as many digits as anyone reads."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    small = value != 0 and not 1e-3 <= abs(value) < 1e4
    return (f"{value:.2e}" if small else f"{value:.3f}").replace("-", "−")


def _rows(table: Table) -> Iterator[dict[str, Any]]:
    """Columns of one name (± 95 %) are told apart by the column before."""
    names: list[str] = []
    for i, name in enumerate(table.columns):
        names.append(name if table.columns.count(name) == 1 else f"{table.columns[i - 1]} {name}")
    for row in table.rows:
        yield {name: _plain(value) for name, value in zip(names, row, strict=True)}


def _points(curves: Curves) -> Iterator[dict[str, Any]]:
    for panel in curves.panels:
        for line in panel.lines:
            for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                name = curves.ticks[int(x)] if curves.ticks else x
                error = line.error[i] if line.error else None
                yield {
                    "panel": panel.title,
                    "line": line.name,
                    "x": name,
                    "y": _plain(y),
                    "half_interval": _plain(error),
                }


def _cells(matrix: Matrix) -> Iterator[dict[str, Any]]:
    for name, row in zip(matrix.rows, matrix.values, strict=True):
        for column, value in zip(matrix.columns, row, strict=True):
            yield {"row": name, "column": column, "value": _plain(value)}


def _plain(value: Cell) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
