"""Data for a study in two parts: what maps are fitted on, and what they are tested on."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from stitchkern.errors import SpecError
from stitchkern.models import load_data
from stitchkern.models.taps import leaves, map_tensors

HELD_OUT = 0.2

Batches = Iterable[tuple[Any, Tensor]]


@dataclass(frozen=True)
class Part:
    """Samples start … stop of batches that can be read many times, in the batches they come in."""

    batches: Batches
    start: int
    stop: int

    def __len__(self) -> int:
        size = getattr(self.batches, "batch_size", None)
        if not size:
            raise TypeError("the number of batches is not known")
        return -(-self.stop // size) - self.start // size

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        first = 0
        for inputs, labels in self.batches:
            low, high = max(self.start - first, 0), min(self.stop - first, len(labels))
            if low < high:
                yield map_tensors(inputs, itemgetter(slice(low, high))), labels[low:high]
            first += len(labels)
            if first >= self.stop:
                return
        raise SpecError(f"the data ended after {first:,} of {self.stop:,} samples (a DataLoader with drop_last?)")


@dataclass(frozen=True)
class FitAndTest:
    """`note` says where the test samples come from."""

    fit: Batches
    test: Batches
    note: str


def fit_and_test(
    data: str,
    test_data: str | None = None,
    *,
    split: str | None = None,
    test_split: str | None = None,
    **options: Any,
) -> FitAndTest:
    """Load both parts; `options` go to `load_data` for each.

    The test part is `test_data`, or `test_split` of `data`, or else the split "test" of an .npz; where there
    is none, the last fifth of the samples is held out. The part to fit on is `split`, or the split "train" of
    an .npz that has it.

    Raises:
        SpecError: as `load_data`, or fewer than two samples to divide, or both parts would be the same, or
            samples would be held out of data that come in another order each time.
    """
    there = _splits(data)
    split = default_split(data, split)
    if test_data is None and test_split is None and "test" in there and split not in ("test", None):
        test_split = "test"
    if test_data is not None and test_split is None and "test" in _splits(test_data):
        test_split = "test"
    if test_data is not None or test_split is not None:
        source = test_data or data
        if _resolved(source) == _resolved(data) and test_split == split:
            part = f"split {split!r} of {data!r}" if split else repr(data)
            raise SpecError(f"the part to test on must not be the part to fit on; both are {part}")
        fit = load_data(data, split=split, **options)
        test = load_data(source, split=test_split, **options)
        for name, spec, batches in (("data", data, fit), ("test_data", source, test)):
            if next(iter(batches), None) is None:
                raise SpecError(f"{name} {spec!r} gave no batch")
        return FitAndTest(fit, test, f"{f'split {test_split!r} of ' if test_split else ''}{source}")
    whole = load_data(data, split=split, **options)
    count = sum(len(labels) for _, labels in whole) if whole.count is None else whole.count
    held_out = max(round(HELD_OUT * count), 1)
    if count < 2:
        raise SpecError(f"data {data!r} must hold at least two samples, to fit on and to test on; it holds {count}")
    if not _reads_alike(whole):
        raise SpecError(
            f"data {data!r} gives other samples when it is read again (shuffled, or changed at random), so that none "
            f"can be held out; give test data, or turn shuffling off"
        )
    note = f"the last {held_out:,} of the {count:,} samples of {data}, held out since it has no test part"
    return FitAndTest(Part(whole, 0, count - held_out), Part(whole, count - held_out, count), note)


def inputs_alone(data: str, *, split: str | None = None, **options: Any) -> tuple[Iterable[Any], str]:
    """The data without labels, which they need not have, and what to call them; `split` as in `fit_and_test`.

    Raises SpecError as `load_data`, which takes the `options`.
    """
    split = default_split(data, split)
    return load_data(data, split=split, labelled=False, **options), f"split {split!r} of {data}" if split else data


def _reads_alike(batches: Batches) -> bool:
    """Whether two readings start with the same batch."""
    first, again = (list(leaves(next(iter(batches), None))) for _ in range(2))
    return len(first) == len(again) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(first, again, strict=True)
    )


def _resolved(data: str) -> str:
    """``data`` with the whole path of its file, so that ./a.npz is a.npz."""
    path, colon, name = (data, "", "") if data.endswith(".npz") else data.rpartition(":")
    return f"{Path(path).resolve()}{colon}{name}"


def default_split(data: str, split: str | None) -> str | None:
    """`split`, or else "train" for an .npz that has it."""
    return split or ("train" if "train" in _splits(data) else None)


def _splits(data: str) -> set[str]:
    """Words in the array names of an .npz: "train" and "test" are among them where it has these splits."""
    if not data.endswith(".npz"):
        return set()
    try:
        with zipfile.ZipFile(data) as archive:
            return {word for name in archive.namelist() for word in name.removesuffix(".npy").split("_")}
    except (OSError, zipfile.BadZipFile):
        return set()  # load_data says what is wrong with it
