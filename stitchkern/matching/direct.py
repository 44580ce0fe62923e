"""Direct matching: maps between layers from their moments, all layers in one pass over the data."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from stitchkern.errors import LayerError, NotFiniteError, ShapeError
from stitchkern.matching.stream import Pair, Progress, stream
from stitchkern.models.taps import Inputs, Taps, device_of, frozen, layer_shapes
from stitchkern.moments import Moments
from stitchkern.nn import check_resize, resize_to
from stitchkern.solvers import (
    AffineMap,
    full_rank,
    least_squares,
    permutation,
    procrustes,
    semi_matching,
    soft_matching,
    solve_by_road,
    solve_reweighted,
)
from stitchkern.statistics import Statistics
from stitchkern.weighting import Rule

# every way of solving for a map from moments, by the name that `match_direct` takes
METHODS: dict[str, Callable[..., AffineMap]] = {
    solver.__name__: solver
    for solver in (least_squares, full_rank, procrustes, permutation, semi_matching, soft_matching)
}


def match_direct(
    front: nn.Module,
    end: nn.Module,
    layers: Sequence[str] | Sequence[Pair] | None,
    batches: Iterable[Any],
    *,
    method: str = "least_squares",
    road: str = "moments",
    weighting: Rule | None = None,
    resize: str | None = None,
    precision: str = "highest",
    progress: Progress | None = None,
    **options: Any,
) -> dict[Any, AffineMap]:
    r"""For each layer the affine map :math:`y \approx W x + b` from the front's activation to the end's.

    Args:
        front, end: the two models. They run frozen and in eval mode and are left as they were.
        layers: names that both models have, or (front layer, end layer) pairs; None for every name that both
            have and whose activations can be stitched as they are (`common_layers`).
        batches: (inputs, labels) or inputs alone; read once, unless ``road`` needs more.
        method: which solver: ``"least_squares"``, ``"full_rank"``, ``"procrustes"``, ``"permutation"``,
            ``"semi_matching"``, ``"soft_matching"``. ``options`` go to it (``ridge``, ``rank``, ``floor``, …).
        road: how least squares gets at its map, as in :func:`stitchkern.lstsq`. ``"auto"`` and ``"refine"`` read the
            batches a second time for the layers whose moments cannot be trusted, and then need the same batches again.
        weighting: least squares with weights that follow the activations, as in
            :func:`stitchkern.reweighted_least_squares`, which also takes ``options`` (``iterations``, ``ridge``).
        resize, precision, progress: as in `collect_moments`.

    Returns:
        The maps, keyed as ``layers`` were given.

    Raises:
        ValueError: no layer, unknown method or road, a road with another method than least squares, or no batch.
        TypeError: an option that the method does not take.
        LayerError, ShapeError, NotFiniteError: as in `collect_moments`.

    Source: Csiszárik et al. 2021 (arXiv 2110.14633), section 4.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    solve = METHODS[method]
    if road != "moments" and solve is not least_squares:
        raise ValueError(f"road={road!r} is for method='least_squares'; {method} takes moments")
    if weighting is not None and (road != "moments" or solve is not least_squares):
        raise ValueError("weighting is for method='least_squares' and road='moments'")
    rereads = road in ("auto", "refine") or (weighting is not None and getattr(weighting, "needs_fit", True))
    if rereads and iter(batches) is batches:
        raise ValueError("batches are read more than once here: pass a list or a DataLoader, not an iterator")
    takes = solve if weighting is None else solve_reweighted
    inspect.signature(takes).bind(
        *[None] * (1 if weighting is None else 2), **options
    )  # before the data are read, not after
    if layers is None:
        rest = iter(batches)
        read_once = rest is batches
        first = next(rest, None)
        if first is not None:
            inputs, _ = next(stream([first], device_of(front)))
            layers = common_layers(front, end, inputs, resize=resize)
        if read_once:
            batches = rest if first is None else chain([first], rest)
    pairs = {layer: _as_pair(layer) for layer in _as_list(layers or [])}
    if not pairs and layers is not None:
        raise ValueError("layers must name at least one layer or pair, or be None for all that fit")

    def feed(make: Callable[[Any, int, int], Any]) -> None:
        _accumulate(front, end, pairs.values(), batches, make, resize=resize, progress=progress)

    found: dict[Any, AffineMap]
    if weighting is not None:
        found = solve_reweighted(feed, weighting, precision=precision, **options)
    elif road == "moments":
        moments = collect_moments(
            front, end, pairs.values(), batches, resize=resize, precision=precision, progress=progress
        )
        found = _solve_together(solve, moments, **options)
    else:
        found = solve_by_road(feed, road=road, precision=precision, **options)
    return {layer: found[pair] for layer, pair in pairs.items()}


