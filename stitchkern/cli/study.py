"""`stitchkern study`: the experiments of the catalogue, on the digits or on networks that are named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stitchkern.cli import options
from stitchkern.cli.group import commands, note
from stitchkern.cli.options import Words, data_options
from stitchkern.cli.output import made, make_folder, note_random_models, print_table, progress_bars

if TYPE_CHECKING:
    from stitchkern.studies.data import FitAndTest
    from stitchkern.studies.study import Networks


def _list_studies(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from stitchkern.report.study_table import list_table
        from stitchkern.studies.study import study_names, study_title

        print_table(list_table({name: study_title(name) for name in study_names()}))
        context.exit()


@commands.command()
@click.argument("name")
@click.argument("models", nargs=-1)
@click.option(
    "--list", is_flag=True, expose_value=False, is_eager=True, callback=_list_studies, help="Say which there are."
)
@click.option("--quick", is_flag=True, help="A reduced set: fewer layers, seeds and epochs.")
@click.option(
    "--weights", multiple=True, metavar="FILES", help="Of one MODEL: a file or a 'pattern*'; can be repeated."
)
@click.option("--data", metavar="DATA", help="Images and labels to fit on.")
@click.option("--test-data", metavar="DATA", help="To test on, where DATA holds no test part.")
@click.option("--test-split", metavar="NAME", help="Of an .npz: the one to test on.  [default: test, if there]")
@data_options("fit on")
@click.option("--layers", type=Words(str, "names separated by commas"), metavar="A,B,…", help="That all models have.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of task-loss training.  [default: 30, quick: 4]")
@click.option("--repeats", type=click.IntRange(min=1), help="How often random things are drawn.")
@click.option("--device", default="cpu", show_default=True, callback=options.device)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="studies", show_default=True)
def study(
    name: str,
    models: tuple[str, ...],
    quick: bool,
    weights: tuple[str, ...],
    data: str | None,
    layers: list[str] | None,
    epochs: int | None,
    repeats: int | None,
    device: str,
    out: Path,
    **data_options: Any,
) -> None:
    """Run the study NAME, or `all` of them; `summary` only links what is there.

    Without MODELS, on networks trained on handwritten digits. A model is file_or_module:callable[@weights], DATA as for
    `stitchkern stitch`; models one and two are a pair, three and four the next. The report goes to OUT/NAME; what has
    been computed is kept in OUT/work, and taken up there by the next run.
    """
    from stitchkern.studies.study import Options, Work, run_study, study_names
    from stitchkern.studies.study.options import EPOCHS, QUICK_EPOCHS
    from stitchkern.studies.study.registry import study_module

    if name not in ("all", "summary"):
        study_module(name)  # which raises for one that there is not
    if bool(models) != bool(data):
        raise click.UsageError("MODELS and --data are given together, or neither for the digits")
    make_folder(out)
    if name != "summary":
        with progress_bars() as progress:
            work = Work(out / "work", lambda done: progress("parts of studies", done, 0))
            networks, parts = _networks(models, weights, data, layers, device, quick, work, progress, data_options)
            asked = Options(work, quick, layers, epochs or (QUICK_EPOCHS if quick else EPOCHS), repeats, device)
            for one in study_names() if name == "all" else [name]:
                _write(run_study(one, networks, parts, asked, made=made()), out)
    from stitchkern.report import summary

    page = summary.write(out, made())
    if page is None:
        raise click.UsageError(f"--out: {out} holds no study")
    click.echo(f"All studies: {page}")


def _networks(
    models: tuple[str, ...],
    weights: tuple[str, ...],
    data: str | None,
    layers: list[str] | None,
    device: str,
    quick: bool,
    work: Any,
    progress: Any,
    data_options: dict[str, Any],
) -> tuple[Networks, FitAndTest]:
    from stitchkern.studies.data import fit_and_test
    from stitchkern.studies.study import digits_networks, networks_from_specs, with_weights

    if not models or data is None:
        given = [word for word, value in data_options.items() if value is not None and word != "batch_size"]
        if given or weights:
            raise click.UsageError(f"--{(given or ['weights'])[0].replace('_', '-')} goes with MODELS and --data")
        return digits_networks(work, quick=quick, device=device, progress=progress)
    if weights and len(models) > 1:
        raise click.UsageError("--weights goes with one MODEL, which it fills")
    specs = with_weights(models[0], weights) if weights else list(models)
    parts = fit_and_test(data, data_options.pop("test_data"), test_split=data_options.pop("test_split"), **data_options)
    note(f"testing on {parts.note}")
    key = " ".join(f"{word}={value}" for word, value in sorted(data_options.items()))
    networks = networks_from_specs(specs, parts, data_key=f"{data} {key}", layers=layers, device=device)
    note_random_models(*specs)
    return networks, parts


def _write(result: Any, out: Path) -> None:
    from stitchkern.report import study
    from stitchkern.report.study_table import study_tables

    page = study.write(result, out / result.study)
    click.echo(f"{result.title}\n")
    for title, table in study_tables(result):
        click.echo(title)
        print_table(table)
        click.echo()
    click.echo(f"{result.headline}\n\nReport: {page}\n")
