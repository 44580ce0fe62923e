"""Data named by a string: an ``.npz`` with images and labels, or ``file_or_module:callable``."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stitchkern.errors import SpecError
from stitchkern.models.spec import call_object, load_object, split_spec
from stitchkern.models.taps import leaves, map_tensors, said

Batch = tuple[Any, ...]
_IMAGE_KEY = re.compile(r"(?:(?P<before>\w+)_)?(?:images?|inputs|data|x|jpeg)(?:_(?P<after>\w+))?", re.I)
_LABEL_KEY = re.compile(r"(?:(?P<before>\w+)_)?(?:labels?|targets?|y)(?:_(?P<after>\w+))?", re.I)


def load_data(
    spec: str,
    *,
    batch_size: int = 256,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    split: str | None = None,
    images_key: str | None = None,
    labels_key: str | None = None,
    limit: int | None = None,
    labelled: bool = True,
) -> ArrayData | CallableData:
    """The data that ``spec`` names: an iterable of (inputs, labels) batches that can be read many times.

    Args:
        spec: either an ``.npz`` file with images (uint8 or float; (n, h, w), (n, h, w, c), (n, c, h, w), or
            (n, c) features) and integer labels under the keys ``images``/``labels``, ``x``/``y`` or
            ``data``/``targets``, each with a split before or after it (``train_images``, ``x_test``); images
            may also be JPEG files end to end in ``jpeg`` with ``offsets``, one more than images. Or
            ``file_or_module:callable`` for what yields (inputs, labels) batches; it is called afresh for each
            reading.
        batch_size: samples per batch of an ``.npz``; a callable makes its own batches.
        mean, std: per channel, subtracted and divided after uint8 pixels were divided by 255; ``.npz`` only.
        split: which one, where the file has several.
        images_key, labels_key: the keys themselves, where the names above do not fit.
        limit: read no more than this many samples.
        labelled: False for batches of (inputs,) alone; labels may be there or not, and are not read.

    Returns:
        An object with ``count`` and ``batch_size`` (None where a callable does not tell), a length in
        batches, and batches of float32 (n, c, h, w) or (n, c) inputs with int64 (n,) labels. Pixels become
        floats batch by batch.

    Raises:
        SpecError: no such file, keys that are missing or ambiguous (with what is there), counts that
            differ, no images or empty ones, a mean or std that cannot be used; while it is read, whatever a
            callable raises.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise SpecError(f"batch_size and limit must be at least 1; got {batch_size} and {limit}")
    if not spec.endswith(".npz"):
        options = {
            "mean": mean,
            "std": std,
            "split": split,
            "images_key": images_key,
            "labels_key": labels_key,
        }
        if given := [name for name, value in options.items() if value is not None]:
            raise SpecError(f"{', '.join(given)} apply to .npz data only; {spec!r} makes its own batches")
        return CallableData(spec, limit, labelled=labelled)
    arrays = _read(spec)
    images_key, labels_key = _choose_keys(spec, arrays, split, images_key, labels_key, labelled)
    images: Any = arrays[images_key]
    labels = None if labels_key is None else arrays[labels_key]
    if "jpeg" in images_key.lower():
        offsets = arrays.get(images_key.lower().replace("jpeg", "offsets"))
        if offsets is None:
            raise SpecError(f"data {spec!r} has {images_key!r} but no 'offsets'; it holds {_list(arrays)}")
        images = JpegImages(arrays[images_key], offsets, spec)
    return ArrayData(images, labels, spec, batch_size=batch_size, mean=mean, std=std, limit=limit)


