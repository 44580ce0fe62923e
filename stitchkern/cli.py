"""The command line: options in, calls, tables and messages out; no logic of its own.

Whatever needs torch or the extension is imported inside the commands, so that `stitchkern doctor` can say
what is wrong with them.
"""

from __future__ import annotations

import math
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from stitchkern._version import __version__
from stitchkern.errors import SpecError, StitchkernError

if TYPE_CHECKING:
    from stitchkern.studies.result import StitchingResult

STAGES = {"fit": "fit the maps", "test": "test the stitched networks", "similarity": "compare all layers"}


class _Commands(click.Group):
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


class _List(click.ParamType):
    """Words separated by commas, each converted."""

    def __init__(self, convert: Callable[[str], Any], name: str) -> None:
        self.convert_one, self.name = convert, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return [self.convert_one(word.strip()) for word in value.split(",")]
        except ValueError:
            self.fail(f"must be {self.name}; got {value!r}", param, ctx)


def _device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    import torch

    try:
        torch.zeros(1, device=value).item()  # which the meta device refuses
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"{value!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return value


def _shape(context: click.Context, parameter: click.Parameter, value: list[int] | None) -> list[int] | None:
    if value and (min(value) < 1 or math.prod(value) > 2**31):
        raise click.BadParameter(f"must be positive and 2^31 numbers in all at most; got {','.join(map(str, value))}")
    return value


def _ranks(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """None: choose for me; []: no rank curve."""
    if value is None or value.strip() == "none":
        return None if value is None else []
    ranks = _List(int, "integers separated by commas, or none").convert(value, parameter, context)
    if min(ranks) < 1:
        raise click.BadParameter(f"must be 1 at least; got {value!r}")
    return list(ranks)


def _data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    numbers = _List(float, "numbers separated by commas")
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Read no more than this many samples."),
        click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True),
        click.option("--std", type=numbers, metavar="S,…", help="Per channel; what inputs are divided by."),
        click.option("--mean", type=numbers, metavar="M,…", help="Per channel; subtracted from pixels / 255."),
        click.option("--split", metavar="NAME", help="Of an .npz: the one to fit on.  [default: train, if there]"),
    ):
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="stitchkern", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error came from.")
def commands() -> None:
    """Can one trained network work with another's representation, and in what way?"""


@commands.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="report", show_default=True)
@click.option("--quick", is_flag=True, help="Train for a few epochs only.")
def demo(out: Path, quick: bool) -> None:
    """Train two small networks on handwritten digits and stitch them at every layer."""
    from stitchkern.studies.demo import demo

    _make_folder(out)
    with _progress() as progress:
        result = demo(quick=quick, made=_made(), progress=progress)
    _finish(result, out)


