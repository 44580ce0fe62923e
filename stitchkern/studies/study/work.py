"""What a study has computed is kept, unit by unit, so that a second run takes up what is there.

A unit (a layer, a rank, a seed) is a file whose name is a digest of everything that determines it; whoever changes
anything gets another unit, and nothing has to be cleaned up for a result to be right.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from stitchkern._version import __version__

Value = TypeVar("Value")


class Work:
    """The units in a folder. Values are numbers, text, tensors, and lists and dicts of them.

    Attributes:
        computed, taken_up: units of this run, by whether they had to be computed.
    """

    def __init__(self, folder: str | Path, done: Callable[[int], None] | None = None) -> None:
        self.folder, self._done = Path(folder), done
        self.computed = self.taken_up = 0

    def keep(self, key: Mapping[str, Any], compute: Callable[[Path], Value]) -> Value:
        """What ``compute`` returns, from the folder where it is there.

        Args:
            key: everything that the value depends on, in types that JSON has. The versions of stitchkern and torch are
                part of it in any case.
            compute: called with a path where it may keep its own state while it runs (the ``checkpoint`` of
                `match_task`); what is there is removed once the value is kept.
        """
        text = json.dumps({**key, "stitchkern": __version__, "torch": torch.__version__}, sort_keys=True)
        path = self.folder / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.pt"
        found = _load(path, text)
        if found is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = path.with_suffix(".checkpoint")
            found = {"key": text, "value": compute(checkpoint)}
            _save(found, path)
            checkpoint.unlink(missing_ok=True)
            self.computed += 1
        else:
            self.taken_up += 1
        if self._done is not None:
            self._done(self.computed + self.taken_up)
        value: Value = found["value"]
        return value

    def train(self, key: Mapping[str, Any], make: Callable[[], nn.Module], train: Callable[[], nn.Module]) -> nn.Module:
        """A network that ``train`` returns, in eval mode; its state is kept, and loaded into what ``make`` returns."""
        state = self.keep({"network": dict(key)}, lambda _: dict(train().state_dict()))
        model = make()
        model.load_state_dict(state)
        return model.eval()


def fingerprint(model: nn.Module) -> str:
    """Of what the model is made of and of every number in it."""
    digest = hashlib.blake2b(repr(model).encode(), digest_size=12)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load(path: Path, key: str) -> dict[str, Any] | None:
    """None where there is no such unit, or what is there cannot be read: it is then computed anew."""
    try:
        found = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key and "value" in found else None


def _save(found: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    partly = path.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save(found, partly)
        os.replace(partly, path)
    finally:
        partly.unlink(missing_ok=True)
