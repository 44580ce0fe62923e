"""How few connections carry a representation over: relative accuracy by share of zeros in the stitch.

The Lasso path is the exact answer to the direct question, for every share of zeros at once; debiased, the connections
that it chose have their least-squares weights. Beside it the functional question: training for the task with the 1-norm
as a penalty. Figure 8 of Csiszárik et al. 2021, who trained both with a penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from stitchkern.matching import along_path, collect_moments, match_tasks
from stitchkern.nn import Stitch
from stitchkern.solvers import lasso_path, least_squares
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
from stitchkern.studies.study.result import Cell

#: below it a weight counts as zero, as in the paper; the path and the proximal step give exact zeros anyway
THRESHOLD = 1e-4
#: weights of the penalty λ Σ|W| in training, trained side by side
PENALTIES = (0.0, 1e-2, 3e-2, 1e-1, 2e-1, 5e-1, 1.0)
QUICK_PENALTIES = (0.0, 1e-1, 1.0)
WAYS = {"lasso": "Lasso path", "debiased": "Lasso path, debiased", "task": "Task loss with 1-norm"}
#: what the table lists; those of the paper among them
SHARES = (0.0, 0.25, 0.449, 0.565, 0.7, 0.798, 0.837, 0.9, 0.95, 0.968, 0.974, 0.99)
#: the share that the headline speaks of
SAID = 0.8

DEFINITIONS = [
    (
        "Lasso path",
        "The map of least squared error plus α times the sum of its weights’ magnitudes, at the optimum, for α "
        "from the smallest that makes all of them zero down to none.",
        "min over M of ½ E‖M (x − x̄) − (y − ȳ)‖² + α Σ |M|",
    ),
    ("Debiased", "Each channel of the end by least squares from the channels that the Lasso gave it.", ""),
    (
        "Task loss with 1-norm",
        f"Trained with λ Σ |W| by proximal steps, λ from {PENALTIES[1]:g} to {PENALTIES[-1]:g}; what is below "
        f"{THRESHOLD:g} in magnitude is then set to zero.",
        "min over W, b of E ℓ(end(W x + b), softmax(end(y))) + λ Σ |W|",
    ),
]

#: (share of zeros, relative accuracy, R²) of each map, ascending in the first
Points = list[tuple[float, float, float]]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or [networks.layers[min(2, len(networks.layers) - 1)]]
    found: dict[str, list[dict[str, Points]]] = {layer: [] for layer in layers}
    for pair in networks.pairs:
        for layer in layers:
            unit = partial(_direct, pair, layer, data, options.either(60, 12))
            direct = options.keep(pair, unit, way="direct", layer=layer)
            task = options.keep(pair, partial(_task, pair, layer, data, options), way="task", layer=layer)
            found[layer].append({**direct, "task": task})
    return _result(networks, found)


def _direct(pair: NetworkPair, layer: str, data: FitAndTest, count: int, _: Path) -> dict[str, Points]:
    """Of `count` α down from the smallest one with M = 0, and of α = 0."""
    moments = collect_moments(*pair.models, [(layer, layer)], data.fit)[layer, layer]
    path = lasso_path(moments, n_alphas=count, eps=1e-4)
    full = least_squares(moments)
    found = {}
    for way, maps in (
        ("lasso", [path[i] for i in range(len(path))]),
        ("debiased", [path.debias(i) for i in range(len(path))]),
    ):
        shares = [*path.sparsity.tolist(), float((full.weight == 0).double().mean())]
        tested = along_path(*pair.models, layer, [*maps, full], data.test)
        found[way] = _points(shares, tested.relative.tolist(), [*(one.r2 for one in maps), full.r2])
    return found


def _task(pair: NetworkPair, layer: str, data: FitAndTest, options: Options, checkpoint: Path) -> Points:
    configs = [{"l1": weight, "name": f"λ = {weight:g}"} for weight in options.either(PENALTIES, QUICK_PENALTIES)]
    matches = match_tasks(*pair.models, layer, data.fit, configs, epochs=options.epochs, checkpoint=checkpoint)
    stitches = []
    for match in matches:
        weight, bias = (t.detach() for t in match.stitch.parameters())
        stitches.append(Stitch.from_affine(weight.where(weight.abs() >= THRESHOLD, 0.0), bias))
    shares = [float((next(one.parameters()) == 0).double().mean()) for one in stitches]
    tested = along_path(*pair.models, layer, stitches, data.test)
    return _points(shares, tested.relative.tolist(), [match.history.r2[-1] for match in matches])


def _points(shares: Sequence[float], relative: Sequence[float], r2: Sequence[float]) -> Points:
    return sorted(zip(shares, relative, r2, strict=True))


def _at(found: list[dict[str, Points]], way: str, shares: Sequence[float]) -> list[float]:
    """Mean over pairs, between the points of each; NaN beyond the sparsest.

    The densest one stands for 0: a few weights without a penalty are below the threshold by chance.
    """
    curves = []
    for one in found:
        x, y = ([point[i] for point in one[way]] for i in (0, 1))
        curves.append(np.interp(shares, x, y, right=np.nan))
    return [mean(column) for column in np.array(curves).T.tolist()]


def _result(networks: Networks, found: dict[str, list[dict[str, Points]]]) -> StudyResult:
    layers = list(found)
    first = found[layers[0]]
    kept = {way: _at(first, way, [SAID])[0] for way in WAYS}
    beside = networks.kind == paper.TINY10
    return StudyResult(
        headline=_headline(layers[0], kept),
        lede="The exact Lasso path of the direct problem, its debiased maps, and stitches trained for the task with "
        f"the 1-norm as a penalty. Means over {words.counted(len(networks.pairs), 'pair')} of networks.",
        figures=[
            Figure(name, f"{kept[way]:.3f}", f"at {SAID:.0%} zeros") 
            for way, name in WAYS.items() if kept[way] == kept[way]
        ],
        curves=[
            Curves(
                "sparsity", "Relative accuracy by share of zeros", "share of zeros in the stitch", "relative accuracy",
                [Panel(layer if len(layers) > 1 else "", _lines(found[layer], beside)) for layer in layers],
                note="Dashed: read off the paper, for layer 3 of Tiny-10 and all of CIFAR-10." if beside else "",
            ),
            Curves(
                "r2", "R² by share of zeros", "share of zeros in the stitch", "R²",
                [Panel(layer if len(layers) > 1 else "", _r2_lines(found[layer])) for layer in layers],
                note="The debiased map has the larger R² on the samples that it was fitted on, by definition.",
            ),
        ],
        tables=[_table(layer, found[layer], beside, len(layers) > 1) for layer in layers]
        + ([] if beside else [_paper_table()]),
        definitions=[
            words.ACCURACY,
            *DEFINITIONS, words.R2, words.PAPER,
        ],
    )  # fmt: skip


def _lines(found: list[dict[str, Points]], beside: bool) -> list[Line]:
    lines = [_line(found, way, 1) for way in WAYS]
    if beside:
        for name, like, points in (
            ("Direct, paper", "lasso", paper.SPARSITY_DIRECT),
            ("Task loss, paper", "task", paper.SPARSITY_TASK),
        ):
            x, y = (list(values) for values in zip(*points, strict=True))
            lines.append(Line(name, x, y, of_paper=True, like=WAYS[like]))
    return lines


def _r2_lines(found: list[dict[str, Points]]) -> list[Line]:
    return [_line(found, way, 2) for way in WAYS]


def _line(found: list[dict[str, Points]], way: str, what: int) -> Line:
    """Mean over pairs at the mean share, point by point: penalties are the same, relative to the largest of a pair."""
    x = [mean(one[way][i][0] for one in found) for i in range(len(found[0][way]))]
    y = [mean(one[way][i][what] for one in found) for i in range(len(found[0][way]))]
    return Line(WAYS[way], x, y)


def _table(layer: str, found: list[dict[str, Points]], beside: bool, several: bool) -> Table:
    stated = [dict(points) for points in (paper.SPARSITY_DIRECT, paper.SPARSITY_TASK)]
    columns = ["Share of zeros", *WAYS.values()]
    extra = ["Paper, direct", "Paper, task loss"] if beside else []
    rows: list[list[Cell]] = []
    for share, *values in zip(SHARES, *(_at(found, way, SHARES) for way in WAYS), strict=True):
        rows.append([share, *values, *(one.get(share) for one in stated if beside)])
    note = "Between the points of each curve; –: beyond the sparsest. At 0: the densest, least squares on the path."
    name = f"sparsity-{layer}" if several else "sparsity"
    return Table(name, f"Relative accuracy at {layer}", columns + extra, rows, note, extra)


def _paper_table() -> Table:
    rows: list[list[Cell]] = [
        [way, share, value]
        for way, points in (("Direct, by training", paper.SPARSITY_DIRECT), ("Task loss", paper.SPARSITY_TASK))
        for share, value in points
    ]
    columns = ["Stitch", "Share of zeros", "Relative accuracy"]
    return Table("paper", "The paper’s numbers, of Tiny-10 on CIFAR-10", columns, rows, columns_of_paper=columns[1:])


def _headline(layer: str, kept: dict[str, float]) -> str:
    found = f"At {layer}, a stitch with {SAID:.0%} zeros keeps {kept['lasso']:.1%} of the accuracy on the Lasso path"
    more = [f"{kept['debiased']:.1%} debiased"]
    if kept["task"] == kept["task"]:
        more.append(f"{kept['task']:.1%} where training for the task chose them")
    return f"{found}, {' and '.join(more)}."
