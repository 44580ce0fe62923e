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
from stitchkern.solvers import AffineMap, least_squares

# every way of solving for a map from moments, by the name that `match_direct` takes
METHODS: dict[str, Callable[..., AffineMap]] = {"least_squares": least_squares}


def match_direct(
    front: nn.Module,
    end: nn.Module,
    layers: Sequence[str] | Sequence[Pair] | None,
    batches: Iterable[Any],
    *,
    method: str = "least_squares",
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
        batches: (inputs, labels) or inputs alone; read once.
        method: how to solve: ``"least_squares"``. ``options`` go to that solver (``ridge``, ``rank``).
        resize, precision, progress: as in `collect_moments`.

    Returns:
        The maps, keyed as ``layers`` were given.

    Raises:
        ValueError: unknown method, or no batch. TypeError: an option that the method does not take.
        LayerError, ShapeError, NotFiniteError: as in `collect_moments`.

    Source: Csiszárik et al. 2021 (arXiv 2110.14633), section 4.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    solve = METHODS[method]
    inspect.signature(solve).bind(None, **options)  # before the data are read, not after
    if layers is None:
        batches = iter(batches)
        first = next(batches, None)
        if first is not None:
            batches = chain([first], batches)
            inputs, _ = next(stream([first], device_of(front)))
            layers = common_layers(front, end, inputs, resize=resize)
    pairs = {layer: _as_pair(layer) for layer in _as_list(layers or [])}
    moments = collect_moments(
        front, end, pairs.values(), batches, resize=resize, precision=precision, progress=progress
    )
    return {layer: solve(moments[pair], **options) for layer, pair in pairs.items()}


def collect_moments(
    front: nn.Module,
    end: nn.Module,
    pairs: Iterable[Pair],
    batches: Iterable[Any],
    *,
    resize: str | None = None,
    precision: str = "highest",
    progress: Progress | None = None,
) -> dict[Pair, Moments]:
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
        progress: called as ``progress(done, total)`` after each batch; total is 0 where unknown.

    Raises:
        LayerError: unknown layer, or one that does not run exactly once.
        ShapeError: samples, tokens, dimensions or spatial sizes of a pair do not fit.
        NotFiniteError: an activation holds NaN or Inf.
        ValueError: no batch.
    """
    check_resize(resize)
    partners: dict[str, list[str]] = defaultdict(list)
    for a, b in dict.fromkeys(_as_pair(pair) for pair in pairs):
        partners[b].append(a)
    moments: dict[Pair, Moments] = {}

    def add(pair: Pair, x: Tensor, y: Tensor) -> None:
        x = _side_by_side(pair, x, y, resize)
        if pair not in moments:
            moments[pair] = Moments(_channels(x), _channels(y), precision=precision)
        try:
            moments[pair].update(x, y)
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
    return moments


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


def _side_by_side(pair: Pair, x: Tensor, y: Tensor, resize: str | None) -> Tensor:
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
