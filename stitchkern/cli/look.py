"""`stitchkern layers` and `stitchkern doctor`: what is there, before any work."""

from __future__ import annotations

from typing import Any

import click

from stitchkern.cli import options
from stitchkern.cli.group import commands
from stitchkern.cli.output import print_table
from stitchkern.errors import SpecError


@commands.command()
@click.argument("model")
@click.option("--data", metavar="DATA", help="To learn the shapes of outputs from the first batch of it.")
@click.option(
    "--input-shape",
    type=options.Words(int, "integers separated by commas"),
    metavar="C,H,W",
    callback=options.shape,
    help="Likewise, from zeros.",
)
@options.data_options("read")
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
    print_table(layer_table(describe(load_model(model), inputs), shapes=inputs is not None))


@commands.command()
def doctor() -> int:
    """Show what this installation is made of, and what to do about what is missing."""
    from stitchkern.doctor import examine
    from stitchkern.report import doctor_table

    findings = examine()
    print_table(doctor_table(findings))
    return int(any(finding.fatal for finding in findings))
