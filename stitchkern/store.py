"""Features of all samples: in memory as long as they fit, and in mapped files beyond."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stitchkern.errors import ShapeError

_LARGEST_SHARE = 4  # by default a quarter of what is free


class FeatureStore:
    """(samples, features) of every layer, in the types that they come in. Close it, or use it as a context.

    Args:
        memory: bytes to keep at most where the features are; None: a quarter of what is free there.
        folder: where a temporary folder is made for what does not fit; None: the system's. Files are deleted on close.
    """

    def __init__(self, memory: int | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self._memory, self._parent = memory, folder
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._parts: list[list[Tensor]] = []
        self._types: list[tuple[int, torch.dtype]] = []
        self._bytes = 0
        self.rows = 0

    def add(self, features: Sequence[Tensor], labels: Sequence[str]) -> None:
        """(rows, features) of every layer, copied.

        Raises:
            ShapeError: another number of features, or another type, than in the batches before. OSError: a full disk.
        """
        types = [(t.shape[1], t.dtype) for t in features]
        if not self._types:
            self._types, self._parts = types, [[] for _ in features]
        for label, before, now in zip(labels, self._types, types, strict=True):
            if before != now:
                raise ShapeError(
                    f"{label} gives {now[0]} features ({now[1]}) after {before[0]} ({before[1]}) in batches before, "
                    f"which is no matrix; pool them, or take estimator='minibatch'"
                )
        if self._memory is None:
            self._memory = _free(features[0].device) // _LARGEST_SHARE
        self.rows += len(features[0])
        self._bytes += sum(t.numel() * t.element_size() for t in features)
        if self._folder is None and self._bytes <= self._memory:
            for part, t in zip(self._parts, features, strict=True):
                part.append(t.clone(memory_format=torch.contiguous_format))
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="stitchkern-", dir=self._parent)
            for i, part in enumerate(self._parts):
                self._write(i, part)
                part.clear()
        for i, t in enumerate(features):
            self._write(i, [t])

    @property
    def on_disk(self) -> bool:
        return self._folder is not None

    def matrices(self) -> list[Tensor]:
        """(rows, features) of every layer; those of files are valid until the store is closed."""
        if self._folder is not None:
            return [
                torch.from_file(str(self._path(i)), shared=True, size=self.rows * p, dtype=dtype).view(self.rows, p)
                if p
                else torch.empty(self.rows, 0, dtype=dtype)
                for i, (p, dtype) in enumerate(self._types)
            ]
        for part in self._parts:
            if len(part) > 1:
                part[:] = [torch.cat(part)]  # layer by layer, so that one of them at most is there twice
        return [part[0] for part in self._parts]

    def close(self) -> None:
        """Forget everything, and delete the files."""
        self._parts, self._types = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, layer: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{layer}.bin"

    def _write(self, layer: int, parts: Sequence[Tensor]) -> None:
        with self._path(layer).open("ab") as file:
            for t in parts:
                flat = torch.empty(t.numel(), dtype=t.dtype).copy_(t.detach().reshape(-1))
                flat.view(torch.uint8).numpy().tofile(file)


def _free(device: torch.device) -> int:
    """Bytes that are free where the features are."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [bytes_ for bytes_ in (_free_in_machine(), _free_in_container()) if bytes_ is not None]
    return min(found, default=4 * 2**30)


def _free_in_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _free_in_container() -> int | None:
    """What a control group (version 2, 1) leaves; its page cache, which it can give up, is not counted as used."""
    for limit, used, cache in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
        (f"{_V1}/memory.limit_in_bytes", f"{_V1}/memory.usage_in_bytes", f"{_V1}/memory.stat"),
    ):
        try:
            stat = dict(line.split() for line in Path(cache).read_text().splitlines())
            free = int(Path(limit).read_text()) - int(Path(used).read_text()) + int(stat.get("inactive_file", 0))
            return max(free, 0)
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return None


_V1 = "/sys/fs/cgroup/memory"