def _solve_together(
    solve: Callable[..., AffineMap], moments: dict[Pair, Moments], **options: Any
) -> dict[Any, AffineMap]:
    """One call for all pairs of one size and device: as a batch they cost little more than one of them."""
    groups: dict[Any, list[Pair]] = defaultdict(list)
    for pair, m in moments.items():
        groups[m.p, m.q, m.device].append(pair)
    found: dict[Any, AffineMap] = {}
    for alike in groups.values():
        maps = solve(Statistics.of([moments[pair] for pair in alike]), **options)
        found |= {pair: maps[i] for i, pair in enumerate(alike)}
    return found


def collect_moments(
    front: nn.Module,
    end: nn.Module,
    pairs: Iterable[Pair],
    batches: Iterable[Any],
    *,
    resize: str | None = None,
    precision: str = "highest",
    blocks: int | None = None,
    progress: Progress | None = None,
) -> dict[Pair, Any]:
    """Two-sided moments of every (front layer, end layer) pair, in one pass over ``batches``.

    For each batch the front runs once up to its last layer, then the end; an activation of the end goes
    into the moments while its layer runs and is not kept. Nothing outlives its batch.

    Args:
        front, end: the models; one object may be both, and then runs once per batch.
        pairs: which layers to put side by side.
        batches: (inputs, labels) or inputs alone. Both models see the same inputs.
        resize: ``"bilinear"`` or ``"nearest"`` resamples the front's activation to the end's spatial size
            where they differ; None makes that an error.
        precision: of `Moments`.
        blocks: split the batches over so many moments, round robin, and return a list of them for each pair: for
            :func:`stitchkern.bootstrap` and :func:`stitchkern.cross_validate`. Blocks that got no batch are left out.
        progress: called as ``progress(done, total)`` after each batch; total is 0 where unknown.

    Raises:
        LayerError: unknown layer, or one that does not run exactly once.
        ShapeError: samples, tokens, dimensions or spatial sizes of a pair do not fit.
        NotFiniteError: an activation holds NaN or Inf.
        ValueError: no batch.
    """
    if blocks is not None and blocks < 2:
        raise ValueError(f"blocks must be at least 2, or None; got {blocks}")

    def make(pair: Pair, p: int, q: int) -> Any:
        one = Moments(p, q, precision=precision)
        return one if blocks is None else _Blocks(one, blocks)

    found = _accumulate(front, end, pairs, batches, make, resize=resize, progress=progress)
    return found if blocks is None else {pair: split.filled() for pair, split in found.items()}


class _Blocks:
    """Moments that take turns."""

    def __init__(self, like: Moments, count: int) -> None:
        self._parts = [like, *(Moments(like.p, like.q, precision=like.precision) for _ in range(count - 1))]
        self._turn = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        self._parts[self._turn % len(self._parts)].update(x, y)
        self._turn += 1

    def filled(self) -> list[Moments]:
        return [m for m in self._parts if m.rows]


