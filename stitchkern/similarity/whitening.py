"""Directions in which a side varies, in correlation form and clear of rounding: what CCA and its kin are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.features import centred, epsilon_of, is_features, pair, problem_of, problem_of_pair
from stitchkern.solvers.factor import Factor, noise

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input

#: ‖A⁻¹‖ of correlations from which directions are taken from the samples themselves, where they are there
COLLINEAR = 1e4


def principal(cov: Tensor, epsilon: Tensor, is_rotated: bool = False) -> tuple[Tensor, Tensor]:
    """Eigenvalues (b, p), descending, and eigenvectors of covariances; zero from the numerical rank on.

    The rank is that of the correlation form, whose noise does not depend on the features' units; of rotated features,
    whose axes beyond the rank hold nothing but rounding, that of the covariance.
    """
    values, vectors = torch.linalg.eigh(cov)
    values, vectors = values.flip(-1), vectors.flip(-1)
    p = cov.shape[-1]
    if is_rotated:
        mean = values.sum(-1, keepdim=True) / p
        of_mean = values[..., :1] / torch.where(mean > 0, mean, 1.0)
        rank = (values > noise(epsilon[..., None], p, of_mean) * mean).sum(-1)
    else:
        rank = p - Factor(cov, torch.zeros_like(epsilon), epsilon).dropped
    # what the root of an eigenvalue needs is that it is positive; below float64's own rounding it might not be
    floor = cov.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
    live = (torch.arange(values.shape[-1], device=cov.device) < rank[..., None]) & (values > floor)
    return torch.where(live, values, 0.0), vectors


def first(values: Tensor, count: Tensor) -> Tensor:
    """The first ``count`` (b,) values of each problem, zeros after them."""
    keep = torch.arange(values.shape[-1], device=values.device) < count[..., None]
    return torch.where(keep, values, 0.0)


@dataclass(frozen=True)
class Constant:
    """How a side's features, before they were centred, hold the constant function of the sample."""

    mean: Tensor  # (b, ·): of the features along the whitened directions
    outside: Tensor  # (b,) bool: a combination of features is constant and not zero


@dataclass(frozen=True)
class Whitened:
    """Both sides along uncorrelated directions of unit variance, zero where a direction was dropped."""

    cross: Tensor  # (b, ·, ·): its singular values are the canonical correlations
    loadings: Tensor  # (b, ·, p): covariance of these directions of x with its features
    rank_x: Tensor  # (b,) float64
    rank_y: Tensor
    constant_x: Constant
    constant_y: Constant
    rounding: Tensor  # (b,): what it may have added to a correlation
    batch: torch.Size
    plain: bool

    @property
    def count(self) -> Tensor:
        return torch.minimum(self.rank_x, self.rank_y)

    def answer(self, value: Tensor) -> Any:
        """A value per problem in the shape of the batch, as a number where there is one problem of moments."""
        value = value.reshape(self.batch)
        return value.item() if self.plain and not self.batch else value


def whitened(index: str, x: Input, y: Features | None) -> Whitened:
    """From products where they keep enough digits, otherwise from the samples."""
    if is_features(x):
        tx, ty = pair(x, y)
        if len(tx) <= max(tx.shape[1], ty.shape[1]):
            return _from_samples(index, tx, ty)
        problem = problem_of_pair(tx, ty)
    else:
        problem = problem_of(x, y)
    problem.check_varies(index)
    flat = problem.flat()
    of_x, of_y = (Factor(cov, torch.zeros_like(epsilon), epsilon) for cov, epsilon, _ in flat.sides())
    if is_features(x) and max(float(f.inverse.max()) for f in (of_x, of_y)) > COLLINEAR:
        return _from_samples(index, tx, ty)  # products lose half of the digits that the features have
    stats = flat.stats
    loadings = of_x.forward(stats.cov_xx)
    return Whitened(
        of_y.forward(of_x.forward(stats.cov_xy).mT).mT,
        loadings,
        (stats.p - of_x.dropped).double(),
        (stats.q - of_y.dropped).double(),
        _constant(of_x, stats.cov_xx, stats.mean_x),
        _constant(of_y, stats.cov_yy, stats.mean_y),
        8 * (of_x.noise * of_x.inverse + of_y.noise * of_y.inverse),
        problem.stats.batch,
        problem.plain,
    )


