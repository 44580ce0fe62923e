"""Where training the stitch starts: least squares, at random, from a permutation, from a rotation.

Each start is trained again and again, with other draws and another order of the samples every time. Stitches of one
run train side by side, on the same batches. Figure 6 of Csiszárik et al. 2021: random starts sometimes end in a bad
minimum, least squares never does.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from stitchkern.matching import evaluate, match_tasks
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
    words,
)
from stitchkern.studies.study.means import mean
from stitchkern.studies.study.result import Cell

INITS = {
    "least_squares": "Least squares",
    "procrustes": "Procrustes",
    "random_permutation": "Random permutation",
    "random": "Random",
}
#: a run this far below the best one at its layer, in relative accuracy, ended in a bad minimum
BAD = 0.05

#: relative accuracy and cross-entropy at the end, of one run
Ends = dict[str, tuple[float, float]]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or networks.some_layers(options.either(2, 1))
    runs = options.repeats or options.either(6, 2)
    found: dict[str, list[Ends]] = {layer: [] for layer in layers}
    pair = networks.pairs[0]
    for layer in layers:
        for seed in range(runs):
            unit = partial(_run, pair, layer, seed, data, options)
            found[layer].append(options.keep(pair, unit, layer=layer, seed=seed))
    return _result(pair, runs, found)


def _run(pair: NetworkPair, layer: str, seed: int, data: FitAndTest, options: Options, checkpoint: Path) -> Ends:
    """Stitches from every start, on the same batches."""
    configs = [{"init": init, "seed": seed, "name": name} for init, name in INITS.items()]
    matches = match_tasks(
        *pair.models, layer, data.fit, configs, epochs=options.epochs, seed=seed, checkpoint=checkpoint
    )
    stitches = {(layer, layer, init): match.stitch for init, match in zip(INITS, matches, strict=True)}
    tested = evaluate(*pair.models, stitches, data.test)
    return {
        init: (tested.relative[layer, layer, init], match.history.loss[-1])
        for init, match in zip(INITS, matches, strict=True)
    }


def _result(pair: NetworkPair, runs: int, found: dict[str, list[Ends]]) -> StudyResult:
    layers = list(found)
    best = {layer: max(one[init][0] for one in ends for init in INITS) for layer, ends in found.items()}
    bad = {init: mean(_bad(found[layer], init, best[layer]) for layer in layers) for init in INITS}
    means = {init: mean(one[init][0] for layer in layers for one in found[layer]) for init in INITS}
    return StudyResult(
        headline=f"{bad['random']:.0%} of the runs that start at random end more than {100 * BAD:.0f} points below the "
        f"best; of those that start at least squares, {bad['least_squares']:.0%}.",
        lede=f"{runs} runs of each start at {'each of ' if len(layers) > 1 else ''}{', '.join(layers)}, between "
        f"{pair.front.name} and {pair.end.name}, with other draws and another order of the samples in each.",
        figures=[Figure(INITS[init], f"{means[init]:.3f}", "mean relative accuracy") for init in INITS],
        curves=[
            Curves(
                "runs", "Relative accuracy of every run", "run, from the worst to the best", "relative accuracy",
                [Panel(layer, [_sorted(found[layer], init) for init in INITS]) for layer in layers],
            )
        ],
        tables=[_table(found, best)],
        definitions=[
            words.ACCURACY, words.TASK_LOSS,
            ("Least squares, start", "All runs start at one map and differ in the order of the samples alone.", ""),
            ("Procrustes, start", "The closest rotation; likewise.", ""),
            ("Random permutation, start", "One channel of the front for each of the end, at random.", ""),
            ("Random, start", "Weights and biases drawn as torch draws those of a linear layer.", "uniform in ± 1/√p"),
            ("Bad runs", f"Share of runs that end more than {BAD} below the best run at their layer.", ""),
            ("Paper", "Figure 6, without a number: of 50 random starts some end in a bad minimum, of 50 least-squares "
             "starts none.", ""),
        ],
    )  # fmt: skip


def _bad(ends: list[Ends], init: str, best: float) -> float:
    return mean(float(one[init][0] < best - BAD) for one in ends)


def _sorted(ends: list[Ends], init: str) -> Line:
    values = sorted(one[init][0] for one in ends)
    return Line(INITS[init], [float(i) for i in range(1, len(values) + 1)], values)


def _table(found: dict[str, list[Ends]], best: dict[str, float]) -> Table:
    rows: list[list[Cell]] = []
    for layer, ends in found.items():
        for init, name in INITS.items():
            values, losses = ([one[init][i] for one in ends] for i in (0, 1))
            spread = statistics.stdev(values) if len(values) > 1 else None
            rows.append(
                [
                    layer,
                    name,
                    mean(values),
                    spread,
                    min(values),
                    max(values),
                    mean(losses),
                    _bad(ends, init, best[layer]),
                ]
            )
    columns = ["Layer", "Start", "Mean", "Std. dev.", "Worst", "Best", "Cross-entropy", "Bad runs"]
    return Table(
        "starts", "Relative accuracy by start", columns, rows, "Cross-entropy: in the last epoch, to the end’s own."
    )
