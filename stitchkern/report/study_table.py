"""A study's tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stitchkern.studies.study import StudyResult


def study_tables(result: StudyResult) -> Iterator[tuple[str, Table]]:
    """Each with its title. Numbers to the right; columns of the paper's numbers are dim."""
    from stitchkern.report.study import cell

    for data in result.tables:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for i, name in enumerate(data.columns):
            numbers = all(not isinstance(row[i], str) for row in data.rows)
            style = "dim" if name in data.columns_of_paper else ""
            table.add_column(Text(name), justify="right" if numbers else "left", no_wrap=True, style=style)
        for row in data.rows:
            table.add_row(*(Text(cell(value)) for value in row))
        yield data.title, table


def list_table(titles: Mapping[str, str]) -> Table:
    """Names of studies and what they are about."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, title in titles.items():
        table.add_row(Text(name), Text(title))
    return table
