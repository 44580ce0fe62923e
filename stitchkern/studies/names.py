"""What to call models in reports."""

from __future__ import annotations

from pathlib import Path

from stitchkern.models.spec import split_spec


def short_names(a: str, b: str, roles: tuple[str, str] = ("front", "end")) -> tuple[str, str]:
    """What to call two models: their weights files, or the functions that make them; never both the same.

    Where nothing else tells them apart, their roles do.
    """
    parts = [split_spec(spec, "model", "file_or_module:callable[@weights]") for spec in (a, b)]
    first, second = (Path(weights).stem if weights else name for _, name, weights in parts)
    if first == second:
        first, second = (
            f"{Path(weights).parent.name}/{stem}" if weights else stem
            for stem, (_, _, weights) in zip((first, second), parts, strict=True)
        )
    return (first, second) if first != second else (f"{first} ({roles[0]})", f"{second} ({roles[1]})")


def short_name(spec: str) -> str:
    """Of one model by itself."""
    _, name, weights = split_spec(spec, "model", "file_or_module:callable[@weights]")
    return Path(weights).stem if weights else name
