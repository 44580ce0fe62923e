"""Do wider networks fit better? Stitches between networks of the same width, from narrow to wide.

On the digits, two networks of each width are trained here. Of networks that are named, every pair is one width, in
the order given. Figure 3 of Csiszárik et al. 2021: ResNet-20, width 1 to 4.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stitchkern.matching import evaluate, match_direct
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.layers import count_parameters
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
    digits_network,
    paper,
    words,
)
from stitchkern.studies.study.means import mean
from stitchkern.studies.study.networks import sources
from stitchkern.studies.study.two_ways import WAYS, Numbers, line, two_ways

WIDTHS, QUICK_WIDTHS = (0.25, 0.5, 1.0, 2.0), (0.5, 1.0)
EPOCHS, QUICK_EPOCHS = 20, 4
Found = dict[str, dict[str, Numbers]]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or networks.some_layers(options.either(3, 1))
    epochs = options.either(max(options.epochs // 2, 1), options.epochs)
    found: dict[str, Found] = {}
    accuracy: dict[str, list[float]] = {}
    pairs = _widths(data, options) if networks.kind == "digits" else {_size(pair): pair for pair in networks.pairs}
    for width, pair in pairs.items():
        found[width] = {
            layer: options.keep(pair, partial(_layer, pair, layer, data, epochs), layer=layer) for layer in layers
        }
        accuracy[width] = options.keep(
            pair, partial(_accuracy, pair, layers[0], data), part="accuracy", layer=layers[0]
        )
    result = _result(networks, layers, epochs, found, accuracy)
    return replace(result, made={"Networks": sources(pairs.values())})


def _widths(data: FitAndTest, options: Options) -> dict[str, NetworkPair]:
    """Networks of seeds 0 and 1, trained here or in an earlier run."""
    train: Any = data.fit
    pairs = {}
    epochs = options.either(EPOCHS, QUICK_EPOCHS)
    for width in options.either(WIDTHS, QUICK_WIDTHS):
        extra = {} if width == 1 else {"width": width}  # those of width 1 are the networks of other studies
        both = [
            digits_network(
                options.work,
                f"width {width:g}, seed {seed}",
                seed,
                train,
                epochs=epochs,
                device=options.device,
                **extra,
            )
            for seed in (0, 1)
        ]
        pairs[f"{width:g}"] = NetworkPair(*both)
    return pairs


def _size(pair: NetworkPair) -> str:
    return f"{pair.name} ({count_parameters(pair.end.model):,} parameters)"


def _layer(pair: NetworkPair, layer: str, data: FitAndTest, epochs: int, checkpoint: Path) -> dict[str, Numbers]:
    start = match_direct(*pair.models, [layer], data.fit)[layer]
    return two_ways(pair, layer, start, data, epochs, checkpoint)


def _accuracy(pair: NetworkPair, layer: str, data: FitAndTest, _: Path) -> list[float]:
    """Of front and end by themselves."""
    start = match_direct(*pair.models, [layer], data.fit)[layer]
    like = next(pair.end.model.parameters())
    found = evaluate(*pair.models, {(layer, layer): start.to_module().to(like.device)}, data.test)
    return [found.front_accuracy, found.end_accuracy]


def _result(
    networks: Networks, layers: list[str], epochs: int, found: dict[str, Found], accuracy: dict[str, list[float]]
) -> StudyResult:
    widths = list(found)
    overall = {
        way: [mean(found[width][layer][way]["relative"] for layer in layers) for width in widths] for way in WAYS
    }
    places = [float(i) for i in range(len(widths))]
    of_digits = networks.kind == "digits"
    return StudyResult(
        headline="From the narrowest to the widest networks, the mean relative accuracy goes from "
        f"{overall['task'][0]:.1%} to {overall['task'][-1]:.1%} with task loss, and from {overall['direct'][0]:.1%} to "
        f"{overall['direct'][-1]:.1%} with least squares.",
        lede=f"{'Two networks of each width' if of_digits else 'Each pair of networks'}, stitched at "
        f"{words.counted(len(layers), 'layer')}; task loss for {epochs} epochs from the least-squares map.",
        figures=[
            Figure("Narrowest, task loss", f"{overall['task'][0]:.3f}", "mean relative accuracy"),
            Figure("Widest, task loss", f"{overall['task'][-1]:.3f}", "mean relative accuracy"),
            Figure("Narrowest, least squares", f"{overall['direct'][0]:.3f}", "mean relative accuracy"),
            Figure("Widest, least squares", f"{overall['direct'][-1]:.3f}", "mean relative accuracy"),
        ],
        curves=[
            Curves(
                "widths", "Relative accuracy by width", "width" if of_digits else "networks", "relative accuracy",
                [Panel(layer, [line(name, places, [[found[width][layer][way]] for width in widths])
                               for way, name in reversed(WAYS.items())]) for layer in layers],
                ticks=widths, note="Bars: 95 % interval from the test samples.",
            ),
            Curves(
                "similarity", "CKA by width", "width" if of_digits else "networks", "CKA of the stitched activation",
                [Panel(layer, [Line(name, places, [found[width][layer][way]["cka"] for width in widths])
                               for way, name in reversed(WAYS.items())]) for layer in layers], ticks=widths,
            ),
        ],
        tables=[
            Table(
                "widths", "Relative accuracy", ["Width" if of_digits else "Networks", "Accuracy of front and end",
                *(f"{layer}, {name.lower()}" for layer in layers for name in WAYS.values())],
                [[width, mean(accuracy[width]),
                  *(found[width][layer][way]["relative"] for layer in layers for way in WAYS)] for width in widths],
            ),
            Table(
                "paper", "The paper’s numbers: ResNet-20, task loss", ["Layer", *(f"Width {w}" for w in paper.WIDTHS)],
                [[layer, *values] for layer, values in (*paper.WIDTH.items(), ("accuracy", paper.WIDTH_ACCURACY))],
                columns_of_paper=[f"Width {w}" for w in paper.WIDTHS],
            ),
        ],
        definitions=[
            ("Width", "Channels of every layer, as a multiple of those of the network that other studies use.", ""),
            words.ACCURACY, words.LEAST_SQUARES, words.TASK_LOSS, words.CKA, words.PAPER,
        ],
    )  # fmt: skip
