"""Which layer fits which: every layer of one network into every layer of the other.

Least squares is tried for all pairs of layers, task loss for those where the front's layer is no later than the
end's; where spatial sizes differ, activations are resampled. It shows how far counterparts are each other's best
partner, and how much computation a stitch can skip.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from stitchkern.errors import LayerError
from stitchkern.matching import evaluate, match_direct, match_tasks
from stitchkern.models.taps import device_of, frozen, layer_shapes, map_tensors
from stitchkern.nn import ChannelMap
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import Figure, Matrix, NetworkPair, Networks, Options, StudyResult, Table, words
from stitchkern.studies.study.means import mean

RESIZE = "bilinear"
Cells = dict[tuple[str, str], dict[str, float]]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or options.either(networks.layers, networks.some_layers(3))
    epochs = max(options.epochs // 3, 1)
    direct: list[Cells] = []
    task: list[Cells] = []
    for pair in networks.pairs[: options.either(None, 1)]:
        found = options.keep(pair, partial(_direct, pair, layers, data), part="direct", layers=layers)
        direct.append({(a, b): numbers for a, b, numbers in found})
        task.append({})
        for end in layers:
            earlier = [a for a, b in direct[-1] if b == end and layers.index(a) <= layers.index(b)]
            unit = partial(_task, pair, earlier, end, data, epochs)
            numbers = options.keep(pair, unit, part="task", fronts=earlier, end=end)
            task[-1] |= {(a, end): one for a, one in zip(earlier, numbers, strict=True)}
    return _result(layers, epochs, direct, task)


def _direct(pair: NetworkPair, layers: list[str], data: FitAndTest, _: Path) -> list[tuple[str, str, dict[str, float]]]:
    """(front layer, end layer, R² and relative accuracy) of all that fit, in two passes."""
    shapes = [_shapes(model, data) for model in pair.models]
    if unknown := [layer for layer in layers for side in shapes if layer not in side]:
        raise LayerError(f"layer {unknown[0]!r} does not run once with a tensor in both networks of {pair.name}")
    fitting = [(a, b) for a in layers for b in layers if _fit(shapes[0][a], shapes[1][b])]
    maps = match_direct(*pair.models, fitting, data.fit, resize=RESIZE)
    stitches: dict[tuple[str, str], ChannelMap] = {}
    for (a, b), fitted in maps.items():
        x, y = shapes[0][a], shapes[1][b]
        size: dict[str, Any] = {"size": y[1:], "resize": RESIZE} if len(y) == 3 and x[1:] != y[1:] else {}
        stitches[a, b] = fitted.to_module(**size).to(device_of(pair.end.model))
    tested = evaluate(*pair.models, stitches, data.test)
    return [(a, b, {"relative": tested.relative[a, b], "r2": maps[a, b].r2}) for a, b in fitting]


def _task(
    pair: NetworkPair, fronts: list[str], end: str, data: FitAndTest, epochs: int, checkpoint: Path
) -> list[dict[str, float]]:
    """From each of the front's layers, trained side by side."""
    if not fronts:
        return []
    configs = [{"layer": (front, end)} for front in fronts]
    found = match_tasks(*pair.models, None, data.fit, configs, resize=RESIZE, epochs=epochs, checkpoint=checkpoint)
    stitches = {(front, end): one.stitch for front, one in zip(fronts, found, strict=True)}
    tested = evaluate(*pair.models, stitches, data.test)
    return [{"relative": tested.relative[both]} for both in stitches]


def _shapes(model: Any, data: FitAndTest) -> dict[str, tuple[int, ...]]:
    inputs = map_tensors(next(iter(data.fit))[0], lambda tensor: tensor.to(device_of(model)))
    with frozen(model):
        return layer_shapes(model, inputs)


def _fit(x: tuple[int, ...], y: tuple[int, ...]) -> bool:
    """Positions of images are resampled; tokens are not."""
    return len(x) == len(y) and (len(x) == 3 or x[:-1] == y[:-1])


