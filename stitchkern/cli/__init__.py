"""The command line: options in, calls, tables and messages out; no logic of its own.

Whatever needs torch or the extension is imported inside the commands, so that `stitchkern doctor` can say
what is wrong with them.
"""

from stitchkern.cli import compare, look, stitch, study
from stitchkern.cli.group import commands

__all__ = ["commands", "compare", "look", "main", "stitch", "study"]


def main() -> None:
    """The `stitchkern` command."""
    commands(prog_name="stitchkern")
