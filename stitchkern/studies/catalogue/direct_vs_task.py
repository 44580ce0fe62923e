"""Close representations against usable ones: direct matching beside task-loss matching, layer by layer.

Direct matching asks whether two layers are close, task-loss matching whether one can be used in place of the other.
Both stitches are affine and between the same frozen networks; the second starts at the first. Figure 2 of Csiszárik et
al. 2021.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from stitchkern.matching import match_direct
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import (
    Curves,
    Figure,
    Line,
    NetworkPair,
    Networks,
    Options,
    Panel,
    StudyResult,
    Table,
    paper,
    words,
)
from stitchkern.studies.study.means import half, mean
from stitchkern.studies.study.two_ways import BEHAVIOUR, WAYS, Numbers, line, two_ways


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or options.either(networks.layers, networks.some_layers(3))
    found: dict[str, list[dict[str, Numbers]]] = {layer: [] for layer in layers}
    for pair in networks.pairs:
        starts = options.keep(pair, partial(_starts, pair, layers, data), part="least squares", layers=layers)
        for layer in layers:
            unit = partial(two_ways, pair, layer, starts[layer], data, options.epochs, beyond=True)
            found[layer].append(options.keep(pair, unit, part="layer", layer=layer))
    return _result(networks, found)


def _starts(pair: NetworkPair, layers: list[str], data: FitAndTest, _: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The least-squares maps of all layers, in one pass."""
    fits = match_direct(*pair.models, layers, data.fit)
    return {layer: (fit.weight, fit.bias) for layer, fit in fits.items()}


def _result(networks: Networks, found: dict[str, list[dict[str, Numbers]]]) -> StudyResult:
    layers = list(found)
    means = {
        way: [{name: mean(one[way][name] for one in found[layer]) for name in found[layer][0][way]} for layer in layers]
        for way in WAYS
    }
    stated = paper.DIRECT_VS_TASK.get(networks.kind, {})
    beside = bool(stated.keys() & set(layers))
    task, direct = ([one["relative"] for one in means[way]] for way in ("task", "direct"))
    better = sum(a > b for a, b in zip(task, direct, strict=True))
    pairs = len(networks.pairs)
    lines = [
        line(name, _places(layers), [[one[way] for one in found[layer]] for layer in layers])
        for way, name in reversed(WAYS.items())
    ]
    return StudyResult(
        headline=f"Trained for the task, the stitch keeps {mean(task):.1%} of the accuracy; fitted by least squares, "
        f"{mean(direct):.1%}.",
        lede="The same affine stitch between the same frozen networks, made in two ways: closest to the end’s own "
        f"activation, or best for the task. Means over {words.counted(pairs, 'pair')} of networks.",
        figures=[
            Figure("Least squares", f"{mean(direct):.3f}", "mean over layers"),
            Figure("Task loss", f"{mean(task):.3f}", "mean over layers"),
            Figure("Task loss is better at", f"{better} of {len(layers)}", "layers"),
            Figure("Largest gain", f"{max(a - b for a, b in zip(task, direct, strict=True)):+.3f}", "at one layer"),
        ],
        curves=[
            Curves(
                "layers", "Relative accuracy by layer", "stitched layer, from input to output", "relative accuracy",
                [Panel("", [*lines, *_stated(stated, layers)])], ticks=layers,
                note="Bars: 95 % interval of the mean over pairs, or of one pair from its test samples.",
            ),
            Curves(
                "similarity", "CKA by layer", "stitched layer, from input to output", "CKA of the stitched activation",
                [
                    Panel("", [
                        Line(name, _places(layers), [one["cka"] for one in means[way]])
                        for way, name in reversed(WAYS.items())
                    ])
                ],
                ticks=layers,
                note="Where task loss is the better stitch and the less similar one, the two questions part.",
            ),
        ],
        tables=[
            Table(
                "layers", "Relative accuracy", ["Layer", "Least squares", "± 95 %", "Task loss", "± 95 %",
                *(["Paper, least squares", "Paper, task loss"] if beside else [])],
                [_row(layer, found[layer], stated.get(layer) if beside else None, beside) for layer in layers],
                columns_of_paper=["Paper, least squares", "Paper, task loss"] if beside else [],
            ),
            _beyond(layers, means),
            *([] if beside else [_paper_table()]),
        ],
        definitions=[
            words.ACCURACY, words.LEAST_SQUARES, words.TASK_LOSS, words.CKA, words.R2, words.PENALTY, words.AGREEMENT,
            words.ERROR_CONSISTENCY, words.ENERGY, words.PAPER,
        ],
    )  # fmt: skip


def _stated(stated: dict[str, tuple[float, float]], layers: list[str]) -> list[Line]:
    there = [i for i, layer in enumerate(layers) if layer in stated]
    return [
        Line(f"{name}, paper", [float(i) for i in there], [stated[layers[i]][at] for i in there], [], True, name)
        for at, name in enumerate(("Task loss", "Least squares"))
        if there
    ]


def _row(layer: str, found: list[dict[str, Numbers]], stated: tuple[float, float] | None, beside: bool) -> list[Any]:
    row: list[Any] = [layer]
    for way in WAYS:
        values = [one[way]["relative"] for one in found]
        row += [mean(values), half(values, [one[way]["se"] for one in found])]
    if beside:
        row += [stated[1], stated[0]] if stated else [None, None]
    return row


def _beyond(layers: list[str], means: dict[str, list[Numbers]]) -> Table:
    names = {"cka": "CKA", "r2": "R²", **BEHAVIOUR}
    rows: list[list[Any]] = [
        [layer, WAYS[way], *(means[way][i][name] for name in names)] for i, layer in enumerate(layers) for way in WAYS
    ]
    return Table("behaviour", "Beyond accuracy", ["Layer", "Stitch", *names.values()], rows)


def _paper_table() -> Table:
    rows: list[list[Any]] = [
        [network, layer, direct, task]
        for network, stated in paper.DIRECT_VS_TASK.items()
        for layer, (task, direct) in stated.items()
    ]
    columns = ["Network", "Layer", "Least squares", "Task loss"]
    title = "The paper’s numbers, of its networks on CIFAR-10"
    return Table("paper", title, columns, rows, columns_of_paper=columns[2:])


def _places(layers: list[str]) -> list[float]:
    return [float(i) for i in range(len(layers))]
