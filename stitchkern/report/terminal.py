"""Results as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # `stitchkern doctor` must print even where these cannot be imported
    from stitchkern.comparison import SimilarityMatrix
    from stitchkern.doctor import Finding
    from stitchkern.studies.layers import Layer
    from stitchkern.studies.result import StitchingResult

_BAR = 16


def stitching_table(result: StitchingResult) -> Table:
    """One row per stitched layer, the relative accuracy also as a bar."""
    table = _table("layer", "channels", "relative accuracy", "± s.e.", "CKA", "unbiased", "R²")
    for pair in result.pairs:
        channels = str(pair.front_channels)
        if pair.front_channels != pair.end_channels:
            channels += f"→{pair.end_channels}"
        share = pair.relative_accuracy
        table.add_row(
            Text(pair.name),
            channels,
            Text.assemble(*_bar(share), f" {_fixed(share)}"),
            *(_fixed(v) for v in (pair.relative_se, pair.cka, pair.cka_unbiased, pair.r2)),
        )
    return table


def rank_table(result: StitchingResult) -> Table | None:
    """Relative accuracy by rank of the map, and of Procrustes; one row per layer. None where neither was tested."""
    if not (result.has_rank_curve or result.has_procrustes):
        return None
    last = ["Procrustes"] if result.has_procrustes else []
    table = _table("relative accuracy", *(f"rank {rank}" for rank in result.ranks), "full rank", *last)
    for pair in result.pairs:
        bounded = [pair.at_rank(rank) for rank in result.ranks]
        found = [*bounded, pair, *([pair.procrustes] if last else [])]
        table.add_row(Text(pair.name), *(_fixed(f.relative_accuracy) if f else "–" for f in found))
    return table


def comparison_table(matrix: SimilarityMatrix) -> Table:
    """One row per layer of the first model: its most similar layer of the second, a similarity also as a bar."""
    from stitchkern.comparison import counterparts

    found = counterparts(matrix)
    a, b = matrix.names
    namesakes = ["same name"] if any(c.namesake is not None for c in found) else []
    columns = (f"layer of {a}", "most similar other" if a == b else f"most similar of {b}")
    table = _table(*map(escape, columns), matrix.label, "± s.e.", *namesakes, left=2 if matrix.is_distance else 3)
    for c in found:
        bar = () if matrix.is_distance else (*_bar(c.value), " ")
        own = "–" if c.namesake is None else _fixed(c.namesake)
        error = _fixed(c.standard_error) if math.isfinite(c.standard_error) else "–"
        cells = (Text(c.layer), Text(c.best or "–"), Text.assemble(*bar, _fixed(c.value)), error)
        table.add_row(*cells, *([own] if namesakes else []))
    return table


def layer_table(layers: Iterable[Layer], *, shapes: bool) -> Table:
    """One row per layer; `shapes`: with the shape of its output, or – where it cannot be stitched."""
    table = _table("layer", "type", *(["output"] if shapes else []), "parameters", left=2)
    for layer in layers:
        shape = ["×".join(map(str, layer.shape)) if layer.shape else "–"] if shapes else []
        table.add_row(Text(layer.name), Text(layer.kind), *shape, f"{layer.parameters:,}")
    return table


def doctor_table(findings: Iterable[Finding]) -> Table:
    """One row per finding, and under it what to do."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.name), Text(finding.value, style="red" if finding.fatal else ""))
        if finding.advice:
            table.add_row("", Text(f"→ {finding.advice}", style="red" if finding.fatal else "yellow"))
    return table


def _fixed(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(columns):
        is_left = i < left or name == "relative accuracy"
        table.add_column(name, no_wrap=True, justify="left" if is_left else "right", overflow="ignore")
    return table


def _bar(share: float) -> tuple[tuple[str, str], tuple[str, str]]:
    full = round(_BAR * min(max(share, 0.0), 1.0)) if math.isfinite(share) else 0
    return ("█" * full, "blue"), ("░" * (_BAR - full), "dim")
