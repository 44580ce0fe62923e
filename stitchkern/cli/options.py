"""Options that several commands have, and how words become values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Words(click.ParamType):
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


def device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    import torch

    try:
        torch.zeros(1, device=value).item()  # which the meta device refuses
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"{value!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return value


def shape(context: click.Context, parameter: click.Parameter, value: list[int] | None) -> list[int] | None:
    if value and (min(value) < 1 or math.prod(value) > 2**31):
        raise click.BadParameter(f"must be positive and 2^31 numbers in all at most; got {','.join(map(str, value))}")
    return value


def ranks(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """None: choose for me; []: no rank curve."""
    if value is None or value.strip() == "none":
        return None if value is None else []
    found = Words(int, "integers separated by commas, or none").convert(value, parameter, context)
    if min(found) < 1:
        raise click.BadParameter(f"must be 1 at least; got {value!r}")
    return list(found)


def data_options(purpose: str) -> Decorator:
    """What `load_data` takes; `purpose`: what a split is for."""
    numbers = Words(float, "numbers separated by commas")
    return _all(
        click.option("--split", metavar="NAME", help=f"Of an .npz: the one to {purpose}.  [default: train, if there]"),
        click.option("--mean", type=numbers, metavar="M,…", help="Per channel; subtracted from pixels / 255."),
        click.option("--std", type=numbers, metavar="S,…", help="Per channel; what inputs are divided by."),
        click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True),
        click.option("--limit", type=click.IntRange(min=1), help="Read no more than this many samples."),
    )


def run_options() -> Decorator:
    """How models run and where the report goes."""
    return _all(
        click.option(
            "--precision",
            type=click.Choice(["highest", "high", "medium", "float64"]),
            default="highest",
            show_default=True,
        ),
        click.option("--device", default="cpu", show_default=True, callback=device),
        out_option(),
    )


def out_option() -> Decorator:
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--out", type=folder, default="report", show_default=True)


def _all(*options: Decorator) -> Decorator:
    """The options in this order, as one decorator."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def number_or_word(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    return None if value is None else _value(value)


def assignments(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE as {name: value}, numbers as such."""
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"must be NAME=VALUE; got {text!r}")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number or truth value where it is one, otherwise the text."""
    for convert in (int, float, {"true": True, "false": False, "none": None}.__getitem__):
        try:
            return convert(text.strip().lower())
        except (ValueError, KeyError):
            continue
    return text
