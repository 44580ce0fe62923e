"""What a similarity matrix says of each layer: which layer of the other model is most like it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stitchkern.comparison.result import SimilarityMatrix


@dataclass(frozen=True)
class Counterpart:
    """The layer of the second model that is most similar to `layer` of the first.

    Attributes:
        layer: of the first model.
        best: of the second; None where the similarity of `layer` is undefined everywhere. Of equals (to 1e-6 of
            the largest number in the row), the one with the same name, or else the first.
        value, standard_error: of `layer` and `best`; NaN where there is none.
        namesake: the value of `layer` and the layer of the same name; NaN where it is undefined, None where the second
            model has no such layer, or is the first.
    """

    layer: str
    best: str | None
    value: float
    standard_error: float
    namesake: float | None

    @property
    def is_namesake(self) -> bool:
        return self.best == self.layer


def counterparts(matrix: SimilarityMatrix) -> list[Counterpart]:
    """One for each row. Of one model with itself (the same `names`), a layer is no counterpart of its own."""
    values = -matrix.values if matrix.is_distance else matrix.values
    one = matrix.names[0] == matrix.names[1]
    found = []
    for i, layer in enumerate(matrix.layers_a):
        others = {
            name: j
            for j, name in enumerate(matrix.layers_b)
            if not math.isnan(values[i, j]) and not (one and name == layer)
        }
        best = _best(layer, {name: float(values[i, j]) for name, j in others.items()})
        at = None if best is None else (i, others[best])
        own = None if one or layer not in matrix.layers_b else matrix.layers_b.index(layer)
        found.append(
            Counterpart(
                layer=layer,
                best=best,
                value=math.nan if at is None else float(matrix.values[at]),
                standard_error=math.nan if at is None else float(matrix.standard_error[at]),
                namesake=None if own is None else float(matrix.values[i, own]),
            )
        )
    return found


def _best(layer: str, values: dict[str, float]) -> str | None:
    """The name of the largest value; of those that rounding may tell apart, `layer` or else the first."""
    if not values:
        return None
    least = max(values.values()) - 1e-6 * max(map(abs, values.values()))
    equals = [name for name, value in values.items() if value >= least]
    return layer if layer in equals else equals[0]


def headline(matrix: SimilarityMatrix) -> str:
    """The finding in one sentence."""
    a, b = matrix.names
    found = counterparts(matrix)
    named = [c for c in found if c.namesake is not None]
    found = [c for c in found if c.best is not None]
    if not found:
        return f"{matrix.label} is undefined for every pair of layers of {' and '.join(dict.fromkeys(matrix.names))}."
    if len(named) < 2:
        best = (min if matrix.is_distance else max)(found, key=lambda c: c.value)
        pair = f"{best.layer} and {best.best}" if a == b else f"{best.layer} of {a} and {best.best} of {b}"
        start = f"Of all layers of {a}, most similar are" if a == b else "Most similar are"
        return f"{start} {pair} ({matrix.label} {_short(best.value)})."
    hits = sum(c.is_namesake for c in named)
    values = sorted(c.namesake for c in named if c.namesake is not None and not math.isnan(c.namesake))
    span = f" ({matrix.label} {_short(values[0])} to {_short(values[-1])})" if values else ""
    start = f"{hits} of {len(named)} layers" if hits else f"None of the {len(named)} layers"
    start = f"Each of the {len(named)} layers" if hits == len(named) else start
    verb = "is" if hits in (0, 1, len(named)) else "are"
    return f"{start} of {a} {verb} most similar to the layer of the same name in {b}{span}."


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
