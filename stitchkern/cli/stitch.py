"""`stitchkern stitch` and, for networks trained on the spot, `stitchkern demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stitchkern.cli import options
from stitchkern.cli.group import commands, note
from stitchkern.cli.options import Words, data_options, out_option, run_options
from stitchkern.cli.output import made, make_folder, note_random_models, print_table, progress_bars

if TYPE_CHECKING:
    from stitchkern.comparison import SimilarityMatrix
    from stitchkern.studies.result import StitchingResult


@commands.command()
@out_option()
@click.option("--quick", is_flag=True, help="Train for a few epochs only.")
def demo(out: Path, quick: bool) -> None:
    """Train two small networks on handwritten digits, stitch them at every layer, compare all layers."""
    from stitchkern.studies.demo import demo

    make_folder(out)
    with progress_bars() as progress:
        result, similarity = demo(quick=quick, made=made(), progress=progress)
    _finish(result, out, similarity)


@commands.command()
@click.argument("front")
@click.argument("end")
@click.option("--data", required=True, metavar="DATA", help="Images and labels to fit on.")
@click.option("--test-data", metavar="DATA", help="To test on, where DATA holds no test part.")
@click.option("--test-split", metavar="NAME", help="Of an .npz: the one to test on.  [default: test, if there]")
@data_options("fit on")
@click.option(
    "--layers",
    type=Words(str, "names separated by commas"),
    metavar="A,B,…",
    help="Names that both models have.",
)
@click.option("--front-layer", "front_layers", multiple=True, metavar="NAME", help="With --end-layer; can be repeated.")
@click.option("--end-layer", "end_layers", multiple=True, metavar="NAME", help="One for every --front-layer.")
@click.option(
    "--ranks",
    metavar="K,…|none",
    callback=options.ranks,
    help="Also test the best maps of these ranks; each takes about as long to test as the map itself.  "
    "[default: 4, 8, 16, … below the full rank]",
)
@click.option("--no-procrustes", is_flag=True, help="Do not test the best orthogonal map.")
@click.option("--resize", type=click.Choice(["bilinear", "nearest"]), help="Resample where spatial sizes differ.")
@run_options()
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
    from stitchkern.studies.data import fit_and_test
    from stitchkern.studies.stitching import stitch_specs

    pairs = list(zip(front_layers or layers or (), end_layers or layers or (), strict=True))
    parts = fit_and_test(data, test_data, test_split=test_split, **data_options)
    note(f"testing on {parts.note}")
    make_folder(out)
    with progress_bars() as progress:
        result = stitch_specs(
            front, end, parts, pairs, ranks=ranks, orthogonal=not no_procrustes,
            device=device, resize=resize, precision=precision, made=made(), progress=progress,
        )  # fmt: skip
    note_random_models(front, end)
    _finish(result, out)


def _finish(result: StitchingResult, out: Path, similarity: SimilarityMatrix | None = None) -> None:
    from stitchkern import report

    page = report.write(result, out, similarity=similarity)
    own = " · ".join(f"{network.name} {network.accuracy:.1%}" for network in (result.front, result.end))
    click.echo(f"By themselves: {own}, on {result.test_images:,} test samples\n")
    print_table(report.stitching_table(result))
    if (ranks := report.rank_table(result)) is not None:
        click.echo()
        print_table(ranks)
    click.echo(f"\n{result.headline}\n\nReport: {page}")
