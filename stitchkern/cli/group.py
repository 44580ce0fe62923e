"""What all commands have in common: they stand in one group, and every expected error is one line."""

from __future__ import annotations

import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from stitchkern._version import __version__
from stitchkern.errors import StitchkernError


class Commands(click.Group):
    """Every expected error is one line on stderr and exit code 2; `--debug` anywhere shows its traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        debug = "--debug" in words
        extra["obj"] = shlex.join(["stitchkern", *words])  # the command, for reports
        extra["standalone_mode"] = False
        try:
            with _warnings_as_notes():
                code = super().main([word for word in words if word != "--debug"], *rest, **extra)
        except (StitchkernError, click.ClickException) as error:
            if debug:
                traceback.print_exc()
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            click.echo(f"stitchkern: {' '.join(message.split())}", err=True)
            code = 2
        except (click.Abort, KeyboardInterrupt):
            click.echo("stitchkern: stopped", err=True)
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="stitchkern", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error came from.")
def commands() -> None:
    """Can one trained network work with another's representation, and in what way?"""


def note(message: str) -> None:
    click.echo(f"stitchkern: {message}", err=True)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: note(" ".join(str(message).split()))
        yield