def _accumulate(
    front: nn.Module,
    end: nn.Module,
    pairs: Iterable[Pair],
    batches: Iterable[Any],
    make: Callable[[Pair, int, int], Any],
    *,
    resize: str | None,
    progress: Progress | None,
) -> dict[Pair, Any]:
    """One pass: activations of every pair into what ``make(pair, p, q)`` gives for it (None: into nothing)."""
    check_resize(resize)
    partners: dict[str, list[str]] = defaultdict(list)
    for a, b in dict.fromkeys(_as_pair(pair) for pair in pairs):
        partners[b].append(a)
    takers: dict[Pair, Any] = {}

    def add(pair: Pair, x: Tensor, y: Tensor) -> None:
        x = side_by_side(pair, x, y, resize)
        if pair not in takers:
            takers[pair] = make(pair, _channels(x), _channels(y))
        if takers[pair] is None:
            return
        try:
            takers[pair].update(x, y)
        except NotFiniteError as error:
            raise NotFiniteError(f"front layer {pair[0]!r} → end layer {pair[1]!r}: {error}") from None

    sources = list(chain.from_iterable(partners.values()))
    front_taps = Taps(front, [*sources, *partners] if front is end else sources)
    end_taps = Taps(end, partners)
    with frozen(front, end):
        for inputs, _ in stream(batches, device_of(front), progress):
            held = front_taps(inputs)

            def take(name: str, y: Tensor, held: dict[str, Tensor] = held) -> None:
                for a in partners[name]:
                    add((a, name), held[a], y)

            if front is end:
                for name in partners:
                    take(name, held[name])
            else:
                end_taps.visit(inputs, take)
    return takers


def common_layers(front: nn.Module, end: nn.Module, inputs: Inputs, *, resize: str | None = None) -> list[str]:
    """The layer names of both models whose activations fit: as many dimensions, and the same positions or
    tokens.

    With ``resize``, spatial sizes may differ; channels may always. Looks at two samples of ``inputs``.

    Raises:
        LayerError: the models have no such name in common.
    """
    with frozen(front, end):
        ours, theirs = layer_shapes(front, inputs), layer_shapes(end, inputs)

    def fits(x: tuple[int, ...], y: tuple[int, ...]) -> bool:
        if len(x) != len(y):
            return False
        return x[1:] == y[1:] or resize is not None if len(x) == 3 else x[:-1] == y[:-1]

    names = [name for name, shape in ours.items() if name in theirs and fits(shape, theirs[name])]
    if not names:
        raise LayerError(
            "front and end have no layer name in common whose activations fit; "
            "give layers as (front layer, end layer) pairs"
        )
    return names


def _as_list(layers: Iterable[Any]) -> list[Any]:
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names or (front, end) pairs; got the string {layers!r}")
    return list(layers)


def _as_pair(layer: str | Pair) -> Pair:
    if isinstance(layer, str):
        return layer, layer
    a, b = layer
    return a, b


def _channels(x: Tensor) -> int:
    return x.shape[1 if x.ndim == 4 else -1]


def side_by_side(pair: Pair, x: Tensor, y: Tensor, resize: str | None) -> Tensor:
    """``x`` with the positions of ``y``; `ShapeError` naming the layers when they do not fit."""
    what = f"front layer {pair[0]!r} {tuple(x.shape)} and end layer {pair[1]!r} {tuple(y.shape)}"
    if x.ndim != y.ndim or x.ndim not in (2, 3, 4):
        raise ShapeError(f"{what} must both be (n, c), (n, t, c) or (n, c, h, w)")
    if x.shape[0] != y.shape[0]:
        raise ShapeError(f"{what} must hold the same number of samples")
    if x.ndim == 3 and x.shape[1] != y.shape[1]:
        raise ShapeError(f"{what} must hold the same number of tokens")
    if x.ndim == 4 and x.shape[2:] != y.shape[2:]:
        if resize is None:
            (h, w), (h2, w2) = x.shape[2:], y.shape[2:]
            raise ShapeError(
                f"{what} differ in spatial size, {h}×{w} and {h2}×{w2}; "
                f"pass resize='bilinear' or resize='nearest' to resample the front's"
            )
        return resize_to(x, (y.shape[2], y.shape[3]), resize)
    return x
