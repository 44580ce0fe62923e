"""The main job: how well can the front of one network drive the end of another, layer by layer?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from stitchkern.comparison import compare
from stitchkern.errors import ShapeError, StatisticsError
from stitchkern.matching import Evaluation, Pair, collect_moments, evaluate
from stitchkern.models import activations, frozen, load_model
from stitchkern.models.taps import device_of, few, map_tensors
from stitchkern.moments import Moments
from stitchkern.nn import ChannelMap
from stitchkern.similarity import cka
from stitchkern.solvers import AffineMap, least_squares, procrustes, reduced_rank_path
from stitchkern.solvers.orthogonal import ProcrustesMap
from stitchkern.studies.circumstances import circumstances
from stitchkern.studies.data import FitAndTest, Part
from stitchkern.studies.layers import check_takes, count_parameters, default_layers
from stitchkern.studies.names import short_names
from stitchkern.studies.result import (
    NetworkResult,
    OrthogonalResult,
    PairResult,
    RankResult,
    SimilarityResult,
    StitchingResult,
)

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, batches done, batches in all), with 0 in all where that is unknown."""


def stitch_layers(
    front: nn.Module,
    end: nn.Module,
    pairs: Sequence[Pair],
    fit: Iterable[Any],
    test: Iterable[Any],
    *,
    names: tuple[str, str] = ("front", "end"),
    sources: tuple[str, str] = ("", ""),
    ranks: Sequence[int] | None = None,
    orthogonal: bool = True,
    resize: str | None = None,
    precision: str = "highest",
    made: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> StitchingResult:
    r"""Fit the affine map of least squared error for each pair of layers, and test every stitched network.

    .. math:: \min_{W, b} \sum \lVert W x + b - y \rVert^2, \qquad
              \text{relative accuracy} = \frac{\text{accuracy(front ▷ stitch ▷ end)}}{\text{accuracy(end)}}

    From the same moments come the best maps with rank W ≤ k and with W orthogonal (Procrustes), tested in the same
    pass. Every map that is tested costs one more run of what follows its layer in the end.

    Args:
        front, end: trained networks; they run frozen and in eval mode and are left as they were.
        pairs: (front layer, end layer), at least one.
        fit, test: (inputs, labels) batches, each readable more than once. `fit` is read twice, `test` once.
        names, sources: what the report calls front and end, and where they come from.
        ranks: which k to test; those of min(p, q) and above bind nothing at their layer and are left out there.
            None: powers of two from 4 on, from 1 where min(p, q) ≤ 8. None at all, (): no rank curve.
        orthogonal: whether to test Procrustes.
        resize: "bilinear" or "nearest" where spatial sizes of a pair differ; None makes that an error.
        precision: of `Moments`.
        made: more to say about how the result came about.
        progress: see `Progress`; stages are "fit", "test", "similarity".

    Raises:
        LayerError, ShapeError, NotFiniteError: as `collect_moments` and `evaluate`.
        ShapeError: a rank above min(p, q) of every pair.
        ValueError: no pairs, no batches, or a rank that is no positive integer.

    Source: Csiszárik et al. 2021 (arXiv 2110.14633), sections 3 to 5.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one (front layer, end layer)")
    if ranks:
        _check_ranks(ranks, front, end, pairs, fit)
    clock = _Clock(progress)
    counted = _Counted(fit)
    with clock.stage("fit") as report:
        moments = collect_moments(front, end, pairs, counted, resize=resize, precision=precision, progress=report)
        fits = {pair: _fits(moments[pair], ranks, orthogonal) for pair in dict.fromkeys(pairs)}
        sizes = _spatial_sizes(end, [end_layer for _, end_layer in fits], fit) if resize else {}
        stitches = {
            (*pair, name): _module(fitted, sizes.get(pair[1]), resize, end)
            for pair, found in fits.items()
            for name, fitted in found.maps.items()
        }
    fit_images = counted.samples
    with clock.stage("test") as report:
        tested = evaluate(front, end, stitches, test, progress=report)
    front_layers = list(dict.fromkeys(a for a, _ in fits))
    end_layers = list(dict.fromkeys(b for _, b in fits))
    with clock.stage("similarity") as report:
        matrix = compare(
            front, end, fit, layers_a=front_layers, layers_b=end_layers,
            features="pool", estimator="exact", blocks=0, precision=precision, progress=report,
        )  # fmt: skip
    return StitchingResult(
        front=NetworkResult(names[0], tested.front_accuracy, count_parameters(front), sources[0]),
        end=NetworkResult(names[1], tested.end_accuracy, count_parameters(end), sources[1]),
        pairs=[_pair_result(pair, moments[pair], fits[pair], tested) for pair in fits],
        similarity=SimilarityResult(front_layers, end_layers, matrix.values.tolist()),
        fit_images=fit_images,
        test_images=tested.count,
        made={**(made or {}), **circumstances(device_of(front), clock.seconds)},
    )


def stitch_specs(
    front: str,
    end: str,
    data: FitAndTest,
    pairs: Sequence[Pair] | None = None,
    *,
    device: str = "cpu",
    ranks: Sequence[int] | None = None,
    orthogonal: bool = True,
    resize: str | None = None,
    precision: str = "highest",
    made: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> StitchingResult:
    """`stitch_layers` for models named by specs (`load_model`); without pairs, for `default_layers`.

    Raises as `load_model`, `default_layers` and `stitch_layers`; ShapeError for a model that does not take the
    inputs.
    """
    models = load_model(front, device), load_model(end, device)
    test = [] if isinstance(data.test, Part) else [data.test]  # what is held out looks like the rest
    for batches in (*test, data.fit):
        inputs = map_tensors(next(iter(batches))[0], lambda tensor: tensor.to(device))
        for model, name in zip(models, (f"front {front!r}", f"end {end!r}"), strict=True):
            check_takes(model, inputs, name)
    if not pairs:
        pairs = [(layer, layer) for layer in default_layers(*models, inputs, resize=resize)]
    return stitch_layers(
        *models, pairs, data.fit, data.test, names=short_names(front, end), sources=(front, end),
        ranks=ranks, orthogonal=orthogonal, resize=resize, precision=precision,
        made={**(made or {}), "Test data": data.note}, progress=progress,
    )  # fmt: skip


_FULL, _PROCRUSTES = "full", "procrustes"


@dataclass(frozen=True)
class _Fits:
    """The maps of one pair that are tested: the full one, those of bounded rank by their rank, Procrustes."""

    maps: dict[Hashable, AffineMap]
    r2_by_rank: list[float]


def _fits(moments: Moments, ranks: Sequence[int] | None, orthogonal: bool) -> _Fits:
    full = least_squares(moments)
    maps: dict[Hashable, AffineMap] = {_FULL: full}
    r2_by_rank: list[float] = []
    most = min(full.weight.shape)
    if ranks is None or len(ranks):
        path = reduced_rank_path(moments)
        r2_by_rank = path.r2.tolist()
        for rank in _automatic_ranks(most) if ranks is None else sorted(set(ranks)):
            if rank < most:
                maps[rank] = path.at(rank)
    if orthogonal:
        maps[_PROCRUSTES] = procrustes(moments)
    return _Fits(maps, r2_by_rank)


def _automatic_ranks(most: int) -> list[int]:
    """Powers of two below `most`, from 4 on; of so few that this says little, all."""
    start = 0 if most <= 8 else 2
    return [2**i for i in range(start, most.bit_length()) if 2**i < most]


def _check_ranks(
    ranks: Sequence[int], front: nn.Module, end: nn.Module, pairs: Sequence[Pair], batches: Iterable[Any]
) -> None:
    """Before all data go through the models, so that a mistake does not cost that."""
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"ranks must be positive integers; got {rank!r}")
    first = next(iter(batches), None)
    if first is None:
        return  # which is an error of its own
    inputs = map_tensors(few(first[0]), lambda tensor: tensor.to(device_of(front)))
    with frozen(front, end):
        found = activations(front, [a for a, _ in pairs], inputs), activations(end, [b for _, b in pairs], inputs)
    channels = [{layer: x.shape[1 if x.ndim == 4 else -1] for layer, x in side.items() if x.ndim} for side in found]
    most = max(min(channels[0].get(a, 0), channels[1].get(b, 0)) for a, b in pairs)
    for rank in ranks:
        if rank > most:
            raise ShapeError(f"ranks must be {most} at most, the smaller channel count of the widest pair; got {rank}")


def _module(fitted: AffineMap, size: tuple[int, int] | None, resize: str | None, end: nn.Module) -> ChannelMap:
    options: dict[str, Any] = {"size": size, "resize": resize} if size else {}
    stitch: ChannelMap = fitted.to_module(low_rank=fitted.factors is not None, **options)
    return stitch.to(device_of(end))


def _pair_result(
    pair: Pair, moments: Moments, fits: _Fits, tested: Evaluation[tuple[str, str, Hashable]]
) -> PairResult:
    full, rotation = fits.maps[_FULL], fits.maps.get(_PROCRUSTES)
    q, p = full.weight.shape

    def measured(name: Hashable) -> dict[str, float]:
        key = (*pair, name)
        return {
            "r2": fits.maps[name].r2,
            "residual": fits.maps[name].residual,
            "accuracy": tested.accuracy[key],
            "relative_accuracy": tested.relative[key],
            "relative_se": tested.relative_se[key],
        }

    curve = [RankResult(rank=name, **measured(name)) for name in fits.maps if isinstance(name, int)]
    if fits.r2_by_rank:
        curve.append(RankResult(rank=min(p, q), **measured(_FULL)))
    return PairResult(
        front_layer=pair[0],
        end_layer=pair[1],
        front_channels=p,
        end_channels=q,
        rows=moments.rows,
        cka=_cka(moments, unbiased=False),
        cka_unbiased=_cka(moments, unbiased=True),
        rank=full.rank,
        **measured(_FULL),
        rank_curve=curve,
        r2_by_rank=fits.r2_by_rank,
        procrustes=OrthogonalResult(distance=rotation.distance, **measured(_PROCRUSTES))
        if isinstance(rotation, ProcrustesMap)
        else None,
    )


def _spatial_sizes(end: nn.Module, layers: Iterable[str], batches: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """(h, w) that the end's layers give, for those that have it."""
    inputs = map_tensors(few(next(iter(batches))[0]), lambda tensor: tensor.to(device_of(end)))
    with frozen(end):
        found = activations(end, layers, inputs)
    return {layer: (x.shape[2], x.shape[3]) for layer, x in found.items() if x.ndim == 4}


def _cka(moments: Moments, *, unbiased: bool) -> float:
    """NaN where the index is undefined (a layer that never changes, too few samples)."""
    try:
        return cka(moments, unbiased=unbiased)
    except StatisticsError:
        return math.nan


class _Counted:
    """The same batches, with the samples of the last reading counted."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.samples = batches, 0

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self.samples = 0
        for batch in self.batches:
            yield batch
            self.samples += len(batch[1])


class _Clock:
    """Seconds by stage, and where each stage has got to."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None] | None]:
        start = time.perf_counter()
        yield self._progress and partial(self._progress, name)
        self.seconds[name] = time.perf_counter() - start
