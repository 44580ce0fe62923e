"""What the indices take: moments, statistics, or features; checked, in float64, about their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


def single(x: Any, at_least: int = 1) -> Tensor:
    """x (n, p) as a tensor of the caller's type, checked."""
    t = tensor_of("x", x).detach()
    if t.ndim != 2 or not t.shape[1]:
        raise ShapeError(f"x must be (n, p); got {tuple(t.shape)}")
    _check_values("x", t, at_least)
    return t


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
        _check_values(name, t, at_least)
    return a, b


def _check_values(name: str, t: Tensor, at_least: int) -> None:
    if t.is_floating_point() and t.numel():
        ends = torch.stack(t.aminmax())  # NaN if there is one anywhere
        if not bool(ends.isfinite().all()):
            raise NotFiniteError(f"{name} holds NaN or Inf")
    if len(t) < at_least:
        plural = "s" if at_least > 1 else ""
        raise StatisticsError(f"the index needs at least {at_least} sample{plural}; got {len(t)}")


def centred(t: Tensor) -> Tensor:
    """Float64, about the mean of each feature; a constant feature becomes exactly zero."""
    t = t.double()
    t = t - t[0]  # first, so that what is constant is zero and has no rounded mean
    return t - t.mean(0)


def spanned(t: Tensor) -> Tensor:
    """Centred samples (n, min(n, p)): of n < p along the n axes that they span."""
    c = centred(t)
    return torch.linalg.qr(c.T, mode="r").R.T if c.shape[1] > len(c) else c


def epsilon_of(t: Tensor) -> float:
    """What is noise in float64 products of these features, relative to their variance: what rounding added to it."""
    if not _is_rounded(t):
        return 2.0**-53
    c = centred(t)
    return _epsilon(t, c.square().mean(0), t.double().mean(0))


def _is_rounded(t: Tensor) -> bool:
    return t.is_floating_point() and t.dtype != torch.float64


def _epsilon(t: Tensor, variance: Tensor, mean: Tensor) -> float:
    """u² E x² / var x of the worst feature, of features rounded to u; at most what moments take (or u² itself).

    Never more, as bfloat16 far from zero would have nothing but noise.
    """
    if not _is_rounded(t):
        return 2.0**-53
    rounded = (torch.finfo(t.dtype).eps / 2) ** 2
    live = variance > 0
    far = float(1 + (mean[live].square() / variance[live]).max()) if bool(live.any()) else 1.0
    return min(max(rounded * far, rounded), max(rounded, 2.0**-24))


@dataclass(frozen=True)
class Problem:
    """What an index computes with: the statistics of both sides, and what each side's are worth.

    Attributes:
        epsilon_x, epsilon_y: (…), what is noise on each side, relative to its variances.
        turned_x, turned_y: these features were rotated into the n axes that they span.
        plain: the caller wants plain numbers (not a tensor for a batch).
    """

    stats: Statistics
    epsilon_x: Tensor
    epsilon_y: Tensor
    turned_x: bool
    turned_y: bool
    plain: bool

    def flat(self) -> Problem:
        """With one batch dimension."""
        return replace(
            self,
            stats=self.stats.reshape(self.stats.batch.numel()),
            epsilon_x=self.epsilon_x.reshape(-1),
            epsilon_y=self.epsilon_y.reshape(-1),
        )

    def sides(self) -> tuple[tuple[Tensor, Tensor, bool], tuple[Tensor, Tensor, bool]]:
        """Covariance, noise and whether it is of rotated features, of x and of y."""
        return (
            (self.stats.cov_xx, self.epsilon_x, self.turned_x),
            (self.stats.cov_yy, self.epsilon_y, self.turned_y),
        )

    def answer(self, value: Tensor) -> Any:
        """A value per problem in the shape of the batch, as a number where there is one problem of moments."""
        value = value.reshape(self.stats.batch)
        return value.item() if self.plain and not self.stats.batch else value

    def check_varies(self, index: str) -> None:
        for name, (cov, _, _) in zip("xy", self.sides(), strict=True):
            if not bool((cov.diagonal(dim1=-2, dim2=-1) > 0).any(-1).all()):
                raise StatisticsError(f"{index} is undefined: {name} does not vary")


def problem_of(x: Any, y: Any = None, *, rotate: bool = False) -> Problem:
    """The problem that x and y pose: features, or moments or statistics of both sides.

    Features are multiplied in float64: the indices take roots and quotients of these products.

    Args:
        rotate: the index does not see rotations. Then features of n < p are first rotated into the n axes that they
            span, so that nothing larger than n × n is decomposed.
    """
    if not is_features(x):
        if y is not None:
            raise ValueError("y must not be given with moments or statistics: they hold both sides")
        stats = Statistics.of(x)
        return Problem(stats, stats.epsilon, stats.epsilon, False, False, not isinstance(x, Statistics | Sequence))
    return problem_of_pair(*pair(x, y), rotate=rotate)


def problem_of_pair(x: Tensor, y: Tensor, *, rotate: bool = False) -> Problem:
    """The same of features that `pair` has checked. They are read as they are, once."""
    sides, turned = (x, y), [rotate and t.shape[1] > len(t) for t in (x, y)]
    rows = [
        spanned(t) if turn else t if t.is_floating_point() else t.double()
        for t, turn in zip(sides, turned, strict=True)
    ]
    m = Moments(rows[0].shape[1], rows[1].shape[1], precision="float64", device=x.device).update(*rows)
    stats = Statistics.of(m)
    epsilons = []
    for t, turn, cov, mean in zip(
        sides, turned, (stats.cov_xx, stats.cov_yy), (stats.mean_x, stats.mean_y), strict=True
    ):
        epsilon = epsilon_of(t) if turn else _epsilon(t, cov.diagonal(), mean)
        epsilons.append(stats.epsilon.clamp(min=epsilon))
    return Problem(
        replace(stats, epsilon=torch.maximum(*epsilons)), epsilons[0], epsilons[1], turned[0], turned[1], True
    )


def check_fits(excess: Tensor, rounding: Tensor) -> None:
    """That correlations exceed 1, or squares are below 0, by no more than rounding, as those of all data."""
    if bool((excess > rounding).any()):
        raise StatisticsError("cov_xy does not fit cov_xx and cov_yy: together they are indefinite")


def rounding_of_cosine(stats: Statistics) -> Tensor:
    """What rounding may have added to ‖C_xy‖_* beside the traces of C_xx and C_yy."""
    return 64 * max(stats.p, stats.q) * stats.epsilon


def root_of_difference(square: Tensor, terms: Tensor, stats: Statistics) -> Tensor:
    """√ of a difference of such terms. Below zero by no more than their rounding is zero; further is no distance."""
    check_fits(-square, rounding_of_cosine(stats) * terms)
    return torch.where(square > 0, square, 0.0).sqrt()
