"""Weighted least squares: errors where the end's activation is large count more.

The least-squares map treats all positions alike, but a ReLU and a classifier do not. Each entry of the squared error
is weighted by a power of the end's activation, or less where a ReLU would cut it off; one reading of the data for
each rule. Appendix B of Csiszárik et al. 2021.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from stitchkern.matching import evaluate, match_direct
from stitchkern.nn import ChannelMap
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import (
    Curves,
    Figure,
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
from stitchkern.studies.study.two_ways import Numbers, line
from stitchkern.weighting import Weighting, power, threshold

PLAIN = "1"
RULES: dict[str, Weighting | None] = {
    PLAIN: None,
    "|y|": power(1),
    "y²": power(2),
    "y⁴": power(4),
    "1 for y > 0, else 0.1": threshold(0.0, below=0.1),
}
QUICK = (PLAIN, "|y|", "y⁴")


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or networks.layers
    rules = options.either(list(RULES), list(QUICK))
    found: dict[str, list[dict[str, Numbers]]] = {rule: [] for rule in rules}
    for pair in networks.pairs:
        for rule in rules:
            unit = partial(_by_layer, pair, layers, rule, data)
            found[rule].append(options.keep(pair, unit, layers=layers, rule=rule))
    return _result(networks, layers, found)


def _by_layer(pair: NetworkPair, layers: list[str], rule: str, data: FitAndTest, _: Path) -> dict[str, Numbers]:
    maps = match_direct(*pair.models, layers, data.fit, weighting=RULES[rule])
    like = next(pair.end.model.parameters())
    stitches: dict[tuple[str, str], ChannelMap] = {
        (layer, layer): fitted.to_module().to(like.device) for layer, fitted in maps.items()
    }
    tested = evaluate(*pair.models, stitches, data.test)
    return {
        layer: {"relative": tested.relative[layer, layer], "se": tested.relative_se[layer, layer]} for layer in layers
    }


def _result(networks: Networks, layers: list[str], found: dict[str, list[dict[str, Numbers]]]) -> StudyResult:
    means = {
        rule: {layer: mean(one[layer]["relative"] for one in pairs) for layer in layers}
        for rule, pairs in found.items()
    }
    gains = {
        (layer, rule): means[rule][layer] - means[PLAIN][layer] for rule in means if rule != PLAIN for layer in layers
    }
    (layer, rule), gain = max(gains.items(), key=lambda item: item[1])
    overall = {rule: mean(means[rule].values()) for rule in means}
    best = max(overall, key=overall.__getitem__)
    pairs, places = len(networks.pairs), range(len(layers))
    return StudyResult(
        headline=f"Weighted by {rule}, least squares keeps {means[rule][layer]:.1%} of the accuracy at {layer} instead "
        f"of {means[PLAIN][layer]:.1%}.",
        lede="Least squares in which large activations of the end count more, entry by entry, without any look at the "
        f"task. Means over {words.counted(pairs, 'pair')} of networks.",
        figures=[
            Figure("Largest gain", f"{gain:+.3f}", f"{layer}, weights {rule}"),
            Figure("Best weights over all layers", best, f"{overall[best]:.3f}"),
            Figure("Without weights", f"{overall[PLAIN]:.3f}", "mean over layers"),
            Figure("The paper’s gain", f"{paper.WEIGHTED[1] - paper.WEIGHTED[0]:+.3f}", "Tiny-10, layer 2, weights B⁴"),
        ],
        curves=[
            Curves(
                "layers", "Relative accuracy by layer", "stitched layer, from input to output", "relative accuracy",
                [Panel("", [line(f"weights {rule}", places, [[one[layer] for one in ones] for layer in layers])
                            for rule, ones in found.items()])],
                ticks=layers,
            )
        ],
        tables=[
            Table("layers", "Relative accuracy by weights", ["Layer", *means],
                  [_row(layer, (means[rule][layer] for rule in means)) for layer in layers]
                  + [_row("mean", overall.values())]),
            Table("paper", "The paper’s numbers: Tiny-10, layer 2", ["Weights", "Relative accuracy"],
                  [["1", paper.WEIGHTED[0]], ["B⁴", paper.WEIGHTED[1]]], columns_of_paper=["Relative accuracy"]),
        ],
        definitions=[
            ("Weighted least squares", "The affine map of least squared error, each entry weighted by ω, which depends "
             "on the end’s activation y.", "min over W, b of Σ ω(y) (W x + b − y)²"),
            words.ACCURACY, words.PAPER,
        ],
    )  # fmt: skip


def _row(name: str, values: Iterable[float]) -> list[Cell]:
    return [name, *values]
