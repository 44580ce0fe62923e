"""What the indices take: moments, statistics, or features; checked, in float64, about their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.moments import Moments
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source

    Features: TypeAlias = "Tensor | np.ndarray"
    Input: TypeAlias = "Source | Features"


def is_features(x: Any) -> bool:
    return isinstance(x, Tensor | np.ndarray)


def rotated(x: Any) -> bool:
    """Whether `statistics_of(rotate=True)` turns these features into their span."""
    return is_features(x) and x.ndim == 2 and x.shape[1] > len(x)


def tensor_of(name: str, t: Any) -> Tensor:
    """Features as a tensor of the caller's type, without a copy where torch can do without."""
    if not is_features(t):
        raise TypeError(f"{name} must be a torch tensor or a numpy array; got {type(t).__name__}")
    if isinstance(t, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: its mask would be lost")
    if not isinstance(t, Tensor):
        t = np.asarray(t)
        if t.dtype.kind not in "fiub" or t.dtype.itemsize > 8:
            raise TypeError(f"{name} must be real, in a type of at most 64 bits; got {t.dtype}")
        t = t.astype(t.dtype.newbyteorder("="), copy=False)
        # torch takes no negative strides, and warns of memory that it may not write
        t = np.require(t, requirements="W") if all(k >= 0 for k in t.strides) else t.copy()
    t = torch.as_tensor(t)
    if t.is_complex():
        raise TypeError(f"{name} must be real; got {t.dtype}")
    return t


def pair(x: Any, y: Any, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """x (n, p) and y (n, q) as tensors of the caller's types, checked."""
    if y is None:
        raise ValueError("y is missing: give features x and y, or statistics of both")
    a, b = (tensor_of(name, t).detach() for name, t in (("x", x), ("y", y)))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not (a.shape[1] and b.shape[1]):
        raise ShapeError(
            f"x and y must be (n, p) and (n, q) with the same n; got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.device != b.device:
        raise ValueError(f"x and y must be on one device; got {a.device} and {b.device}")
    for name, t in (("x", a), ("y", b)):
        if not bool(t.isfinite().all()):
            raise NotFiniteError(f"{name} holds NaN or Inf")
    if len(a) < at_least:
        raise StatisticsError(f"the index needs at least {at_least} samples; got {len(a)}")
    return a, b


def centred(t: Tensor) -> Tensor:
    """Float64, about the mean of each feature; a constant feature becomes exactly zero."""
    t = t.double()
    t = t - t[0]  # first, so that what is constant is zero and has no rounded mean
    return t - t.mean(0)


def epsilon_of(t: Tensor) -> float:
    """What is noise in float64 products of these features, relative to their variance: what rounding added to it.

    u² E x² / var x of the worst feature for features that were rounded to u, at most what moments take (or u² itself);
    never more, as bfloat16 far from zero would have nothing but noise.
    """
    if t.dtype == torch.float64 or not t.is_floating_point():
        return 2.0**-53
    rounded = (torch.finfo(t.dtype).eps / 2) ** 2
    square, variance = t.double().square().mean(0), centred(t).square().mean(0)
    live = variance > 0
    far = float((square[live] / variance[live]).max()) if bool(live.any()) else 1.0
    return min(max(rounded * far, rounded), max(rounded, 2.0**-24))


def statistics_of(x: Any, y: Any = None, *, rotate: bool = False) -> tuple[Statistics, bool]:
    """The statistics of both sides, and whether the caller wants plain numbers (not a tensor for a batch).

    Features are multiplied in float64: the indices take roots and quotients of these products.

    Args:
        rotate: the index does not see rotations. Then features of n < p are first rotated into the n axes that they
            span, so that nothing larger than n × n is decomposed.
    """
    if not is_features(x):
        if y is not None:
            raise ValueError("y must not be given with moments or statistics: they hold both sides")
        return Statistics.of(x), not isinstance(x, Statistics | Sequence)
    tx, ty = pair(x, y)
    sides = []
    for t in (tx, ty):
        c = centred(t)
        sides.append(torch.linalg.qr(c.T, mode="r").R.T if rotate and c.shape[1] > len(c) else c)
    stats = Statistics.of(Moments(sides[0].shape[1], sides[1].shape[1]).update(*sides))
    epsilon = torch.full_like(stats.epsilon, max(epsilon_of(tx), epsilon_of(ty)))
    return replace(stats, epsilon=torch.maximum(stats.epsilon, epsilon)), True


def flat(stats: Statistics) -> Statistics:
    """With one batch dimension."""
    return stats.reshape(stats.batch.numel())


def answer(value: Tensor, stats: Statistics, plain: bool) -> Any:
    """A value (b) per problem in the shape of the batch, as a number where there is one problem of moments."""
    value = value.reshape(stats.batch)
    return value.item() if plain and not stats.batch else value


def check_varies(index: str, stats: Statistics) -> None:
    for name, cov in (("x", stats.cov_xx), ("y", stats.cov_yy)):
        if not bool((cov.diagonal(dim1=-2, dim2=-1) > 0).any(-1).all()):
            raise StatisticsError(f"{index} is undefined: {name} does not vary")
