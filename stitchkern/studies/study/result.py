"""What every study finds out: numbers in tables, curves and matrices, which travel as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stitchkern.studies.result import without_nan

FORMAT = "stitchkern-study-1"

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns. None and NaN: not known.

    `name`: of its CSV file. `columns_of_paper`: which columns hold numbers that the paper states.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    columns_of_paper: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows of {self.name!r} must have {len(self.columns)} cells; got {row}")


@dataclass(frozen=True)
class Line:
    """Points of one quantity.

    `error`: half of an interval about each y, or empty. `of_paper`: read off the paper, not measured; `like`: the name
    of the line of the same quantity, whose colour it has.
    """

    name: str
    x: list[float]
    y: list[float]
    error: list[float] = field(default_factory=list)
    of_paper: bool = False
    like: str = ""


@dataclass(frozen=True)
class Panel:
    """Lines that share axes."""

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Curves:
    """A picture of one panel or several, and a CSV file of its points.

    `name`: of its files. `x`, `y`: what the axes say. `ticks`: what x = 0, 1, 2, … are called (layers), or empty.
    """

    name: str
    title: str
    x: str
    y: str
    panels: list[Panel]
    ticks: list[str] = field(default_factory=list)
    log_x: bool = False
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """A heat map: `values[i][j]` of row i and column j."""

    name: str
    title: str
    measure: str
    rows: list[str]
    columns: list[str]
    values: list[list[float]]
    row_label: str = ""
    column_label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """One number that the page shows in large letters: what it is, the number, what belongs to it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class StudyResult:
    """A study's answer.

    Attributes:
        headline: the answer in a sentence.
        lede: what was done, in one to three sentences.
        figures: up to four numbers that sum it up.
        definitions: (name, meaning, formula or "") of everything on the page.
        study, title, made: the study, the first line of its docstring, how the result came about; `run_study` fills
            them in.
    """

    headline: str
    lede: str
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    definitions: list[tuple[str, str, str]] = field(default_factory=list)
    study: str = ""
    title: str = ""
    made: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """All of it; numbers that are not finite are null, which come back as NaN in lines and matrices."""
        found = {"format": FORMAT, **without_nan(asdict(self))}
        return json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StudyResult:
        """The result that `to_json` wrote. Raises ValueError for any other JSON."""
        data = json.loads(text)
        found = data.pop("format", None) if isinstance(data, dict) else None
        if found != FORMAT:
            raise ValueError(f"text must be JSON of format {FORMAT!r}, as this version writes it; got {found!r}")
        data["figures"] = [Figure(**one) for one in data["figures"]]
        data["tables"] = [Table(**one) for one in data["tables"]]
        data["matrices"] = [Matrix(**{**one, "values": _numbers(one["values"])}) for one in data["matrices"]]
        data["curves"] = [_curves(one) for one in data["curves"]]
        data["definitions"] = [tuple(one) for one in data["definitions"]]
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> StudyResult:
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _curves(data: Mapping[str, Any]) -> Curves:
    panels = [
        Panel(panel["title"], [Line(**{**line, **{k: _numbers(line[k]) for k in "xy"}}) for line in panel["lines"]])
        for panel in data["panels"]
    ]
    return Curves(**{**data, "panels": panels})


def _numbers(values: Any) -> Any:
    """null, where a number stood that is none, as NaN."""
    return [_numbers(v) for v in values] if isinstance(values, list) else float("nan") if values is None else values
