"""One layer of one pair, stitched in two ways: by least squares and for the task. What several studies vary around."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stitchkern.matching import evaluate, match_task
from stitchkern.nn import Stitch
from stitchkern.solvers import AffineMap
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study.means import half, mean
from stitchkern.studies.study.networks import NetworkPair
from stitchkern.studies.study.result import Line

#: keys of what `two_ways` returns, from the lesser to the better stitch, and what they are called
WAYS = {"direct": "Least squares", "task": "Task loss"}
Numbers = dict[str, float]


def two_ways(
    pair: NetworkPair,
    layer: str | tuple[str, str],
    start: AffineMap,
    data: FitAndTest,
    epochs: int,
    checkpoint: Path | None = None,
    *,
    resize: str | None = None,
) -> dict[str, Numbers]:
    """By way: relative accuracy with its standard error, CKA and R² of the stitched activation.

    ``start`` is the least-squares map of the layer. Raises as :func:`stitchkern.match_task` and `evaluate`.
    """
    a, b = (layer, layer) if isinstance(layer, str) else layer
    model = match_task(*pair.models, layer, data.fit, init=start, epochs=epochs, checkpoint=checkpoint, resize=resize)
    trained: Any = model.stitch
    size: dict[str, Any] = {"size": trained.size, "resize": resize} if resize else {}
    direct = Stitch.from_affine(start.weight.to(trained.weight), start.bias.to(trained.weight), **size)
    found = evaluate(*pair.models, {(a, b, "direct"): direct, (a, b, "task"): trained}, data.test)
    history: Any = model.history
    return {
        way: {
            "relative": found.relative[a, b, way],
            "se": found.relative_se[a, b, way],
            "cka": history.cka[at],
            "r2": history.r2[at],
        }
        for way, at in (("direct", 0), ("task", -1))
    }


def line(name: str, x: Iterable[float], points: Iterable[Iterable[Numbers]], what: str = "relative") -> Line:
    """Means of ``what`` over pairs at each x, with the 95 % interval where it is relative accuracy."""
    found = [list(point) for point in points]
    spread = [half([one[what] for one in point], [one["se"] for one in point]) for point in found]
    values = [mean(one[what] for one in point) for point in found]
    return Line(name, list(x), values, spread if what == "relative" else [])
