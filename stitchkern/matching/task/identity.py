"""What tells one run of task-loss matching from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.matching.task import processes
from stitchkern.matching.task.samples import Samples
from stitchkern.matching.task.schedule import Schedule
from stitchkern.matching.task.source import Source
from stitchkern.models.taps import leaves
from stitchkern.solvers import AffineMap

#: values of each tensor that a digest takes at most, about
_LOOKED_AT = 2**16


def identity(
    source: Source, plan: Schedule, train: Samples | Iterable[Any], held_out: Samples | None
) -> dict[str, Any]:
    """Of a run by ``plan`` over ``train``, stopped by ``held_out``; in types that a checkpoint may hold."""
    found = {
        "layers": str([route.pair for route in source.routes]),
        "resize": str(source.resize),
        "samples": processes.joined(train.fingerprint) if isinstance(train, Samples) else "",
        "validation": "" if held_out is None else processes.joined(held_out.fingerprint),
    }
    for side, models in (("fronts", source.fronts), ("ends", source.ends)):
        found |= {f"{side}[{i}]": f"{type(one).__name__} {_digest(one.state_dict())}" for i, one in enumerate(models)}
    found |= {f.name: _told(getattr(plan, f.name)) for f in fields(plan)}
    for i, config in enumerate(source.configs):
        found |= {f"configs[{i}].{f.name}": _told(getattr(config, f.name)) for f in fields(config)}
    return found


def _told(value: Any) -> Any:
    if isinstance(value, (Tensor, str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (tuple, list, torch.dtype)) and next(leaves(value), None) is None:
        return str(value)
    # a map to start from
    if isinstance(value, AffineMap):
        value = value.weight, value.bias
    tensors = value.state_dict() if isinstance(value, nn.Module) else value
    return f"{type(value).__name__} {_digest(tensors)}"


def _digest(value: Any) -> str:
    """The same for what holds the same tensors; of large ones a part is looked at."""
    found = hashlib.blake2b(digest_size=8)
    for t in leaves(value):
        some = t.detach().reshape(-1)[:: max(t.numel() // _LOOKED_AT, 1)].contiguous().cpu()
        found.update(f"{tuple(t.shape)} {t.dtype}".encode())
        found.update(some.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
