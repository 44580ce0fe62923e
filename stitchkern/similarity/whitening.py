"""Directions in which a side varies, in correlation form and clear of rounding: what CCA and its kin are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.features import centred, epsilon_of, is_features, pair, problem_of
from stitchkern.solvers.factor import Factor, noise

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input

#: ‖A⁻¹‖ of correlations from which directions are taken from the samples themselves, where they are there
_COLLINEAR = 1e4


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
class Whitened:
    """Both sides along uncorrelated directions of unit variance, zero where a direction was dropped."""

    cross: Tensor  # (b, ·, ·): its singular values are the canonical correlations
    loadings: Tensor  # (b, ·, p): covariance of these directions of x with its features
    rank_x: Tensor  # (b,) float64
    rank_y: Tensor
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
    problem = problem_of(x, y)
    problem.check_varies(index)
    flat = problem.flat()
    of_x, of_y = (Factor(cov, torch.zeros_like(epsilon), epsilon) for cov, epsilon, _ in flat.sides())
    if is_features(x) and max(float(f.inverse.max()) for f in (of_x, of_y)) > _COLLINEAR:
        return _from_samples(index, *pair(x, y))  # products lose half of the digits that the features have
    stats = flat.stats
    return Whitened(
        of_y.forward(of_x.forward(stats.cov_xy).mT).mT,
        of_x.forward(stats.cov_xx),
        (stats.p - of_x.dropped).double(),
        (stats.q - of_y.dropped).double(),
        problem.stats.batch,
        problem.plain,
    )


def _from_samples(index: str, x: Tensor, y: Tensor) -> Whitened:
    """On the n-side: orthonormal bases of what the standardised features span, cut where their correlation form is."""
    bases = []
    for name, t in (("x", x), ("y", y)):
        c = centred(t)
        spread = c.square().mean(0).sqrt()
        live = spread > 0
        if not bool(live.any()):
            raise StatisticsError(f"{index} is undefined: {name} does not vary")
        u, s, _ = torch.linalg.svd(c[:, live] / spread[live], full_matrices=False)
        values = s.square() / len(c)
        level = noise(values.new_tensor(epsilon_of(t)), int(live.sum()), values[0])
        bases.append((c, u[:, values > level]))
    (c, u), (_, v) = bases
    rank_x, rank_y = (u.new_tensor([b.shape[1]]) for b in (u, v))
    return Whitened((u.T @ v)[None], (u.T @ c)[None] / len(c) ** 0.5, rank_x, rank_y, torch.Size(()), True)
