"""What every pass over the data shares: one batch at a time, on the model's device, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stitchkern.models.taps import Inputs, map_tensors

Pair = tuple[str, str]
Progress = Callable[[int, int], None]


def stream(
    batches: Iterable[Any], device: torch.device, progress: Progress | None = None
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """(inputs, labels or None) of each batch, moved to ``device``; `ValueError` when there is no batch.

    A batch is (inputs, labels), [inputs], or inputs alone; inputs are a tensor or a mapping, or a tuple of
    several where labels stand beside it. ``progress(done, total)`` is called after each batch; total is 0
    where ``batches`` has no length.
    """
    total = _length(batches)
    done = 0
    for batch in batches:
        inputs, labels = _split(batch)
        move = (lambda tensor: tensor.to(device, non_blocking=True)) if device.type != "cpu" else _same
        yield map_tensors(inputs, move), None if labels is None else map_tensors(labels, move)
        done += 1
        if progress is not None:
            progress(done, total)
    if not done:
        raise ValueError("batches gave no batch (a generator can be read only once: pass a list or a DataLoader)")


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _split(batch: Any) -> tuple[Inputs, Any]:
    if isinstance(batch, (Tensor, Mapping)):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise ValueError(f"batches must yield inputs or (inputs, labels); got a {type(batch).__name__}{size}")


def _length(batches: Iterable[Any]) -> int:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0
