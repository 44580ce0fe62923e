"""Several processes, each with its share of the samples (torchrun): gradients and sums are of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes: one exchange for all."""
    if not active() or not tensors:
        return
    flat = torch.cat([t.reshape(-1).double() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for t in tensors:
        t.copy_(flat[start : start + t.numel()].view_as(t))
        start += t.numel()


def total_(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def joined(text: str) -> str:
    """The texts of all processes, in their order."""
    if not active():
        return text
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, text)
    return " ".join(found)


def least(value: int, device: torch.device) -> int:
    """The smallest of all processes' values."""
    if not active():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)