class ArrayData:
    """Batches of images and labels held as they are stored; each batch is converted when it is read."""

    def __init__(
        self,
        images: Any,
        labels: np.ndarray | None,
        name: str,
        *,
        batch_size: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        limit: int | None = None,
    ) -> None:
        if labels is not None:
            labels = _checked_labels(labels, len(images), name)
        if not len(images):
            raise SpecError(f"data {name!r} holds no images")
        self.count = min(len(images), limit or len(images))
        self.batch_size = batch_size
        self._images, self._labels, self._name = images, labels, name
        shape = tuple(self._inputs(0, 1).shape[1:])
        if 0 in shape:
            raise SpecError(f"data {name!r}: images must not be empty; each is {shape}")
        self._mean, self._std = (
            _per_channel(value, option, shape[0], name) for value, option in ((mean, "mean"), (std, "std"))
        )
        if self._std is not None and not bool((self._std > 0).all()):
            raise SpecError(f"data {name!r}: std must be positive; got {std}")

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.count, self.batch_size):
            stop = min(start + self.batch_size, self.count)
            inputs = self._inputs(start, stop)
            shape = (-1, *[1] * (inputs.ndim - 2))
            if self._mean is not None:
                inputs = inputs - self._mean.view(shape)
            if self._std is not None:
                inputs = inputs / self._std.view(shape)
            yield (inputs,) if self._labels is None else (inputs, _long(self._labels[start:stop]))

    def _inputs(self, start: int, stop: int) -> Tensor:
        pixels = self._images[start:stop]
        if pixels.ndim not in (2, 3, 4) or (pixels.dtype != np.uint8 and pixels.dtype.kind != "f"):
            raise SpecError(
                f"data {self._name!r}: images must be uint8 or float, (n, h, w), (n, h, w, c), "
                f"(n, c, h, w) or (n, c); got {pixels.dtype} {tuple(pixels.shape)}"
            )
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif pixels.ndim == 4 and _channels_last(pixels):
            pixels = pixels.transpose(0, 3, 1, 2)
        inputs = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        return inputs / 255 if pixels.dtype == np.uint8 else inputs


