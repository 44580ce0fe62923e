"""Low CKA at full function: a network stitched to itself, with CKA as a penalty.

Front and end are one network and the stitch starts next to the identity, where CKA is 1. It is trained for the task
with c·CKA added to the loss: how dissimilar can an activation become that the end still works with? Figure 5 of
Csiszárik et al. 2021 (there with c = 0.1). At the identity itself CKA is largest, so that its gradient is zero; the
start is therefore off by noise of 1 % of a weight.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stitchkern.matching import behaviour, evaluate, match_tasks
from stitchkern.models.taps import device_of, frozen, layer_shapes, map_tensors
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import (
    Curves,
    Figure,
    Line,
    Network,
    Networks,
    Options,
    Panel,
    StudyResult,
    Table,
    paper,
    words,
)
from stitchkern.studies.study.means import mean

NOISE = 0.01
LEARNING_RATE, QUICK_LEARNING_RATE = 3e-3, 1e-2
#: what counts as low similarity and as full function
LOW, FULL = 0.75, 0.95
Run = dict[str, Any]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or networks.some_layers(options.either(3, 1))
    penalties = options.either([0.0, 0.1, 0.3, 1.0, 3.0], [0.0, 0.1, 1.0])
    some = networks.all[: options.either(2, 1)]
    found: dict[str, list[list[Run]]] = {layer: [] for layer in layers}
    for network in some:
        for layer in layers:
            unit = partial(_runs, network, layer, penalties, data, options)
            found[layer].append(options.keep(network, unit, layer=layer))
    epochs = f"{_epochs(options)} epochs, learning rate {_learning_rate(options):g}"
    return replace(_result(penalties, found, len(some)), made={"Task-loss training": epochs})


def _runs(
    network: Network, layer: str, penalties: list[float], data: FitAndTest, options: Options, checkpoint: Path
) -> list[Run]:
    """One for each penalty; all are trained together."""
    model = network.model
    channels = _channels(model, layer, data)
    noise = torch.randn(channels, channels, generator=torch.Generator().manual_seed(0))
    start = torch.eye(channels) + NOISE * noise, torch.zeros(channels)
    start = start[0].to(device_of(model)), start[1].to(device_of(model))
    found = match_tasks(
        model, model, layer, data.fit, [{"init": start, "cka": c, "name": f"CKA penalty {c:g}"} for c in penalties],
        epochs=_epochs(options), learning_rate=_learning_rate(options),
        checkpoint=checkpoint,
    )  # fmt: skip
    stitches = {(layer, layer, i): one.stitch for i, one in enumerate(found)}
    tested = evaluate(model, model, stitches, data.test)
    beyond = behaviour(model, model, stitches, data.test)
    return [
        {
            "cka": one.history.cka,
            "r2": one.history.r2[-1],
            "relative": tested.relative[key],
            "se": tested.relative_se[key],
            "agreement": beyond[key].agreement,
            "energy": beyond[key].energy_auroc,
        }
        for key, one in zip(stitches, found, strict=True)
    ]


def _epochs(options: Options) -> int:
    """Half as many as other studies take: CKA falls fast."""
    return int(options.either(max(options.epochs // 2, 1), options.epochs))


def _learning_rate(options: Options) -> float:
    return float(options.either(LEARNING_RATE, QUICK_LEARNING_RATE))


def _channels(model: torch.nn.Module, layer: str, data: FitAndTest) -> int:
    inputs = map_tensors(next(iter(data.fit))[0], lambda tensor: tensor.to(device_of(model)))
    with frozen(model):
        shape = layer_shapes(model, inputs).get(layer)
    return (
        1 if shape is None else shape[0] if len(shape) == 3 else shape[-1]
    )  # without a shape match_tasks will say why


def _result(penalties: list[float], found: dict[str, list[list[Run]]], networks: int) -> StudyResult:
    layers = list(found)

    def over(layer: str, at: int, name: str) -> float:
        return mean(_last(runs[at][name]) for runs in found[layer])

    points = [(over(layer, i, "cka"), over(layer, i, "relative"), layer, c) for layer in layers
              for i, c in enumerate(penalties)]  # fmt: skip
    reached = [layer for layer in layers if any(p[2] == layer and p[0] < LOW and p[1] > FULL for p in points)]
    least = min((p for p in points if p[1] > FULL), default=min(points))
    return StudyResult(
        headline=f"CKA falls to {least[0]:.2f} while the stitched network keeps {least[1]:.1%} of the accuracy "
        f"(layer {least[2]}, penalty {least[3]:g} CKA).",
        lede="Each network is stitched to itself. The stitch starts next to the identity and is trained for the task "
        f"with c·CKA added to the loss. Means over {words.counted(networks, 'network')}.",
        figures=[
            Figure("Lowest CKA", f"{least[0]:.3f}", f"at relative accuracy {least[1]:.3f}"),
            Figure(f"CKA below {LOW}, accuracy above {FULL}", f"{len(reached)} of {len(layers)}", "layers"),
            Figure("The paper", f"{paper.LOW_CKA['cka'][1]:.3f}",
                   f"at relative accuracy {paper.LOW_CKA['relative accuracy'][1]:.3f}"),
        ],
        curves=[
            Curves(
                "trade", "Relative accuracy against CKA", "CKA of the stitched activation with the end’s own",
                "relative accuracy",
                [Panel("", [
                    *(_trade(layer, sorted(p[:2] for p in points if p[2] == layer)) for layer in layers),
                    Line("paper, ResNet, layer 2.0", list(paper.LOW_CKA["cka"]),
                         list(paper.LOW_CKA["relative accuracy"]), [], True),
                ])],
                note="A point for each penalty.",
            ),
            Curves(
                "course", "CKA by epoch", "epoch", "CKA",
                [Panel(layer, [_course(runs, i, f"c = {c:g}") for i, c in enumerate(penalties)])
                 for layer, runs in found.items()],
            ),
        ],
        tables=[
            Table(
                "penalties", "By layer and penalty",
                ["Layer", "c", "CKA", "R²", "Relative accuracy", "Agreement", "Energy AUROC"],
                [[layer, c, *(over(layer, i, name) for name in ("cka", "r2", "relative", "agreement", "energy"))]
                 for layer in layers for i, c in enumerate(penalties)],
            ),
            Table("paper", "The paper’s numbers: ResNet of width 3, layer 2.0, c = 0.1, 2 epochs",
                  ["Quantity", "Start", "End"],
                  [["CKA", *paper.LOW_CKA["cka"]], ["Relative accuracy", *paper.LOW_CKA["relative accuracy"]]],
                  columns_of_paper=["Start", "End"]),
        ],
        definitions=[
            words.CKA, words.R2, words.ACCURACY, words.AGREEMENT,
            ("Penalty", "Added to the cross-entropy to the end’s probabilities.", "c · CKA(W x, x)"),
            words.ENERGY, words.PAPER,
        ],
    )  # fmt: skip


def _trade(layer: str, points: list[tuple[float, float]]) -> Line:
    return Line(layer, [cka for cka, _ in points], [relative for _, relative in points])


def _last(value: Any) -> float:
    return float(value[-1] if isinstance(value, list) else value)


def _course(runs: list[list[Run]], at: int, name: str) -> Line:
    length = min(len(one[at]["cka"]) for one in runs)
    y = [mean(one[at]["cka"][i] for one in runs) for i in range(length)]
    return Line(name, [float(i) for i in range(length)], y)
