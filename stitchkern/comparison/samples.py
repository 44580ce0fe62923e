"""What both models read: one iterable for both, or one for each, whose samples must be the same in the same order."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import SampleMismatchError, ShapeError
from stitchkern.matching.stream import Batch, Progress, read
from stitchkern.models.taps import Inputs, leaves, map_tensors


@dataclass(frozen=True)
class Samples:
    """The same samples as each model takes them, on its device."""

    inputs_a: Inputs
    inputs_b: Inputs
    count: int


def is_pair(batches: Any) -> bool:
    """Whether `batches` is (batches_a, batches_b): a tuple of two iterables, neither of which is a batch itself."""
    return (
        isinstance(batches, tuple)
        and len(batches) == 2
        and all(isinstance(side, Iterable) and not isinstance(side, Tensor | Mapping | tuple) for side in batches)
    )


def both_sides(
    batches: Any,
    devices: tuple[torch.device, torch.device],
    progress: Progress | None,
    identifiers: str,
) -> Iterator[Samples]:
    """The batches of both sides, compared by identifiers where both have them, and otherwise by their labels.

    Raises:
        SampleMismatchError: sides of different batch sizes, identifiers, labels or numbers of batches, or of which one
            alone has identifiers.
        ShapeError: a batch without a tensor. ValueError: no batch, or something that is no batch.
    """
    if not is_pair(batches):
        for batch in read(batches, devices[0], progress, identifiers=identifiers):
            count = _count(batch.inputs, "batches")
            yield Samples(batch.inputs, _moved(batch.inputs, *devices), count)
        return
    for side in batches:
        if isinstance(side, list) and _looks_like_a_batch(side):
            raise ValueError(
                "a tuple of two is (batches_a, batches_b), but these two look like batches: give them as a list"
            )
    sides = [
        read(side, device, report, identifiers=identifiers)
        for side, device, report in zip(batches, devices, (progress, None), strict=True)
    ]
    for k, (a, b) in enumerate(zip_longest(*sides)):
        if k == 0 and a is not None and b is not None and not _can_check(a, b):
            warnings.warn(
                "the batches of model_a and model_b hold neither identifiers nor labels of both sides, so that nobody "
                "can tell whether they are the same samples in the same order",
                stacklevel=2,
            )
        if a is None or b is None:
            short, long = ("model_a", "model_b") if a is None else ("model_b", "model_a")
            raise SampleMismatchError(f"the batches of {short} end after {k}, those of {long} go on")
        yield Samples(a.inputs, b.inputs, _check_same(k, a, b))


def _can_check(a: Batch, b: Batch) -> bool:
    return a.identifiers is not None or (isinstance(a.labels, Tensor) and isinstance(b.labels, Tensor))


def _check_same(k: int, a: Batch, b: Batch) -> int:
    """How many samples both have."""
    counts = _count(a.inputs, "batches of model_a"), _count(b.inputs, "batches of model_b")
    if counts[0] != counts[1]:
        raise SampleMismatchError(f"batch {k} holds {counts[0]} samples for model_a and {counts[1]} for model_b")
    if (a.identifiers is None) != (b.identifiers is None):
        have, lack = ("model_b", "model_a") if a.identifiers is None else ("model_a", "model_b")
        raise SampleMismatchError(f"the samples of {have} have identifiers in batch {k}, those of {lack} do not")
    if a.identifiers is not None:
        _check_identifiers(k, counts[0], _plain(a.identifiers), _plain(b.identifiers))
    elif isinstance(a.labels, Tensor) and isinstance(b.labels, Tensor):
        _check_labels(k, a.labels, b.labels.to(a.labels.device))
    return counts[0]


def _check_identifiers(k: int, count: int, a: list[Any], b: list[Any]) -> None:
    for name, side in (("model_a", a), ("model_b", b)):
        if len(side) != count:
            raise SampleMismatchError(f"batch {k} of {name} has {len(side)} identifiers for {count} samples")
    where = next((i for i in range(count) if a[i] != b[i]), None)
    if where is None:
        return
    what = "the same samples in another order" if sorted(map(repr, a)) == sorted(map(repr, b)) else "different samples"
    raise SampleMismatchError(
        f"batch {k} of model_a and model_b holds {what}: {a[where]!r} and {b[where]!r} at position {where}; "
        f"read both sides in one order (shuffle=False, or one seed)"
    )


def _check_labels(k: int, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise SampleMismatchError(f"batch {k} has labels {tuple(a.shape)} for model_a and {tuple(b.shape)} for model_b")
    differ = (a != b) & ~((a != a) & (b != b))
    if bool(differ.any()):
        where = int(differ.reshape(len(differ), -1).any(1).nonzero()[0]) if differ.ndim else 0
        raise SampleMismatchError(
            f"batch {k} has other labels for model_a than for model_b, first at position {where}; "
            f"read both sides in one order (shuffle=False, or one seed)"
        )


def _plain(identifiers: Any) -> list[Any]:
    return identifiers.tolist() if hasattr(identifiers, "tolist") else list(identifiers)


def _count(inputs: Inputs, whose: str) -> int:
    first = next((tensor for tensor in leaves(inputs) if tensor.ndim), None)
    if first is None:
        raise ShapeError(f"{whose} hold no tensor of samples; got a {type(inputs).__name__}")
    return len(first)


def _moved(inputs: Inputs, here: torch.device, there: torch.device) -> Inputs:
    return inputs if here == there else map_tensors(inputs, lambda tensor: tensor.to(there))


def _looks_like_a_batch(side: list[Any]) -> bool:
    """[inputs, labels], as a DataLoader collates them."""
    tensors = len(side) == 2 and all(isinstance(t, Tensor) for t in side)
    return tensors and side[0].ndim > 1 and side[1].ndim == 1 and len(side[0]) == len(side[1])
