"""What commands show: tables, progress, and where their reports go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from stitchkern.cli.group import note

STAGES = {
    "fit": "fit the maps",
    "test": "test the stitched networks",
    "similarity": "compare the layers",
    "compare": "compare all layers",
}


def make_folder(out: Path) -> None:
    """Before the work, so that a folder that cannot be written does not cost the result."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be made: {error.strerror}") from error


def print_table(table: Any) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe or a file has no width that a name should be cut at
        console.width = 1000
    console.print(table)


def note_random_models(*specs: str) -> None:
    """Of models without weights, which few people mean."""
    from stitchkern.models.spec import split_spec

    for spec in dict.fromkeys(specs):
        if not split_spec(spec, "model", "file_or_module:callable[@weights]")[2]:
            note(f"{spec} names no @weights: it ran as its callable makes it")


def made() -> dict[str, str]:
    return {"Command": click.get_current_context().obj}


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, one per stage; nothing where that is not a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total or None)
            bars.update(tasks[stage], completed=done)

        yield report
