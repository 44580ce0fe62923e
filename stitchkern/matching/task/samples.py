"""The front's activations and the end's targets, computed once: in memory while they fit, in mapped files beyond."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError
from stitchkern.matching.stream import Progress
from stitchkern.matching.task.source import Part, Source, stand_in
from stitchkern.models.taps import Inputs, leaves, map_tensors
from stitchkern.store import FeatureStore

#: values of each sample's input that the fingerprint takes
_LOOKED_AT = 16


class Samples:
    """All parts of ``source`` over ``batches``, in the order they came. Close it, or use it as a context.

    Args:
        memory, folder: as for `FeatureStore`.
        moments: also keep moments of (x, y), in ``source.moments``.

    Raises:
        ShapeError: samples of several shapes, which only go uncached.
        Others as :func:`stitchkern.match_task`.
    """

    def __init__(
        self,
        source: Source,
        batches: Iterable[Any],
        *,
        memory: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        moments: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.device = source.device
        self._store = FeatureStore(memory, folder)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._template: Inputs = None
        self._keeps_inputs = False
        digest = hashlib.blake2b(digest_size=16)
        try:
            for part in source.parts(batches, progress, moments=moments):
                self._add(part, source, digest)
            self._matrices = dict(zip(self._shapes, self._store.matrices(), strict=True))
        except BaseException:
            self._store.close()
            raise
        self.fingerprint = digest.hexdigest()

    def _add(self, part: Part, source: Source, digest: Any) -> None:
        fields = dict(part.fields)
        if self._template is None:
            self._keeps_inputs = not all(tail.is_cut for tail in source.tails.values())
            self._template = map_tensors(part.inputs, lambda t: t[:1].clone() if t.ndim else t)
        if self._keeps_inputs:
            fields |= {f"input.{i}": t for i, t in enumerate(_batched(part.inputs))}
        shapes = {name: tuple(t.shape[1:]) for name, t in fields.items()}
        if self._shapes and shapes != self._shapes:
            if ("labels" in shapes) != ("labels" in self._shapes):
                raise ShapeError("labels must be beside all batches or none; some have them and some do not")
            name = next(n for n in shapes | self._shapes if shapes.get(n) != self._shapes.get(n))
            raise ShapeError(
                f"the cache takes samples of one shape; {_told(name)} is {shapes.get(name)} after "
                f"{self._shapes.get(name)}. "
                f"Pass cache=False"
            )
        self._shapes = shapes
        self._store.add([t.reshape(len(part), -1) for t in fields.values()], list(fields))
        first = next((t for t in leaves(part.inputs) if t.ndim), None)
        if first is not None:
            flat = first.reshape(len(first), -1)
            some = flat[:, :: max(flat.shape[1] // _LOOKED_AT, 1)].contiguous()
            digest.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def __len__(self) -> int:
        return self._store.rows

    @property
    def on_disk(self) -> bool:
        return self._store.on_disk

    def take(self, index: Tensor) -> Part:
        """The samples of these numbers."""
        fields = {
            name: matrix[index.to(matrix.device)].to(self.device).view(len(index), *self._shapes[name])
            for name, matrix in self._matrices.items()
        }
        if not self._keeps_inputs:
            return Part(fields, stand_in(self._template, len(index)))
        kept = iter([fields.pop(name) for name in list(fields) if name.startswith("input.")])
        return Part(fields, map_tensors(self._template, lambda t: next(kept) if t.ndim else t))

    def in_order(self, batch_size: int) -> Iterator[Part]:
        for index in torch.arange(len(self)).split(batch_size):
            yield self.take(index)

    def close(self) -> None:
        self._matrices = {}
        self._store.close()

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _told(field: str) -> str:
    """A field's name for people: of those of a layer, the layer's."""
    kind, _, rest = field.partition(".")
    return f"layer {rest.partition('.')[2]!r}" if kind in ("x", "y", "later") else kind


def _batched(inputs: Inputs) -> list[Tensor]:
    """The tensors of ``inputs`` that have samples, in the order of `map_tensors`."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        if t.ndim:
            found.append(t)
        return t

    map_tensors(inputs, note)
    return found
