"""One layer of one pair, stitched in two ways: by least squares and for the task. What several studies vary around."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from stitchkern.matching import behaviour, evaluate, match_task
from stitchkern.nn import Stitch
from stitchkern.solvers import AffineMap
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study.means import half, mean
from stitchkern.studies.study.networks import NetworkPair
from stitchkern.studies.study.result import Line

#: keys of what `two_ways` returns, from the lesser to the better stitch, and what they are called
WAYS = {"direct": "Least squares", "task": "Task loss"}
Numbers = dict[str, float]
#: numbers of `Behaviour`, and what they are called
BEHAVIOUR = {
    "penalty": "Stitching penalty",
    "agreement": "Agreement",
    "error_consistency": "Error consistency",
    "energy_auroc": "Energy AUROC",
}


def two_ways(
    pair: NetworkPair,
    layer: str | tuple[str, str],
    start: AffineMap | tuple[Tensor, Tensor],
    data: FitAndTest,
    epochs: int,
    checkpoint: Path | None = None,
    *,
    resize: str | None = None,
    beyond: bool = False,
) -> dict[str, Numbers]:
    """By way: relative accuracy with its standard error, CKA and R² of the stitched activation.

    ``start`` is the least-squares map of the layer, or its (weight, bias). ``beyond``: and the numbers of `Behaviour`
    that `BEHAVIOUR` names. Raises as :func:`stitchkern.match_task` and `evaluate`.
    """
    a, b = (layer, layer) if isinstance(layer, str) else layer
    model = match_task(*pair.models, layer, data.fit, init=start, epochs=epochs, checkpoint=checkpoint, resize=resize)
    trained: Any = model.stitch
    size: dict[str, Any] = {"size": trained.size, "resize": resize} if resize else {}
    weight, bias = (start.weight, start.bias) if isinstance(start, AffineMap) else start
    direct = Stitch.from_affine(weight.to(trained.weight), bias.to(trained.weight), **size)
    stitches = {(a, b, "direct"): direct, (a, b, "task"): trained}
    tested = evaluate(*pair.models, stitches, data.test)
    told = behaviour(*pair.models, stitches, data.test) if beyond else {}
    history: Any = model.history
    return {
        key[2]: {
            "relative": tested.relative[key],
            "se": tested.relative_se[key],
            "cka": history.cka[at],
            "r2": history.r2[at],
            **({name: getattr(told[key], name) for name in BEHAVIOUR} if beyond else {}),
        }
        for key, at in zip(stitches, (0, -1), strict=True)
    }


def line(name: str, x: Iterable[float], points: Iterable[Iterable[Numbers]], what: str = "relative") -> Line:
    """Means of ``what`` over pairs at each x, with the 95 % interval where it is relative accuracy."""
    found = [list(point) for point in points]
    spread = [half([one[what] for one in point], [one["se"] for one in point]) for point in found]
    values = [mean(one[what] for one in point) for point in found]
    return Line(name, list(x), values, spread if what == "relative" else [])