def _constant(factor: Factor, cov: Tensor, mean: Tensor) -> Constant:
    """The part of the mean that no direction of variance explains belongs to a combination that is constant."""
    live = cov.diagonal(dim1=-2, dim2=-1) > 0
    scaled = torch.where(live, mean, 0.0)
    along = factor.forward(scaled[..., None])
    left = (scaled[..., None] - cov @ factor.back(along))[..., 0] / factor.scale
    size = (scaled / factor.scale).square().sum(-1).sqrt()
    outside = left.square().sum(-1).sqrt() > _turned(factor.noise, factor.inverse, size)
    return Constant(along[..., 0], outside | ((mean != 0) & ~live).any(-1))


def _turned(level: Tensor, inverse: Tensor, size: Tensor) -> Tensor:
    """How much of a mean of this size rounding may move out of the directions of variance: by the mean of its errors,
    √level, and by the angle at which it turns these directions, √(level ‖A⁻¹‖)."""
    return 4 * level.sqrt() * (1 + size * inverse.sqrt())


@dataclass(frozen=True)
class Span:
    """What one side's samples span, by an SVD of its standardised features, cut where their correlation form is."""

    centred: Tensor  # (n, p)
    basis: Tensor  # (n, r), orthonormal
    values: Tensor  # (r,): eigenvalues of the correlation form
    axes: Tensor  # (r, live): its eigenvectors
    live: Tensor  # (p,) bool: features that vary
    spread: Tensor  # (p,): standard deviations
    level: Tensor  # below which an eigenvalue is rounding

    @classmethod
    def of(cls, index: str, name: str, t: Tensor) -> Span:
        c = centred(t)
        largest = c.abs().amax(0)
        live = largest > 0
        if not bool(live.any()):
            raise StatisticsError(f"{index} is undefined: {name} does not vary")
        units = c[:, live] / largest[live]  # whose squares cannot leave float64
        deviation = units.square().mean(0).sqrt()
        spread = largest.index_put((live,), largest[live] * deviation)
        u, s, vt = torch.linalg.svd(units / deviation, full_matrices=False)
        values = s.square() / len(c)
        level = noise(values.new_tensor(epsilon_of(t)), int(live.sum()), values[0])
        keep = values > level
        return cls(c, u[:, keep], values[keep], vt[keep], live, spread, level)

    def constant(self, mean: Tensor) -> Constant:
        scaled = mean[self.live] / self.spread[self.live]
        inside = self.axes @ scaled
        left = scaled - self.axes.T @ inside
        outside = left.norm() > _turned(self.level, 1 / self.values.min(), scaled.norm())
        outside = outside | (mean[~self.live] != 0).any()
        return Constant((inside / self.values.sqrt())[None], outside[None])


def _from_samples(index: str, x: Tensor, y: Tensor) -> Whitened:
    """On the n-side: for few samples, and for features so collinear that products lose half of their digits."""
    of_x, of_y = Span.of(index, "x", x), Span.of(index, "y", y)
    u, v = of_x.basis, of_y.basis
    rank_x, rank_y = (u.new_tensor([b.shape[1]]) for b in (u, v))
    return Whitened(
        (u.T @ v)[None],
        (u.T @ of_x.centred)[None] / len(u) ** 0.5,
        rank_x,
        rank_y,
        of_x.constant(x.double().mean(0)),
        of_y.constant(y.double().mean(0)),
        u.new_ones(1),
        torch.Size(()),
        True,
    )
