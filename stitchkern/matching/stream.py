"""What every pass over the data shares: one batch at a time, on the model's device, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stitchkern.models.taps import Inputs, map_tensors

Pair = tuple[str, str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Batch:
    """One batch on the model's device; what it does not hold is None."""

    inputs: Inputs
    labels: Any
    identifiers: Any


def read(
    batches: Iterable[Any],
    device: torch.device,
    progress: Progress | None = None,
    *,
    identifiers: str | None = None,
) -> Iterator[Batch]:
    """Each batch, its inputs and labels moved to ``device``; `ValueError` when there is no batch.

    A batch is (inputs, labels), [inputs], or inputs alone; inputs are a tensor or a mapping, or a tuple of several
    where labels stand beside it. Where ``identifiers`` is given, samples may have some: a batch may be (inputs, labels,
    identifiers), or a mapping may hold them under that key, which the model then does not see.
    ``progress(done, total)`` is called after each batch; total is 0 where ``batches`` has no length.
    """
    total = length(batches)
    done = 0
    move = (lambda tensor: tensor.to(device, non_blocking=True)) if device.type != "cpu" else _same
    for batch in batches:
        inputs, labels, names = _split(batch, identifiers)
        yield Batch(map_tensors(inputs, move), None if labels is None else map_tensors(labels, move), names)
        done += 1
        if progress is not None:
            progress(done, total)
    if not done:
        raise ValueError("batches gave no batch (a generator can be read only once: pass a list or a DataLoader)")


def stream(
    batches: Iterable[Any], device: torch.device, progress: Progress | None = None
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """(inputs, labels or None) of each batch, as `read` gives it."""
    return ((batch.inputs, batch.labels) for batch in read(batches, device, progress))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _split(batch: Any, identifiers: str | None) -> tuple[Inputs, Any, Any]:
    most = 2 if identifiers is None else 3
    if isinstance(batch, (Tensor, Mapping)):
        parts: list[Any] = [batch]
    elif isinstance(batch, (tuple, list)) and 1 <= len(batch) <= most:
        parts = list(batch)
    else:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        more = "" if identifiers is None else " or (inputs, labels, identifiers)"
        raise ValueError(f"batches must yield inputs or (inputs, labels){more}; got a {type(batch).__name__}{size}")
    inputs, labels, names = (*parts, None, None)[:3]
    if names is None and identifiers is not None and isinstance(inputs, Mapping) and identifiers in inputs:
        names = inputs[identifiers]
        inputs = {key: value for key, value in inputs.items() if key != identifiers}
    return inputs, labels, names


def length(batches: Iterable[Any]) -> int:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0
