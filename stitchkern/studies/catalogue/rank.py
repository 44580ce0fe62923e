"""Through how few channels a representation carries over: relative accuracy by rank of the stitch.

Reduced-rank regression gives the closest map of every rank from one decomposition; the task-loss stitches of a layer,
one for each rank, start from it and train side by side. Procrustes, the closest rotation, beside them. Figure 7 of
Csiszárik et al. 2021.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stitchkern.errors import SpecError
from stitchkern.matching import along_path, collect_moments, match_tasks
from stitchkern.solvers import procrustes, reduced_rank_path
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

#: relative accuracy by rank; 0 stands for no bound in "task", and for Procrustes in "direct"
ByRank = dict[int, float]


def run(networks: Networks, data: FitAndTest, options: Options) -> StudyResult:
    layers = options.layers or options.either(networks.layers, networks.some_layers(2))
    found: dict[str, list[tuple[ByRank, ByRank]]] = {layer: [] for layer in layers}
    for pair in networks.pairs:
        for layer in layers:
            direct = options.keep(pair, partial(_direct, pair, layer, data), way="direct", layer=layer)
            ranks = _ranks(max(direct), options.quick)
            if not ranks:
                raise SpecError(f"layer {layer!r} has one channel on a side, so there is no rank to choose")
            unit = partial(_task, pair, layer, ranks, data, options)
            found[layer].append((direct, options.keep(pair, unit, way="task", layer=layer, ranks=ranks)))
    return _result(networks, found)


def _ranks(most: int, quick: bool) -> list[int]:
    """Powers of two below the full rank, from 4 on; of so few that this says little, from 1."""
    ranks = [2**i for i in range(0 if most <= 8 else 2, most.bit_length()) if 2**i < most]
    return ranks[:1] if quick else ranks


def _direct(pair: NetworkPair, layer: str, data: FitAndTest, _: Path) -> ByRank:
    """Of the best map of every rank, and of Procrustes."""
    moments = collect_moments(*pair.models, [(layer, layer)], data.fit)[layer, layer]
    path = reduced_rank_path(moments)
    ranks = path.ranks.tolist()
    maps = [procrustes(moments), *(path.at(rank) for rank in ranks)]
    return dict(zip([0, *ranks], along_path(*pair.models, layer, maps, data.test).relative.tolist(), strict=True))


def _task(
    pair: NetworkPair, layer: str, ranks: list[int], data: FitAndTest, options: Options, checkpoint: Path
) -> ByRank:
    configs = [{"rank": rank, "name": f"rank {rank}"} for rank in ranks] + [{"name": "full rank"}]
    matches = match_tasks(*pair.models, layer, data.fit, configs, epochs=options.epochs, checkpoint=checkpoint)
    tested = along_path(*pair.models, layer, [match.stitch for match in matches], data.test)
    return dict(zip([*ranks, 0], tested.relative.tolist(), strict=True))


def _result(networks: Networks, found: dict[str, list[tuple[ByRank, ByRank]]]) -> StudyResult:
    layers = list(found)
    direct = {layer: _means([one for one, _ in found[layer]]) for layer in layers}
    task = {layer: _means([one for _, one in found[layer]]) for layer in layers}
    lowest = min(rank for one in task.values() for rank in one if rank)
    there = [layer for layer in layers if lowest in task[layer]]
    at_lowest = [mean(one[layer][lowest] for layer in there) for one in (direct, task)]
    beside = networks.kind == paper.TINY10
    return StudyResult(
        headline=f"Through {words.counted(lowest, 'channel')} the closest map keeps {at_lowest[0]:.1%} of the "
        f"accuracy; trained for the task, {at_lowest[1]:.1%}.",
        lede="Affine stitches whose matrix has a bounded rank: the closest one (reduced-rank regression), and the one "
        f"trained for the task. Means over {words.counted(len(networks.pairs), 'pair')} of networks.",
        figures=[
            Figure("Reduced rank", f"{at_lowest[0]:.3f}", f"at rank {lowest}"),
            Figure("Task loss", f"{at_lowest[1]:.3f}", f"at rank {lowest}"),
            Figure("Procrustes", f"{mean(one[0] for one in direct.values()):.3f}", "mean over layers"),
        ],
        curves=[
            Curves(
                "ranks", "Relative accuracy by rank", "rank of the stitch", "relative accuracy",
                [Panel(layer, _lines(layer, direct[layer], task[layer], beside)) for layer in layers], log_x=True,
                note="Last point of task loss: the stitch without a bound. Level: Procrustes, which has full rank.",
            )
        ],
        tables=[_table("task", "Task loss", task, paper.RANK_TASK if beside else {}),
                _table("direct", "Reduced-rank regression", direct, paper.RANK_DIRECT if beside else {}),
                _procrustes(direct, beside)]
        + ([] if beside else [_paper_table()]),
        definitions=[
            words.ACCURACY,
            ("Reduced rank", "The affine map of least squared error among those that pass through k channels at most.",
             "min over rank W ≤ k, b of Σ ‖W x + b − y‖²"),
            words.TASK_LOSS,
            ("Task loss, rank k", "Two layers, k channels between them, trained from the reduced-rank map.", "W = A B"),
            ("Procrustes", "The closest rotation or reflection with a shift.",
             "min over WᵀW = I, b of Σ ‖W x + b − y‖²"),
            words.PAPER,
        ],
    )  # fmt: skip


def _means(found: list[ByRank]) -> ByRank:
    return {rank: mean(one[rank] for one in found) for rank in found[0]}


def _lines(layer: str, direct: ByRank, task: ByRank, beside: bool) -> list[Line]:
    most = max(direct)
    lines = [
        Line("Task loss", [float(rank or most) for rank in task], list(task.values())),
        Line(
            "Reduced rank", [float(rank) for rank in direct if rank], [value for rank, value in direct.items() if rank]
        ),
        Line("Procrustes", [1.0, float(most)], [direct[0]] * 2),
    ]
    if beside and layer in paper.RANK_TASK:
        for name, stated in (("Task loss", paper.RANK_TASK), ("Reduced rank", paper.RANK_DIRECT)):
            points = [
                (float(most if rank == "full" else rank), value)
                for rank, value in zip(paper.RANKS, stated[layer], strict=True)
                if rank == "full" or int(rank) < most
            ]
            x, y = (list(values) for values in zip(*points, strict=True))
            lines.append(Line(f"{name}, paper", x, y, of_paper=True, like=name))
    return lines


def _table(name: str, title: str, found: dict[str, ByRank], stated: dict[str, tuple[float, ...]]) -> Table:
    """Powers of two and the full rank; beside each what the paper has for it."""
    ranks = sorted({rank for one in found.values() for rank in one if rank >= 4 and rank & (rank - 1) == 0})
    if not ranks:
        ranks = sorted({rank for one in found.values() for rank in one if rank})
    by_paper = {0 if rank == "full" else int(rank): i for i, rank in enumerate(paper.RANKS)} if stated else {}
    columns, extra = ["Layer"], []
    for rank in [*ranks, 0]:
        columns.append(f"Rank {rank}" if rank else "Full rank")
        if rank in by_paper:
            extra.append(f"Paper, {rank or 'full'}")
            columns.append(extra[-1])
    rows: list[list[Cell]] = []
    for layer, one in found.items():
        row: list[Cell] = [layer]
        full = one[0] if name == "task" else one[max(one)]
        most = max(one)
        for rank in [*ranks, 0]:
            bound = name == "task" or rank < most
            row.append(full if not rank else one.get(rank) if bound else None)
            if rank in by_paper:
                row.append(stated[layer][by_paper[rank]] if layer in stated else None)
        rows.append(row)
    return Table(
        name, f"{title}: relative accuracy", columns, rows, "–: not bound at this layer, or not tested.", extra
    )


def _procrustes(direct: dict[str, ByRank], beside: bool) -> Table:
    extra = ["Paper"] if beside else []
    rows: list[list[Cell]] = [
        [layer, one[0], *([paper.PROCRUSTES.get(layer)] if beside else [])] for layer, one in direct.items()
    ]
    note = "The paper did not centre the layers before." if beside else ""
    return Table("procrustes", "Procrustes: relative accuracy", ["Layer", "Procrustes", *extra], rows, note, extra)


def _paper_table() -> Table:
    rows: list[list[Cell]] = [
        [way, layer, *values]
        for way, stated in (("Task loss", paper.RANK_TASK), ("Reduced rank", paper.RANK_DIRECT))
        for layer, values in stated.items()
    ]
    columns = ["Stitch", "Layer", *(f"Rank {rank}" if rank != "full" else "Full rank" for rank in paper.RANKS)]
    title = "The paper’s numbers, of Tiny-10 on CIFAR-10"
    return Table("paper", title, columns, rows, columns_of_paper=columns[2:])
