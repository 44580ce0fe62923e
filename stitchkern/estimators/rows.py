"""What scikit-learn's users pass, as batches of tensors: checked once, never copied whole."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

#: rows that are converted at a time, where they have to be
_CHUNK = 65536
_FLOATS = [np.float64, np.float32]  # what is neither becomes the first


@dataclass(frozen=True)
class Rows:
    """x (n, p), y (n, q) and weight (n,), all numpy or all torch; ``flat``: y was given as (n,)."""

    x: Any
    y: Any
    weight: Any
    flat: bool
    index: Any = None  # which rows of these are meant; None: all

    def __len__(self) -> int:
        return len(self.x) if self.index is None else len(self.index)

    def __getitem__(self, part: slice) -> Rows:
        if self.index is not None:
            return replace(self, index=self.index[part])
        weight = None if self.weight is None else self.weight[part]
        return replace(self, x=self.x[part], y=self.y[part], weight=weight)

    def loaded(self) -> Rows:
        """The rows that are meant, copied where they have an index."""
        if self.index is None:
            return self
        weight = None if self.weight is None else self.weight[self.index]
        return Rows(self.x[self.index], self.y[self.index], weight, self.flat)

    @property
    def is_numpy(self) -> bool:
        return isinstance(self.x, np.ndarray)

    @property
    def unit_roundoff(self) -> float:
        """What a number of x may be off by, relative, by being stored in its type."""
        dtype = self.x.dtype
        return float((np.finfo(dtype) if self.is_numpy else torch.finfo(dtype)).eps) / 2

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Tensors of a bounded number of rows: views of x, and y in x's type as in scikit-learn."""
        for start in range(0, len(self), _CHUNK):
            part = self[start : start + _CHUNK].loaded()
            x, y = tensor(part.x), tensor(part.y, part.x.dtype)
            yield x, y, None if part.weight is None else tensor(part.weight)

    def contiguous(self, count: int) -> list[Rows]:
        """As many parts in order, as ``sklearn.model_selection.KFold`` makes them without shuffling."""
        sizes = np.full(count, len(self) // count)
        sizes[: len(self) % count] += 1
        ends = np.cumsum(sizes)
        return [self[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]

    def held_out(self, cv: Any) -> list[Rows]:
        """The parts that the splits of ``cv`` hold out: a number, a splitter of scikit-learn, or (train, test) pairs.

        Raises:
            ValueError: a row is not held out exactly once, or not trained on elsewhere: moments of the folds could not
                stand for the training sets.
        """
        if isinstance(cv, numbers.Integral):
            return self.contiguous(int(cv))
        y = tensor(self.y).cpu().numpy()
        splits = list(check_cv(cv).split(np.zeros((len(self), 1)), y[:, 0] if self.flat else y))
        held = np.zeros(len(self), dtype=np.int64)
        for train, test in splits:
            held[test] += 1
            if len(train) + len(test) != len(self) or np.intersect1d(train, test).size:
                raise ValueError("cv must train on all rows that it does not hold out")
        if len(splits) < 2 or (held != 1).any():
            raise ValueError("cv must hold out every row exactly once, in at least two folds")
        indices = [test if self.is_numpy else torch.as_tensor(test, device=self.x.device) for _, test in splits]
        return [replace(self, index=index) for index in indices]

    def round_robin(self, count: int, before: int = 0) -> list[Rows]:
        """As many parts dealt row by row; ``before`` rows were dealt already."""
        return [self[(part - before) % count :: count] for part in range(count)]


def tensor(a: Any, dtype: Any = None) -> Tensor:
    """A tensor over the same memory where the type is right; a read-only array is only read."""
    if isinstance(a, Tensor):
        return a if dtype is None else a.to(dtype)
    a = np.asarray(a, dtype=dtype)
    if not a.flags.writeable or min(a.strides, default=0) < 0:  # torch takes neither without a word
        a = _writable_view(a) if min(a.strides, default=0) >= 0 else a.copy()
    return torch.from_numpy(a)


class _Borrowed:
    """The memory of an array, said to be writable: torch has no read-only tensors and would warn."""

    def __init__(self, a: np.ndarray) -> None:
        self._owner = a
        self.__array_interface__ = {**a.__array_interface__, "data": (a.__array_interface__["data"][0], False)}


def _writable_view(a: np.ndarray) -> np.ndarray:
    return np.asarray(_Borrowed(a))


def read_x(estimator: Any, X: Any) -> Any:
    """X (n, p) to predict from, in float64 or float32, with the fitted features."""
    if isinstance(X, Tensor):
        return _tensor_x(estimator, X, reset=False)
    return validate_data(estimator, X, reset=False, dtype=_FLOATS)


def read_rows(estimator: Any, X: Any, y: Any, sample_weight: Any, *, reset: bool, minimum: int = 1) -> Rows:
    """The arguments of ``fit``; sets ``n_features_in_`` and ``feature_names_in_`` where ``reset``."""
    if isinstance(X, Tensor):
        x = _tensor_x(estimator, X, reset=reset).detach()
        if y is None:
            raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
        y = torch.as_tensor(y, device=x.device).detach()
        if y.is_complex():
            raise ValueError(f"y must be real; got {y.dtype}")
        if len(x) < minimum:
            raise ValueError(f"X must hold at least {minimum} samples; got {len(x)}")
        if sample_weight is not None:
            sample_weight = torch.as_tensor(sample_weight, dtype=torch.float64, device=x.device).detach()
            sample_weight = sample_weight.expand(len(x)) if sample_weight.ndim == 0 else sample_weight
            if sample_weight.shape != (len(x),):
                raise ValueError(f"sample_weight must be ({len(x)},); got {tuple(sample_weight.shape)}")
    else:
        x, y = validate_data(
            estimator,
            X,
            y,
            reset=reset,
            dtype=_FLOATS,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=minimum,
        )
        if not isinstance(y, np.ndarray):
            raise TypeError(f"y must be dense; got {type(y).__name__}")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise ValueError(f"y must be ({len(x)},) or ({len(x)}, q); got {tuple(y.shape)}")
    return Rows(x, y.reshape(len(y), -1) if y.ndim == 1 else y, sample_weight, y.ndim == 1)


def _tensor_x(estimator: Any, x: Tensor, *, reset: bool) -> Tensor:
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"X must be (n, p); got {tuple(x.shape)}")
    if x.is_complex():
        raise ValueError(f"X must be real; got {x.dtype}")
    name, p = type(estimator).__name__, x.shape[1]
    if reset:
        estimator.n_features_in_ = p
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif p != estimator.n_features_in_:
        raise ValueError(f"X has {p} features, but {name} is expecting {estimator.n_features_in_} features as input")
    return x if x.dtype in (torch.float64, torch.float32) else x.double()
