"""Similarity while the stitch is trained: it falls while the function gets better.

A stitch starts as the least-squares map, the one of highest R², and is trained for the task. After each epoch the
cross-entropy to the end's probabilities over all data is set beside CKA and R² of the stitched activation with the
end's own. Figure 4 of Csiszárik et al. 2021.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from stitchkern.matching import evaluate, match_direct, match_task
from stitchkern.nn import Stitch
from stitchkern.solvers import AffineMap
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
from stitchkern.studies.study.means import mean

CURVES = {"cross-entropy": "Cross-entropy", "cka": "CKA", "r2": "R²"}
Course = dict[str, Any]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or options.either(networks.layers, networks.some_layers(2))
    found: dict[str, list[Course]] = {layer: [] for layer in layers}
    for pair in networks.pairs:
        starts = match_direct(*pair.models, layers, data.fit)
        for layer in layers:
            unit = partial(_course, pair, layer, starts[layer], data, options)
            found[layer].append(options.keep(pair, unit, layer=layer))
    return _result(networks, found)


def _course(
    pair: NetworkPair, layer: str, start: AffineMap, data: FitAndTest, options: Options, checkpoint: Path
) -> Course:
    model = match_task(
        *pair.models, layer, data.fit, init=start, validation=data.fit, epochs=options.epochs, checkpoint=checkpoint
    )
    trained: Any = model.stitch
    direct = Stitch.from_affine(start.weight.to(trained.weight), start.bias.to(trained.weight))
    stitches = {(layer, layer, "before"): direct, (layer, layer, "after"): trained}
    tested = evaluate(*pair.models, stitches, data.test)
    history: Any = model.history
    loss = history.validation_loss
    return {
        "cross-entropy": loss,
        "cka": history.cka,
        "r2": history.r2,
        "kept": loss.index(min(loss)),  # the state that is returned
        "relative": [tested.relative[key] for key in stitches],
    }


def _result(networks: Networks, found: dict[str, list[Course]]) -> StudyResult:
    layers, pairs = list(found), len(networks.pairs)
    rows = {layer: _row(courses) for layer, courses in found.items()}
    fell = {name: [layer for layer in layers if rows[layer][i][1] < rows[layer][i][0]] for i, name in enumerate(CURVES)}
    parted = [layer for layer in layers if all(layer in fell[name] for name in CURVES)]
    epochs = list(range(max(len(course["cka"]) for courses in found.values() for course in courses)))
    x = [float(epoch) for epoch in epochs]

    def panels(names: list[str]) -> list[Panel]:
        return [
            Panel(layer, [Line(CURVES[name], x, _mean_course(found[layer], name, len(x))) for name in names])
            for layer in layers
        ]

    return StudyResult(
        headline=f"At {len(parted)} of {len(layers)} layers the stitched activation becomes less similar to the end’s "
        "own while the stitched network comes closer to the end network.",
        lede="The stitch starts as the least-squares map and is trained for the task. Means over "
        f"{words.counted(pairs, 'pair')} of networks.",
        figures=[
            Figure(f"{what} falls at", f"{len(fell[name])} of {len(layers)}", "layers") for name, what in CURVES.items()
        ],
        curves=[
            Curves("similarity", "Similarity by epoch", "epoch", "CKA, R²", panels(["cka", "r2"])),
            Curves("loss", "Cross-entropy to the end’s probabilities by epoch", "epoch", "cross-entropy",
                   panels(["cross-entropy"]), note="Over all samples that the stitch is trained on."),
        ],
        tables=[
            Table(
                "layers", "Before and after training",
                ["Layer", *(f"{what}, {when}" for what in (*CURVES.values(), "Relative accuracy") for when in WHEN)],
                [[layer, *(value for pair in rows[layer] for value in pair)] for layer in layers],
            ),
            Table(
                "paper", "The paper’s numbers: Tiny-10, layer 3, 5,000 iterations", ["Quantity", *WHEN],
                [[CURVES[name], *paper.SIMILARITY_WHILE_TRAINING[name]] for name in CURVES],
                columns_of_paper=list(WHEN),
                note="It divides cross-entropies by the number of classes as well.",
            ),
        ],
        definitions=[words.TASK_LOSS, words.LEAST_SQUARES, words.CKA, words.R2, words.ACCURACY, words.PAPER],
    )  # fmt: skip


WHEN = ("before", "after")


def _row(courses: list[Course]) -> list[tuple[float, float]]:
    """(before, after) of each of `CURVES` and of relative accuracy; after is the state that was kept."""
    found = [tuple(mean(c[name][at(c)] for c in courses) for at in (_first, _kept)) for name in CURVES]
    return [(a, b) for a, b in [*found, tuple(mean(c["relative"][at] for c in courses) for at in (0, 1))]]


def _first(course: Course) -> int:
    return 0


def _kept(course: Course) -> int:
    return int(course["kept"])


def _mean_course(courses: list[Course], name: str, length: int) -> list[float]:
    """A course that diverged ended early; its last value stands for what would follow."""
    return [mean(course[name][min(i, len(course[name]) - 1)] for course in courses) for i in range(length)]