class CallableData:
    """Batches from ``file_or_module:callable``; what can be read only once is made afresh each time."""

    def __init__(self, spec: str, limit: int | None = None, *, labelled: bool = True) -> None:
        source, name, extra = split_spec(spec, "data", "an .npz file or file_or_module:callable")
        if extra is not None:
            raise SpecError(f"data spec {spec!r} must be file_or_module:callable, without '@{extra}'")
        found = load_object(source, name, spec)
        ready = isinstance(found, Iterable) and not isinstance(found, type)
        self._make: Callable[[], Any] = lambda: found if ready else call_object(found, source, name, spec)
        self._batches = self._make()
        if not isinstance(self._batches, Iterable):
            raise SpecError(
                f"data spec {spec!r}: {name}() gives a {type(self._batches).__name__}; it must give an "
                f"iterable of (inputs, labels) batches"
            )
        self.spec, self.limit, self.labelled = spec, limit, labelled
        self.batch_size: int | None = getattr(self._batches, "batch_size", None)

    @property
    def count(self) -> int | None:
        """Samples, where the batches come from a ``dataset`` with a length."""
        try:
            count = len(self._batches.dataset)
        except (AttributeError, TypeError):
            return None
        return min(count, self.limit or count)

    def __len__(self) -> int:
        length = len(self._batches)  # TypeError for a generator, as usual in Python
        return min(length, -(-self.limit // self.batch_size)) if self.limit and self.batch_size else length

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches
        if isinstance(batches, Iterator):
            self._batches = self._make()
        left = self.limit
        for batch in self._read(batches):
            parts = self._parts(batch)
            if left is not None:
                parts = map_tensors(parts, itemgetter(slice(left)))
                left -= len(next(tensor for tensor in leaves(parts[-1]) if tensor.ndim))
            yield parts
            if left == 0:
                return

    def _parts(self, batch: Any) -> tuple[Any, ...]:
        """(inputs, labels), or (inputs,) where labels are not wanted."""
        if not self.labelled:
            inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if next(leaves(inputs), None) is None:
                kind = type(batch).__name__
                raise SpecError(f"data {self.spec!r} must yield tensors, alone or before labels; it yielded a {kind}")
            return (inputs,)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not _is_labels(batch[1]):
            raise SpecError(
                f"data {self.spec!r} must yield (inputs, labels) with labels an integer (n,) tensor; "
                f"it yielded a {type(batch).__name__}"
            )
        return batch[0], batch[1].long()

    def _read(self, batches: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except (Exception, SystemExit) as error:
            raise SpecError(f"data {self.spec!r}: reading it raised {said(error)}") from error


class JpegImages:
    """Images of one size as JPEG files end to end; a slice decodes to uint8 (n, h, w, c)."""

    def __init__(self, jpeg: np.ndarray, offsets: np.ndarray, name: str) -> None:
        fits = jpeg.ndim == offsets.ndim == 1 and jpeg.dtype == np.uint8 and offsets.dtype.kind in "iu"
        if not fits or not len(offsets) or (np.diff(offsets) <= 0).any() or offsets[-1] > len(jpeg):
            raise SpecError(f"data {name!r}: offsets must be increasing positions in jpeg, one more than images")
        self._jpeg, self._offsets, self._name = jpeg, offsets, name

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, which: slice) -> np.ndarray:
        try:
            from PIL import Image
        except ImportError as error:
            raise SpecError(f"data {self._name!r} holds JPEG files, which need Pillow: pip install pillow") from error
        images = []
        for i in range(*which.indices(len(self))):
            file = self._jpeg[self._offsets[i] : self._offsets[i + 1]].tobytes()
            try:
                images.append(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))
            except OSError as error:
                raise SpecError(f"data {self._name!r}: image {i} is not a JPEG that can be read: {error}") from error
        if len({image.shape for image in images}) > 1:
            raise SpecError(f"data {self._name!r}: images must all have one size")
        return np.stack(images)


def _read(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise SpecError(f"no such data file {path}")
    try:
        if isinstance(loaded := np.load(path, allow_pickle=False), np.ndarray):
            raise TypeError("it holds one array by itself, as in .npy")
        with loaded as archive:
            return dict(archive)
    except Exception as error:  # zip, zlib and numpy errors of many kinds
        raise SpecError(f"data file {path} cannot be read as .npz: {said(error)}") from error


def _choose_keys(
    path: str,
    arrays: Mapping[str, np.ndarray],
    split: str | None,
    images_key: str | None,
    labels_key: str | None,
    labelled: bool,
) -> tuple[str, str | None]:
    for option, key in (("images_key", images_key), ("labels_key", labels_key)):
        if key is not None and key not in arrays:
            raise SpecError(f"data {path!r} has no {key!r} ({option}); it holds {_list(arrays)}")
    if images_key and (labels_key or not labelled):
        return images_key, labels_key
    images, labels = _by_split(_IMAGE_KEY, arrays), _by_split(_LABEL_KEY, arrays)
    # a key that was given serves every split, so that split= alone picks its partner
    images = dict.fromkeys(labels, images_key) if images_key else images
    labels = dict.fromkeys(images, labels_key) if labels_key else labels
    splits = [name for name in images if name in labels or not labelled]
    if split is None and len(splits) > 1:
        raise SpecError(f"data {path!r} has several splits; choose one with split=: {_list(splits)}")
    if not splits or (split is not None and split not in splits):
        wanted = ("images and labels" if labelled else "images") + (f" of split {split!r}" if split else "")
        raise SpecError(f"data {path!r} has no {wanted}; it holds {_list(arrays)}")
    chosen = splits[0] if split is None else split
    return images[chosen], labels[chosen] if labelled else None


def _by_split(pattern: re.Pattern[str], keys: Iterable[str]) -> dict[str, str]:
    matches = {key: match for key in keys if (match := pattern.fullmatch(key))}
    return {match["before"] or match["after"] or "": key for key, match in matches.items()}


def _channels_last(pixels: np.ndarray) -> bool:
    """Channels are the dimension of 1 or 3, or else of 4; where both could be, bytes are HWC, floats CHW."""
    first, last = ((size in (1, 3)) * 2 + (size == 4) for size in (pixels.shape[1], pixels.shape[3]))
    return last > first or (first == last > 0 and pixels.dtype == np.uint8)


def _per_channel(value: Sequence[float] | None, option: str, channels: int, name: str) -> Tensor | None:
    if value is None:
        return None
    tensor = torch.as_tensor(value, dtype=torch.float32).flatten()
    if len(tensor) not in (1, channels):
        raise SpecError(f"data {name!r}: {option} must have {channels} values (or 1); got {len(tensor)}")
    if not bool(tensor.isfinite().all()):
        raise SpecError(f"data {name!r}: {option} must be finite numbers; got {list(value)}")
    return tensor


def _checked_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise SpecError(f"data {name!r}: labels must be integers (n,); got {labels.dtype} {tuple(labels.shape)}")
    if count != len(labels):
        raise SpecError(f"data {name!r}: {count} images but {len(labels)} labels")
    return labels


def _long(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _is_labels(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()


def _list(names: Iterable[Any]) -> str:
    return ", ".join(sorted(map(repr, names))) or "nothing"