def _result(layers: list[str], epochs: int, direct: list[Cells], task: list[Cells]) -> StudyResult:
    matrices = {
        "r2": _matrix(layers, direct, "r2"),
        "direct": _matrix(layers, direct, "relative"),
        "task": _matrix(layers, task, "relative"),
    }
    own = {name: _own_best(values) for name, values in matrices.items()}
    early = [(values, i, j) for i, row in enumerate(matrices["task"]) for j, values in enumerate(row)
             if j > i and values >= 0.95]  # fmt: skip
    furthest = max(early, key=lambda one: (one[2] - one[1], one[0]), default=None)
    skipped = "no stitch past a layer keeps 95 % of the accuracy"
    if furthest is not None:
        value, i, j = furthest
        skipped = f"trained for the task, {layers[i]} can stand for {layers[j]}, {j - i} layers on, at {value:.1%}"
    count, pairs = len(layers), len(direct)
    return StudyResult(
        headline=f"Fitted by least squares, {own['direct']} of {count} layers of the end do best with their own "
        f"counterpart; {skipped}.",
        lede=f"Every layer of the front (rows) into every layer of the end (columns), by least squares, and by "
        f"{epochs} epochs of training for the task where the front’s layer is no later. Means over "
        f"{words.counted(pairs, 'pair')} of networks.",
        figures=[
            Figure("Counterpart has the highest R²", f"{own['r2']} of {count}", "layers of the end"),
            Figure("Counterpart is best, least squares", f"{own['direct']} of {count}", "layers of the end"),
            Figure("Layers skipped at 95 %", "0" if furthest is None else str(furthest[2] - furthest[1]), "task loss"),
        ],
        matrices=[
            Matrix(name, title, measure, layers, layers, matrices[name], "front", "end", note)
            for name, title, measure, note in (
                ("task", "Relative accuracy, task loss", "relative accuracy", "Hatched: the front’s layer is later."),
                ("direct", "Relative accuracy, least squares", "relative accuracy", ""),
                ("r2", "R² of least squares", "R²", ""),
            )
        ],
        tables=[
            Table(
                "layers", "Best partner of each layer of the end",
                ["Layer of the end", "Best, R²", "Best, least squares", "Relative accuracy", "Of its counterpart",
                 "Earliest at 95 %, task loss"],
                [[layer, *(_name(layers, _best(matrices[name], j)) for name in ("r2", "direct")),
                  _top(matrices["direct"], j), matrices["direct"][j][j],
                  next((layers[i] for i in range(j + 1) if matrices["task"][i][j] >= 0.95), "none")]
                 for j, layer in enumerate(layers)],
            )
        ],
        definitions=[
            words.ACCURACY, words.LEAST_SQUARES, words.TASK_LOSS, words.R2,
            ("Resampling", "Of the front’s activation to the end’s spatial size before the stitch: bilinear.", ""),
        ],
    )  # fmt: skip


def _matrix(layers: list[str], found: list[Cells], what: str) -> list[list[float]]:
    """Means over pairs; NaN where a pair of layers was not stitched in all of them."""

    def cell(both: tuple[str, str]) -> float:
        return mean(cells[both][what] if both in cells else math.nan for cells in found)

    return [[cell((a, b)) for b in layers] for a in layers]


def _best(values: list[list[float]], column: int) -> int:
    """The row with the largest number; of equals the one nearest to the diagonal. −1: there is none."""
    known = [(row[column], -abs(i - column), i) for i, row in enumerate(values) if row[column] == row[column]]
    return max(known)[2] if known else -1


def _top(values: list[list[float]], column: int) -> float:
    best = _best(values, column)
    return values[best][column] if best >= 0 else math.nan


def _own_best(values: list[list[float]]) -> int:
    return sum(_best(values, j) == j for j in range(len(values)))


def _name(layers: list[str], index: int) -> str:
    return layers[index] if index >= 0 else "none"
