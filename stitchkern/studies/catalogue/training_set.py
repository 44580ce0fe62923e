"""What must two networks share? Stitches across training sets, optimisers, and with and without BatchNorm.

On the digits, networks are trained here: on disjoint halves of the data, with Adam and with SGD, with and without
BatchNorm; two seeds of the same recipe stand beside them. Of networks that are named, every pair is one case.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from stitchkern.matching import match_direct
from stitchkern.studies import digits
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import (
    Curves,
    Figure,
    Network,
    NetworkPair,
    Networks,
    Options,
    Panel,
    StudyResult,
    Table,
    digits_network,
    words,
)
from stitchkern.studies.study.means import mean
from stitchkern.studies.study.networks import sources
from stitchkern.studies.study.two_ways import WAYS, Numbers, line, two_ways

EPOCHS, QUICK_EPOCHS = 20, 4
#: recipes of networks: the seed, the half of the data (None: all of it), and options of `digits.train`
RECIPES: dict[str, tuple[int, int | None, dict[str, Any]]] = {
    "seed 0": (0, None, {}),
    "seed 1": (1, None, {}),
    "first half": (0, 0, {}),
    "second half": (1, 1, {}),
    "SGD": (1, None, {"optimizer": "sgd"}),
    "no BatchNorm": (1, None, {"batch_norm": False}),
}
CASES = {
    "same recipe": ("seed 0", "seed 1"),
    "disjoint halves": ("first half", "second half"),
    "Adam → SGD": ("seed 0", "SGD"),
    "SGD → Adam": ("SGD", "seed 0"),
    "BatchNorm → none": ("seed 0", "no BatchNorm"),
    "none → BatchNorm": ("no BatchNorm", "seed 0"),
}
Found = dict[str, dict[str, Numbers]]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or networks.some_layers(options.either(3, 1))
    pairs = _cases(data, options) if networks.kind == "digits" else {pair.name: pair for pair in networks.pairs}
    found: dict[str, Found] = {}
    for case, pair in pairs.items():
        starts = match_direct(*pair.models, layers, data.fit)
        found[case] = {}
        for layer in layers:
            unit = partial(two_ways, pair, layer, starts[layer], data, options.epochs)
            found[case][layer] = options.keep(pair, unit, layer=layer)
    result = _result(layers, found, networks.kind == "digits")
    return replace(result, made={"Networks": sources(pairs.values())})


def _cases(data: FitAndTest, options: Options) -> dict[str, NetworkPair]:
    made = {name: _network(name, data, options) for name in RECIPES}
    return {case: NetworkPair(made[front], made[end]) for case, (front, end) in CASES.items()}


def _network(name: str, data: FitAndTest, options: Options) -> Network:
    """As its recipe says, for as many steps on half of the data as on all of it."""
    seed, half, extra = RECIPES[name]
    whole: Any = data.fit
    batches = whole if half is None else digits.Batches(whole.inputs[half::2], whole.labels[half::2], whole.batch_size)
    epochs = options.either(EPOCHS, QUICK_EPOCHS) * (1 if half is None else 2)
    return digits_network(
        options.work,
        name,
        seed,
        batches,
        part="" if half is None else name,
        epochs=epochs,
        device=options.device,
        **extra,
    )


def _result(layers: list[str], found: dict[str, Found], of_digits: bool) -> StudyResult:
    cases = list(found)
    means = {
        case: {way: mean(found[case][layer][way]["relative"] for layer in layers) for way in WAYS} for case in cases
    }
    worst = min(cases, key=lambda case: means[case]["task"])
    halves = "disjoint halves" if of_digits else cases[-1]
    places = range(len(layers))
    return StudyResult(
        headline=f"Trained for the task, stitches keep {means[worst]['task']:.1%} of the accuracy or more in the mean "
        f"over layers, whatever the networks were trained with (least: {worst}).",
        lede="The same stitches between networks that share less and less: "
        f"{'; '.join(cases)}. Layers: {', '.join(layers)}.",
        figures=[
            Figure(f"Task loss, {cases[0]}", f"{means[cases[0]]['task']:.3f}", "mean over layers"),
            Figure(f"Task loss, {halves}", f"{means[halves]['task']:.3f}", "mean over layers"),
            Figure("Task loss, lowest", f"{means[worst]['task']:.3f}", worst),
            Figure("Least squares, lowest", f"{min(one['direct'] for one in means.values()):.3f}",
                   min(cases, key=lambda case: means[case]["direct"])),
        ],
        curves=[
            Curves(
                "layers", "Relative accuracy by layer", "stitched layer, from input to output", "relative accuracy",
                [Panel(case, [line(name, places, [[found[case][layer][way]] for layer in layers])
                              for way, name in reversed(WAYS.items())]) for case in cases],
                ticks=layers, note="Bars: 95 % interval from the test samples.",
            )
        ],
        tables=[
            Table(
                "cases", "Relative accuracy and similarity",
                ["Front → end", "Layer", *WAYS.values(), "CKA, least squares", "CKA, task loss", "R²"],
                [[case, layer, *(found[case][layer][way]["relative"] for way in WAYS),
                  *(found[case][layer][way]["cka"] for way in WAYS), found[case][layer]["direct"]["r2"]]
                 for case in cases for layer in layers],
            )
        ],
        definitions=[words.ACCURACY, words.LEAST_SQUARES, words.TASK_LOSS, words.CKA, words.R2],
    )  # fmt: skip
