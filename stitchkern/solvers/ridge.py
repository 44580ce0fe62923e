"""Ridge regression for many penalties from one factorisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.solvers.linear import least_squares, size_of, weight_error
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source

#: relative error that the shared factorisation may cause; smaller ridges are solved by themselves
_TOLERANCE = 1e-8


@dataclass(frozen=True, repr=False)
class RidgePath:
    """The fit for each ridge.

    Attributes:
        ridges: (r,) as given.
        residual: (…, r) E‖M x + b − y‖², without the penalty.
        r2: (…, r).
        norm: (…, r) ‖M‖_F².
    """

    ridges: Tensor
    residual: Tensor
    r2: Tensor
    norm: Tensor
    _stats: Statistics = field(repr=False)
    _values: Tensor = field(repr=False)
    _vectors: Tensor = field(repr=False)
    _rotated: Tensor = field(repr=False)
    _direct: dict[int, AffineMap] = field(repr=False)

    def at(self, ridge: float) -> AffineMap:
        """The map for one of ``ridges``, given by its value.

        Raises:
            ValueError: it is not among them.
        """
        found = (self.ridges == float(ridge)).nonzero()
        if not len(found):
            raise ValueError(f"ridge {ridge:g} is not among {', '.join(f'{r:g}' for r in self.ridges.tolist())}")
        index = int(found[0])
        if index in self._direct:
            return self._direct[index]
        stats, ridge = self._stats, float(ridge)
        shrunk = self._rotated / (self._values + ridge)[..., None]
        weight = (self._vectors @ shrunk).mT
        dead = (stats.cov_xx.diagonal(dim1=-2, dim2=-1) + ridge == 0).sum(-1)
        flat = stats.reshape(stats.batch.numel())
        smallest = (self._values[..., 0] + ridge) / (self._values[..., -1] + ridge)
        level = stats.epsilon * (stats.p**0.5 + stats.p)
        ridges = torch.full((len(flat.count),), ridge, dtype=torch.float64, device=stats.device)
        inverse = (1 / smallest).reshape(-1)
        size = size_of(weight.mT.reshape(-1, stats.p, stats.q), flat.cov_xx, ridges)
        error = weight_error(flat, size, inverse, level.reshape(-1))
        return settle(
            stats,
            weight,
            rank=(stats.p - dead).clamp(max=stats.q),
            dropped=dead,
            method="eigh path",
            error=error.reshape(stats.batch),
        )

    def __repr__(self) -> str:
        stats = self._stats
        return f"RidgePath(batch={tuple(stats.batch)}, p={stats.p}, q={stats.q}, ridges={len(self.ridges)})"


def ridge_path(m: Source, ridges: Sequence[float] | Tensor) -> RidgePath:
    r"""Ridge regression for every penalty in ``ridges`` from one eigendecomposition of cov_xx.

    .. math:: C_{xx} = V\Lambda V^\top,\quad T = V^\top C_{xy},\quad M_r^\top = V(\Lambda + r)^{-1}T,\quad
              \text{residual}_r = \operatorname{tr} C_{yy} - \sum_i \|T_i\|^2 \frac{\lambda_i + 2r}{(\lambda_i + r)^2}

    A ridge so small that the rounding of the decomposition would show beside it (above 1e-8 of the map, relative to the
    largest eigenvalue; 0 among them) is solved by :func:`least_squares` on its own.

    Args:
        m: as for :func:`least_squares`.
        ridges: non-negative, in squared units of x (``alpha / n`` of scikit-learn's alpha).

    Raises:
        ValueError: no ridge, or a negative one. Others as :func:`least_squares`.
    """
    stats = Statistics.of(m)
    grid = torch.as_tensor(ridges, dtype=torch.float64, device=stats.device).reshape(-1)
    if not len(grid) or not bool(((grid >= 0) & grid.isfinite()).all()):
        raise ValueError(f"ridges must be non-negative and finite, at least one; got {ridges}")
    values, vectors = torch.linalg.eigh(stats.cov_xx)
    values = values.clamp(min=0.0)
    rotated = vectors.mT @ stats.cov_xy
    squares = rotated.square().sum(-1)[..., None, :]  # (…, 1, p)
    sums = values[..., None, :] + grid[:, None]  # (…, r, p)
    safe = torch.where(sums > 0, sums, 1.0)
    explained = (squares * (sums + grid[:, None]) / safe.square()).sum(-1)
    norm = (squares / safe.square()).sum(-1)
    total = stats.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]
    residual = (total - explained).clamp(min=0.0)

    rounding = (
        8 * stats.p**0.5 * torch.finfo(torch.float64).eps * float(values[..., -1].amax()) if values.numel() else 0.0
    )
    direct: dict[int, AffineMap] = {}
    for i, ridge in enumerate(grid.tolist()):
        if rounding >= _TOLERANCE * ridge:
            direct[i] = fit = least_squares(stats, ridge=ridge)
            residual[..., i] = torch.as_tensor(fit.residual, dtype=torch.float64)
            norm[..., i] = fit.weight.square().sum((-2, -1))
    r2 = torch.where(total > 0, 1 - residual / torch.where(total > 0, total, 1.0), 1.0)
    return RidgePath(grid, residual, r2, norm, stats, values, vectors, rotated, direct)
