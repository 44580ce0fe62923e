"""A progress bar for those who ask for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stitchkern.matching.stream import Progress


@contextmanager
def reporter(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """What to call as ``report(done, total)``: the caller's own function, a bar on stderr for True, or nothing."""
    if progress is None or callable(progress):
        yield progress
        return
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("compare layers", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)
