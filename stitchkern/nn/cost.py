"""Which of several ways to compute one thing is fastest here: measured once for each kind of input, then remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: what is measured has at most so many positions
MOST_POSITIONS = 1 << 15
ROUNDS = 3

Ways = dict[str, Callable[[Tensor], Tensor]]
_measured: dict[tuple[Any, ...], dict[str, float]] = {}


def cannot_measure(x: Tensor) -> bool:
    """Whether time would mean nothing or be an error: while a CUDA graph is captured, and of tensors without data."""
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return True
    return type(x) is not Tensor


def cheapest(ways: Ways, x: Tensor, sizes: tuple[int, ...], parameters: list[Tensor | None], *, gradients: bool) -> str:
    """Name of the way that takes x the fastest, with its backward pass where ``gradients``.

    ``sizes`` and the names of the ways stand for what else the time depends on; x is known by its device, type, layout
    and the power of two of its positions.
    """
    positions = max(x[..., 0].numel() if x.ndim < 4 else x[:, 0].numel(), 1)
    channel_stride = x.stride(1 if x.ndim == 4 else -1)
    leaves = tuple(t is not None and t.requires_grad for t in (x, *parameters)) if gradients else ()
    threads = torch.get_num_threads() if x.device.type == "cpu" else 0
    kind = (x.device, x.dtype, x.ndim == 4, channel_stride == 1, threads, min(positions, MOST_POSITIONS).bit_length())
    key = (*kind, leaves, sizes, *ways)
    if key not in _measured:
        part = x.detach()
        if positions > MOST_POSITIONS:
            part = part[: max(1, len(x) * MOST_POSITIONS // positions)]
        _measured[key] = {
            name: _seconds(way, part, x.requires_grad, parameters, gradients) for name, way in ways.items()
        }
    return min(_measured[key], key=_measured[key].__getitem__)


def measured() -> dict[tuple[Any, ...], dict[str, float]]:
    """Seconds of each way by kind of input, as far as measured; ``clear()`` it to measure anew."""
    return _measured


def _seconds(way: Callable, part: Tensor, of_x: bool, parameters: list[Tensor | None], gradients: bool) -> float:
    best = float("inf")
    with torch.set_grad_enabled(gradients), _unseen():
        for _ in range(1 + ROUNDS):  # the first one wakes threads and fills caches
            x = part.detach().requires_grad_(gradients and of_x)
            leaves = [t for t in (x, *parameters) if t is not None and t.requires_grad] if gradients else []
            begin = _now(part)
            y = way(x)
            if leaves:
                torch.autograd.grad(y, leaves, torch.ones_like(y))
            best = min(best, _now(part) - begin)
    return best


@contextmanager
def _unseen() -> Iterator[None]:
    """Inside, no graph is seen by activation checkpointing, other hooks on saved tensors, or the search for NaN."""
    with torch.autograd.set_detect_anomaly(False), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        yield


def _same(t: Tensor) -> Tensor:
    return t


def _now(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