@commands.command()
@click.argument("front")
@click.argument("end")
@click.option("--data", required=True, metavar="DATA", help="Images and labels to fit on.")
@click.option("--test-data", metavar="DATA", help="To test on, where DATA holds no test part.")
@click.option("--test-split", metavar="NAME", help="Of an .npz: the one to test on.  [default: test, if there]")
@_data_options
@click.option(
    "--layers",
    type=_List(str, "names separated by commas"),
    metavar="A,B,…",
    help="Names that both models have.",
)
@click.option("--front-layer", "front_layers", multiple=True, metavar="NAME", help="With --end-layer; can be repeated.")
@click.option("--end-layer", "end_layers", multiple=True, metavar="NAME", help="One for every --front-layer.")
@click.option(
    "--ranks",
    metavar="K,…|none",
    callback=_ranks,
    help="Also test the best maps of these ranks; each takes about as long to test as the map itself.  "
    "[default: 4, 8, 16, … below the full rank]",
)
@click.option("--no-procrustes", is_flag=True, help="Do not test the best orthogonal map.")
@click.option("--resize", type=click.Choice(["bilinear", "nearest"]), help="Resample where spatial sizes differ.")
@click.option(
    "--precision",
    type=click.Choice(["highest", "high", "medium", "float64"]),
    default="highest",
    show_default=True,
)
@click.option("--device", default="cpu", show_default=True, callback=_device)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="report", show_default=True)
def stitch(
    front: str,
    end: str,
    data: str,
    test_data: str | None,
    test_split: str | None,
    layers: list[str] | None,
    front_layers: tuple[str, ...],
    end_layers: tuple[str, ...],
    ranks: list[int] | None,
    no_procrustes: bool,
    resize: str | None,
    precision: str,
    device: str,
    out: Path,
    **data_options: Any,
) -> None:
    """Fit the best affine map from layers of FRONT to layers of END, and test the stitched networks.

    A model is file_or_module:callable[@weights], such as nets.py:small@seed0.safetensors. DATA is an .npz
    with images and labels, or file_or_module:callable that yields (inputs, labels). Without layers, every
    normalisation layer that both models have is stitched.
    """
    if layers and (front_layers or end_layers):
        raise click.UsageError("--layers cannot be given together with --front-layer and --end-layer")
    if len(front_layers) != len(end_layers):
        counts = f"{len(front_layers)} and {len(end_layers)}"
        raise click.UsageError(f"--front-layer and --end-layer must be given equally often; got {counts}")
    from stitchkern.models.spec import split_spec
    from stitchkern.studies.data import fit_and_test
    from stitchkern.studies.stitching import stitch_specs

    pairs = list(zip(front_layers or layers or (), end_layers or layers or (), strict=True))
    parts = fit_and_test(data, test_data, test_split=test_split, **data_options)
    _note(f"testing on {parts.note}")
    _make_folder(out)
    with _progress() as progress:
        result = stitch_specs(
            front, end, parts, pairs, ranks=ranks, orthogonal=not no_procrustes,
            device=device, resize=resize, precision=precision, made=_made(), progress=progress,
        )  # fmt: skip
    for spec in dict.fromkeys((front, end)):
        if not split_spec(spec, "model", "file_or_module:callable[@weights]")[2]:
            _note(f"{spec} names no @weights: it ran as its callable makes it")
    _finish(result, out)


@commands.command()
@click.argument("model")
@click.option("--data", metavar="DATA", help="To learn the shapes of outputs from the first batch of it.")
@click.option(
    "--input-shape",
    type=_List(int, "integers separated by commas"),
    metavar="C,H,W",
    callback=_shape,
    help="Likewise, from zeros.",
)
@_data_options
def layers(model: str, data: str | None, input_shape: list[int] | None, **data_options: Any) -> None:
    """List the layers of MODEL that can be stitched: names, types, output shapes, parameters."""
    if data and input_shape:
        raise click.UsageError("--data cannot be given together with --input-shape")
    import torch

    from stitchkern.models import load_data, load_model
    from stitchkern.report import layer_table
    from stitchkern.studies.data import default_split
    from stitchkern.studies.layers import describe

    inputs = None
    if data:
        data_options["split"] = default_split(data, data_options["split"])
        inputs, _ = next(iter(load_data(data, **data_options)), (None, None))
        if inputs is None:
            raise SpecError(f"data {data!r} gave no batch")
    elif input_shape:
        inputs = torch.zeros(()).expand(2, *input_shape)  # takes no memory until the model runs
    _print(layer_table(describe(load_model(model), inputs), shapes=inputs is not None))


@commands.command()
def doctor() -> int:
    """Show what this installation is made of, and what to do about what is missing."""
    from stitchkern.doctor import examine
    from stitchkern.report import doctor_table

    findings = examine()
    _print(doctor_table(findings))
    return int(any(finding.fatal for finding in findings))


def _finish(result: StitchingResult, out: Path) -> None:
    from stitchkern import report

    page = report.write(result, out)
    own = " · ".join(f"{network.name} {network.accuracy:.1%}" for network in (result.front, result.end))
    click.echo(f"By themselves: {own}, on {result.test_images:,} test samples\n")
    _print(report.stitching_table(result))
    if (ranks := report.rank_table(result)) is not None:
        click.echo()
        _print(ranks)
    click.echo(f"\n{result.headline}\n\nReport: {page}")


def _make_folder(out: Path) -> None:
    """Before the work, so that a folder that cannot be written does not cost the result."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be made: {error.strerror}") from error


def _print(table: Any) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe or a file has no width that a name should be cut at
        console.width = 1000
    console.print(table)


def _note(message: str) -> None:
    click.echo(f"stitchkern: {message}", err=True)


def _made() -> dict[str, str]:
    return {"Command": click.get_current_context().obj}


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: _note(" ".join(str(message).split()))
        yield


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
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


def main() -> None:
    """The `stitchkern` command."""
    commands(prog_name="stitchkern")
