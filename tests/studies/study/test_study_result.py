"""Results travel as JSON, and become pages, files and tables."""

from __future__ import annotations

import csv
import math

import pytest
from rich.console import Console

from stitchkern.report import study, summary
from stitchkern.report.study_table import study_tables
from stitchkern.studies.study import Curves, Figure, Line, Matrix, Panel, StudyResult, Table
from tests.page import Page, check_alone

RESULT = StudyResult(
    headline="Seven & <eight>.",
    lede="What was done.",
    figures=[Figure("One", "1.0", "at bn1"), Figure("Two", "2")],
    curves=[
        Curves(
            "curves", "Curves", "layer", "accuracy",
            [
                Panel("left", [Line("ours", [0.0, 1.0], [0.5, math.nan], [0.1, math.nan]),
                               Line("theirs", [0.0], [0.25], of_paper=True, like="ours")]),
                Panel("right", [Line("ours", [0.0, 1.0], [0.5, 0.75])]),
            ],
            ticks=["bn1", "bn$2"], note="A note.",
        ),
        Curves("ranks", "Ranks", "rank", "accuracy", [Panel("", [Line("ours", [1.0, 64.0], [0.0, 1.0])])], log_x=True),
    ],
    matrices=[Matrix("cells", "Cells", "CKA", ["a", "b"], ["c"], [[0.5], [math.nan]], "front", "end", "A matrix.")],
    tables=[
        Table("numbers", "Numbers", ["Layer", "Ours", "± 95 %", "Count", "Paper", "± 95 %"],
              [["bn1", 0.12345, math.nan, 12345, None, 1e-7], ["bn<2>", -2.0, math.inf, 1, 0.5, 0.0]],
              "Of numbers.", ["Paper"]),
    ],
    definitions=[("Ours", "What we have.", "a / b")],
    study="some-study", title="Some study", made={"Command": "stitchkern study some-study"},
)  # fmt: skip


def test_json_there_and_back():
    again = StudyResult.from_json(RESULT.to_json())
    assert again.to_json() == RESULT.to_json() and "NaN" not in RESULT.to_json()
    assert math.isnan(again.curves[0].panels[0].lines[0].y[1]) and math.isnan(again.matrices[0].values[1][0])
    assert again.figures == RESULT.figures and again.definitions == RESULT.definitions and again.made == RESULT.made
    for text in ("[]", "{}", '{"format": "stitchkern-stitching-2"}'):
        with pytest.raises(ValueError, match="format 'stitchkern-study-1'"):
            StudyResult.from_json(text)


def test_rows_fit_their_columns():
    with pytest.raises(ValueError, match=r"rows of 'a' must have 2 cells; got \[1\]"):
        Table("a", "A", ["x", "y"], [[1]])


def test_the_page_is_whole_and_says_everything(tmp_path):
    page = study.write(RESULT, tmp_path)
    text = page.read_text(encoding="utf-8")
    found = check_alone(text)
    said = ["A note.", "A matrix.", "Of numbers.", "0.123", "12,345", "1.00e−07", "−2.000", "∞", "bn<2>", "at bn1"]
    said += [RESULT.headline, RESULT.lede, "What we have.", "a / b", "stitchkern study some-study"]
    assert [words for words in said if words not in found.text] == []
    assert "nan" not in found.text.lower().split() and 'class="paper">–</td>' in text
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "index.html", "result.json", "curves.png", "curves.points.csv", "ranks.png", "ranks.points.csv", "cells.png",
        "cells.matrix.csv", "numbers.csv",
    }  # fmt: skip
    with (tmp_path / "numbers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["Layer", "Ours", "Ours ± 95 %", "Count", "Paper", "Paper ± 95 %"]
    assert rows[0]["Ours"] == "0.12345" and rows[0]["Ours ± 95 %"] == "" and rows[0]["Paper"] == ""
    with (tmp_path / "curves.points.csv").open(encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    assert [(p["line"], p["x"], p["y"]) for p in points[:3]] == [
        ("ours", "bn1", "0.5"), ("ours", "bn$2", ""), ("theirs", "bn1", "0.25"),
    ]  # fmt: skip


def test_the_terminal():
    console = Console(width=120)
    ((title, table),) = study_tables(RESULT)
    with console.capture() as printed:
        console.print(table)
    assert title == "Numbers" and "12,345" in printed.get() and "bn<2>" in printed.get()


def test_the_summary_links_what_is_there(tmp_path):
    assert summary.write(tmp_path) is None
    study.write(RESULT, tmp_path / "some-study")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text('{"format": "of something else"}')
    page = summary.write(tmp_path, {"Command": "stitchkern study summary"})
    assert page == tmp_path / "index.html"
    found = Page(page.read_text(encoding="utf-8"))
    assert found.open == [] and found.loads == ["some-study/index.html"] and (tmp_path / found.loads[0]).exists()
    assert RESULT.headline in found.text and "Some study" in found.text and "study summary" in found.text
