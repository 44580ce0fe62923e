"""Are good stitches connected? Straight lines between stitches from different starts, and the plane through three.

Stitches of one layer are trained for the task from several starts. Between every two of them the weights are
interpolated; the barrier is how far the loss rises above the straight line between the losses at the ends. Of three
stitches, the loss is mapped over the plane through them. Figure 11 of Csiszárik et al. 2021: lines stay good, except
on the first three layers.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stitchkern.matching import along_path, match_tasks
from stitchkern.nn import Stitch
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import (
    Curves,
    Figure,
    Line,
    Matrix,
    NetworkPair,
    Networks,
    Options,
    Panel,
    StudyResult,
    Table,
    words,
)
from stitchkern.studies.study.means import mean

Point = tuple[Tensor, Tensor]
Found = dict[str, Any]
#: of random starts, which have a longer way to go than the paper's rate takes them in so many epochs
RANDOM_RATE = 1e-2
#: the plane reaches so far beyond the three stitches, as a share of what they span
MARGIN = 0.3


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or options.either(networks.layers, networks.some_layers(2))
    flat = [layer for layer in networks.some_layers(options.either(3, 1)) if layer in layers] or layers[:1]
    starts = _starts(options.repeats or options.either(3, 2))
    found: dict[str, list[Found]] = {layer: [] for layer in layers}
    pairs = networks.pairs
    for pair in pairs:
        for layer in layers:
            unit = partial(_layer, pair, layer, starts, layer in flat and pair is pairs[0], data, options)
            found[layer].append(
                options.keep(pair, unit, layer=layer, starts=list(starts), flat=flat, first=pair is pairs[0])
            )
    return _result(list(starts), flat, found, len(pairs))


def _starts(random: int) -> dict[str, dict[str, Any]]:
    """By name; random ones first after least squares, since three are needed for a plane."""
    return {
        "least squares": {"init": "least_squares"},
        **{f"random {seed}": {"init": "random", "seed": seed, "learning_rate": RANDOM_RATE} for seed in range(random)},
        "Procrustes": {"init": "procrustes"},
    }


def _layer(
    pair: NetworkPair,
    layer: str,
    starts: dict[str, dict[str, Any]],
    plane: bool,
    data: FitAndTest,
    options: Options,
    checkpoint: Path,
) -> Found:
    trained = match_tasks(
        *pair.models, layer, data.fit, [{**start, "name": name} for name, start in starts.items()],
        epochs=options.epochs, checkpoint=checkpoint,
    )  # fmt: skip
    points = [_point(one.stitch) for one in trained]
    steps = options.either(11, 5)
    shares = torch.linspace(0, 1, steps).tolist()
    twos = list(itertools.combinations(range(len(points)), 2))
    maps = [_stitch(_between(points[i], points[j], share)) for i, j in twos for share in shares]
    if plane:
        grid, axes, places = _plane(points[:3], options.either(15, 7))
        maps += [_stitch(point) for point in grid]
    tested = along_path(*pair.models, layer, maps, data.test)
    lines = len(twos) * steps
    found: Found = {
        "shares": shares,
        "twos": [list(two) for two in twos],
        "loss": tested.loss[:lines].view(len(twos), steps).tolist(),
        "relative": tested.relative[:lines].view(len(twos), steps).tolist(),
    }
    if plane:
        side = len(axes[0])
        found["plane"] = {
            "x": axes[0],
            "y": axes[1],
            "places": places,
            "loss": tested.loss[lines:].view(side, side).tolist(),
            "relative": tested.relative[lines:].view(side, side).tolist(),
        }
    return found


def _point(stitch: Any) -> Point:
    return stitch.weight.detach().double(), stitch.bias.detach().double()


def _between(a: Point, b: Point, share: float) -> Point:
    return torch.lerp(a[0], b[0], share), torch.lerp(a[1], b[1], share)


def _stitch(point: Point) -> Stitch:
    return Stitch.from_affine(*point)


def _plane(points: list[Point], count: int) -> tuple[list[Point], tuple[list[float], list[float]], list[list[float]]]:
    """Points (rows from above, columns from the left) of the plane through three, its axes, and where the three lie.

    Distances in the plane are those of (W, b): the first stitch is the origin, the second lies on the first axis.
    """
    first, second, third = (torch.cat([w, b[:, None]], 1) for w, b in points)
    across = (second - first) / (second - first).norm().clamp(min=torch.finfo(torch.float64).tiny)
    up = third - first
    along = float((up * across).sum())
    up = up - along * across
    height = float(up.norm())
    up = up / (height or 1.0)
    places = [[0.0, 0.0], [float((second - first).norm()), 0.0], [along, height]]
    axes = []
    for values in zip(*places, strict=True):
        reach = MARGIN * (max(values) - min(values))
        axes.append(torch.linspace(min(values) - reach, max(values) + reach, count).tolist())
    x, y = axes
    y = y[::-1]
    grid = [first + a * across + b * up for b in y for a in x]
    return [(point[:, :-1].contiguous(), point[:, -1].contiguous()) for point in grid], (x, y), places


def _barrier(loss: list[float], shares: list[float]) -> float:
    """How far the loss rises above the line between its ends (Frankle et al. 2020)."""
    return max(value - (1 - share) * loss[0] - share * loss[-1] for value, share in zip(loss, shares, strict=True))


def _result(starts: list[str], flat: list[str], found: dict[str, list[Found]], pairs: int) -> StudyResult:
    layers = list(found)
    barriers = {
        layer: [max(_barrier(loss, one["shares"]) for loss in one["loss"]) for one in ones]
        for layer, ones in found.items()
    }
    # what interpolation loses against the worse of both ends: a bad end is no fault of the line
    drops = {
        layer: [max(min(line[0], line[-1]) - min(line) for line in one["relative"]) for one in ones]
        for layer, ones in found.items()
    }
    good = [layer for layer in layers if mean(drops[layer]) < 0.05]
    worst = max(layers, key=lambda layer: mean(barriers[layer]))
    return StudyResult(
        headline=f"Straight lines between stitches lose less than 5 points of relative accuracy at {len(good)} of "
        f"{len(layers)} layers; the highest barrier is at {worst}.",
        lede=f"Stitches trained for the task from {len(starts)} starts ({', '.join(starts)}), and everything on the "
        f"straight line between every two of them. Means over {words.counted(pairs, 'pair')} of networks.",
        figures=[
            Figure("Lines that stay good", f"{len(good)} of {len(layers)}", "layers, less than 5 points lost"),
            Figure("Highest barrier", f"{mean(barriers[worst]):.3f}", f"of the loss, at {worst}"),
            Figure("Largest loss on a line", f"{max(map(mean, drops.values())):.3f}", "of relative accuracy"),
        ],
        curves=[
            Curves("lines", "Relative accuracy on the line from least squares to each other stitch",
                   "share of the other stitch", "relative accuracy",
                   [Panel(layer, _lines(starts, found[layer], "relative")) for layer in layers]),
            Curves("barriers", "Highest barrier by layer", "stitched layer, from input to output",
                   "barrier of the loss",
                   [Panel("", [Line("Highest of all lines", [float(i) for i in range(len(layers))],
                                    [mean(barriers[layer]) for layer in layers])])], ticks=layers),
        ],
        matrices=[_surface(layer, found[layer][0]["plane"], starts, what) for layer in flat for what in SURFACES],
        tables=[
            Table(
                "layers", "Lines by layer",
                ["Layer", "Highest barrier", "Relative accuracy lost at most", "Lowest end", "Lowest on a line"],
                [[layer, mean(barriers[layer]), mean(drops[layer]),
                  mean(min(min(line[0], line[-1]) for line in one["relative"]) for one in found[layer]),
                  mean(min(min(line) for line in one["relative"]) for one in found[layer])] for layer in layers],
                note="The paper, in words: lines between good stitches stay good, except on the first three layers.",
            )
        ],
        definitions=[
            ("Line", "Weights and bias between two stitches a and b, 0 ≤ t ≤ 1.", "(1 − t) a + t b"),
            ("Barrier", "How far the cross-entropy to the labels of test samples rises above that between its ends.",
             "max over t of ℓ(t) − (1 − t) ℓ(0) − t ℓ(1)"),
            ("Plane", "All points of the plane through three stitches; its axes measure distances of (W, b).",
             "a + u (b − a) + v (c − a)"),
            words.TASK_LOSS, words.LEAST_SQUARES, words.ACCURACY, words.PAPER,
        ],
    )  # fmt: skip


SURFACES = {"loss": "cross-entropy", "relative": "relative accuracy"}


def _lines(starts: list[str], ones: list[Found], what: str) -> list[Line]:
    lines = []
    for other in range(1, len(starts)):
        at = ones[0]["twos"].index([0, other])
        values = [mean(column) for column in zip(*(one[what][at] for one in ones), strict=True)]
        lines.append(Line(starts[other], ones[0]["shares"], values))
    return lines


def _surface(layer: str, plane: Found, starts: list[str], what: str) -> Matrix:
    where = "; ".join(f"{name} at ({x:.2f}, {y:.2f})" for name, (x, y) in zip(starts, plane["places"], strict=False))
    name = f"{what}_{layer.replace('.', '_')}"
    return Matrix(
        name, f"{SURFACES[what].capitalize()} over the plane through three stitches, {layer}", SURFACES[what],
        [f"{v:.2f}" for v in plane["y"]], [f"{v:.2f}" for v in plane["x"]], plane[what],
        f"towards {starts[2]}", f"towards {starts[1]}",
        f"Of the first pair; across and upwards, distances of (W, b): {where}.",
    )  # fmt: skip
