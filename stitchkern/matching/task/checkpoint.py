"""The state of a run in a file: written whole or not at all, read only by the run that it belongs to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import SampleMismatchError, StatisticsError

FORMAT = 1
#: what of an identity tells samples, of training and of validation
_SAMPLES = ("samples", "validation")


def save(path: Path, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write ``state`` so that an interruption leaves the file as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save({"format": FORMAT, "identity": identity, "state": state}, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state, on the CPU, or None where there is no file.

    Raises:
        SampleMismatchError: it was written over other samples, or the same ones in another order.
        ValueError: it was written by a run with other options.
        StatisticsError: it is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        theirs, state = found["identity"], found["state"]
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
    except Exception as error:
        raise StatisticsError(f"{path} is no checkpoint of task-loss matching that can be read: {error}") from error
    for name, ours in identity.items():
        if name not in _SAMPLES and not _same(theirs.get(name), ours):
            raise ValueError(
                f"checkpoint {path} belongs to a run with {name} = {theirs.get(name)!r}, not {ours!r}; "
                f"name another file, or delete it"
            )
    if any(theirs.get(name) != identity[name] for name in _SAMPLES):
        raise SampleMismatchError(
            f"checkpoint {path} was written over other samples, or the same ones in another order; "
            f"a run is resumed with the same batches, from a loader that does not shuffle (the run itself does)"
        )
    return dict(state)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.cpu(), b.cpu())
    return False if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)
