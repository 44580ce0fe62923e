"""`stitchkern compare`: how similar all layers of two networks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stitchkern.cli.group import commands
from stitchkern.cli.options import Words, assignments, data_options, number_or_word, run_options
from stitchkern.cli.output import made, make_folder, note_random_models, print_table, progress_bars

NAMES = Words(str, "names separated by commas")


@commands.command()
@click.argument("a")
@click.argument("b", required=False)
@click.option("--data", required=True, metavar="DATA", help="Images; labels are not needed.")
@data_options("compare on")
@click.option("--layers-a", type=NAMES, metavar="X,Y,…", help="Of A.  [default: all]")
@click.option("--layers-b", type=NAMES, metavar="X,Y,…", help="Of B, or of A by itself.  [default: all]")
@click.option("--measure", default="cka", show_default=True, metavar="NAME", help="cka, svcca, procrustes_distance, …")
@click.option(
    "--option",
    "measure_options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=assignments,
    help="Of the measure, such as k=5 of mutual_knn; can be repeated.",
)
@click.option(
    "--features",
    type=click.Choice(["flatten", "positions", "pool"]),
    default="flatten",
    show_default=True,
    help="What a layer is compared by: all its numbers, every position as a sample, or the mean over positions.",
)
@click.option(
    "--estimator",
    type=click.Choice(["minibatch", "exact"]),
    help="From sums over batches, or from all samples at once.  [default: minibatch for cka, exact for all else]",
)
@click.option("--unbiased/--biased", default=None, help="Of exact cka.  [default: biased]")
@click.option("--kernel", type=click.Choice(["linear", "rbf", "laplace"]), default="linear", show_default=True)
@click.option("--bandwidth", metavar="X|'X median'", callback=number_or_word, help="Of the kernel.  [default: median]")
@click.option("--blocks", type=click.IntRange(min=0), help="Of samples, for standard errors; 0: none.")
@run_options()
def compare(
    a: str,
    b: str | None,
    data: str,
    measure_options: dict[str, Any],
    device: str,
    out: Path,
    split: str | None,
    mean: list[float] | None,
    std: list[float] | None,
    batch_size: int,
    limit: int | None,
    **options: Any,
) -> None:
    """Measure how similar every layer of A is to every layer of B, or without B to every other layer of A.

    A model is file_or_module:callable[@weights], such as nets.py:small@seed0.safetensors. DATA is an .npz
    with images, or file_or_module:callable that yields inputs or (inputs, labels).
    """
    if taken := sorted(measure_options.keys() & options.keys()):
        raise click.UsageError(f"--option {taken[0]}=… is an option by itself: --{taken[0].replace('_', '-')}")
    from stitchkern import report
    from stitchkern.comparison import headline
    from stitchkern.studies.comparing import compare_specs
    from stitchkern.studies.data import inputs_alone

    batches, samples = inputs_alone(data, split=split, mean=mean, std=std, batch_size=batch_size, limit=limit)
    make_folder(out)
    with progress_bars() as progress:
        matrix = compare_specs(
            a, b, batches, device=device, made={**made(), "Data": samples}, progress=progress,
            **options, **measure_options,
        )  # fmt: skip
    note_random_models(a, *([b] if b else []))
    page = report.write(matrix, out)
    print_table(report.comparison_table(matrix))
    click.echo(f"\n{headline(matrix)}\n\nReport: {page}")
