"""Whether a layer is matched best by itself or its counterpart: what stitching should find if it is to be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stitchkern.matching.evaluate import Evaluation


@dataclass(frozen=True)
class Partner:
    """For a layer of the end, the layer of the front from which stitching keeps most accuracy.

    Attributes:
        layer: of the end.
        best: of the front; of equals the one of the same name, or else the first.
        relative, standard_error: of ``best``.
        namesake: relative accuracy from the front's layer of the same name; NaN where that was not stitched.
        behind: by how many standard errors of the two together the namesake is behind; 0 where it is the best.
    """

    layer: str
    best: str
    relative: float
    standard_error: float
    namesake: float
    behind: float

    @property
    def is_namesake(self) -> bool:
        return self.best == self.layer


def best_partners(evaluation: Evaluation[tuple[str, str]]) -> list[Partner]:
    """One for each layer of the end, in the order that they were evaluated; of an evaluation of (front, end) layers.

    Raises:
        ValueError: a pair has several stitches, so that there is no one value for it.
    """
    if any(len(key) != 2 for key in evaluation.relative):
        raise ValueError("best_partners takes an evaluation of (front layer, end layer) pairs, one stitch for each")
    found = []
    for layer in dict.fromkeys(b for _, b in evaluation.relative):
        values = {a: v for (a, b), v in evaluation.relative.items() if b == layer and not math.isnan(v)}
        if not values:
            continue
        best = max(values, key=lambda a: (values[a], a == layer))
        own = values.get(layer, math.nan)
        errors = [evaluation.relative_se[a, layer] for a in (best, layer) if a in values]
        spread = math.hypot(*errors)
        gap = values[best] - own
        found.append(
            Partner(
                layer=layer,
                best=best,
                relative=values[best],
                standard_error=evaluation.relative_se[best, layer],
                namesake=own,
                behind=0.0 if gap == 0 else gap / spread if spread > 0 else math.nan if math.isnan(gap) else math.inf,
            )
        )
    return found
