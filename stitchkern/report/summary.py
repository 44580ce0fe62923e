"""The page that links the pages of all studies in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stitchkern.report.page import render
from stitchkern.studies.study.result import StudyResult


@dataclass(frozen=True)
class Summary:
    """`studies`: by the folder of each page, beside this one."""

    studies: dict[str, StudyResult]
    made: dict[str, str]


def write(folder: str | Path, made: Mapping[str, str] | None = None) -> Path | None:
    """Write `index.html` in the folder whose folders hold studies; return it, or None where none does.

    Raises OSError where it cannot be written.
    """
    found = {}
    for path in sorted(Path(folder).glob("*/result.json")):
        try:
            found[path.parent.name] = StudyResult.load(path)
        except (ValueError, KeyError, TypeError):
            continue  # the result of something else
    if not found:
        return None
    page = Path(folder) / "index.html"
    page.write_text(html(Summary(found, dict(made or {}))), encoding="utf-8")
    return page


def html(summary: Summary) -> str:
    """The page, which links others by paths beside it."""
    return render("summary.html.j2", {}, result=summary, definitions=[])
