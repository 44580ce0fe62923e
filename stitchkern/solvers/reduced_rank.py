"""Reduced-rank regression: the best map of every rank from one decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.solvers.factor import Factor
from stitchkern.solvers.linear import (
    check_rank,
    penalised,
    ridges_of,
    scale_targets,
    size_of,
    target_roots,
    unscale,
    weight_error,
)
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source


@dataclass(frozen=True, repr=False)
class ReducedRankPath:
    r"""What a map of rank at most k can do, for every k.

    Attributes:
        ranks: (k,) the ranks listed.
        residual: (…, k) E‖M_k x + b − y‖² of the best map of each rank (weighted, where targets are).
        r2: (…, k) 1 − residual / E‖y − ȳ‖².
        singular_values: (…, min(p, q)) of the fitted values divided by √n, descending: what each further direction
            explains is the square of its own.
        left, right: (…, q, r), (…, r, p), r = min(p, q): the first k columns and rows are the factors of M_k.
    """

    ranks: Tensor
    residual: Tensor
    r2: Tensor
    singular_values: Tensor
    left: Tensor
    right: Tensor
    _stats: Statistics = field(repr=False)
    _ridge: Tensor = field(repr=False)
    _roots: Tensor | None = field(repr=False)
    _dropped: Tensor = field(repr=False)
    _error: Tensor = field(repr=False)
    _method: tuple[str, ...] = field(repr=False)

    def at(self, rank: int) -> AffineMap:
        """The best map of rank at most ``rank``, with its two factors.

        Where the singular values of the fitted values are equal on both sides of ``rank`` it is not unique, and its
        ``error`` is infinite.
        """
        stats = self._stats
        rank = check_rank(rank, stats.p, stats.q)
        a, b = self.left[..., :rank], self.right[..., :rank, :]
        weight = a @ b
        explained = self.singular_values[..., :rank].square().sum(-1) + penalised(self._ridge, weight)
        error = self._error
        if rank < self.left.shape[-1]:  # the kept directions turn by the error over their gap to the rest (Wedin)
            gap = self.singular_values[..., rank - 1] - self.singular_values[..., rank]
            moved = (error + 2.0**-50) * self.singular_values[..., 0]
            turned = torch.where(gap > moved, 2**0.5 * moved / torch.where(gap > 0, gap, 1.0), torch.inf)
            error = torch.where(self.singular_values[..., rank - 1] > moved, error + turned, error)
        fit = settle(
            stats,
            weight,
            rank=(stats.p - self._dropped).clamp(max=rank),
            dropped=self._dropped,
            method=self._method,
            error=error,
            explained=explained,
            factors=(a, b),
        )
        return fit if self._roots is None else unscale(fit, self._roots)

    def __repr__(self) -> str:
        stats = self._stats
        return f"ReducedRankPath(batch={tuple(stats.batch)}, p={stats.p}, q={stats.q}, ranks=1…{self.left.shape[-1]})"


def reduced_rank_path(
    m: Source,
    ranks: Sequence[int] | None = None,
    *,
    ridge: float | Tensor = 0.0,
    target_weight: Tensor | None = None,
) -> ReducedRankPath:
    r"""Residual and R² of the best map of every rank, and the maps themselves as two factors.

    .. math::
        \min_{\mathrm{rank} M \le k} E\|M x + b - y\|^2:\quad
        Z = L^{-1} S_{xy},\ LL^\top = S_{xx},\quad Z^\top Z = V\Lambda V^\top,\quad M_k = V_k V_k^\top M

    The optimum in the metric of x (Izenman 1975; Eckart and Young on the fitted values), not the truncated SVD of M,
    for the price of one Cholesky factorisation and one eigendecomposition of the smaller side.

    Args:
        m, ridge, target_weight: as for :func:`least_squares`.
        ranks: which to list in ``residual`` and ``r2``; by default all, 1 … min(p, q). ``at`` takes any.

    Raises: as :func:`least_squares`.
    """
    stats = Statistics.of(m)
    roots = None if target_weight is None else target_roots(target_weight, stats)
    if roots is not None:
        stats = scale_targets(stats, roots)
    p, q, batch = stats.p, stats.q, stats.batch
    most = min(p, q)
    listed = [check_rank(k, p, q) for k in (range(1, most + 1) if ranks is None else ranks)]
    penalty = ridges_of(ridge, stats)
    flat, flat_ridge = stats.reshape(batch.numel()), penalty.reshape(-1)

    factor = Factor(flat.cov_xx, flat_ridge, flat.epsilon)
    z = factor.forward(flat.cov_xy)  # (b, p, q)
    if q <= p:
        values, vectors = _descending(_product(z.mT, z))
        left, right = vectors, factor.back(_product(z, vectors)).mT
    else:
        values, vectors = _descending(_product(z, z.mT))
        left, right = _product(z.mT, vectors), factor.back(vectors).mT
    singular = values.clamp(min=0.0).sqrt()

    explained = singular.square().cumsum(-1)
    if bool((flat_ridge > 0).any()):  # ‖M_k‖² = ‖A_k B_k‖², direction by direction
        gram = (left.mT @ left) * (right @ right.mT)
        norms = gram.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
        explained = explained + flat_ridge[:, None] * norms
    total = flat.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None]
    residual = (total - explained).clamp(min=0.0)
    r2 = torch.where(total > 0, 1 - residual / torch.where(total > 0, total, 1.0), 1.0)

    # ‖M D‖ without M: the columns of left are orthogonal, of norm 1 or √λ
    size = size_of((right if q <= p else right * singular[..., None]).mT, flat.cov_xx, flat_ridge)
    error = weight_error(flat, size, factor.inverse, factor.noise)
    index = torch.tensor(listed, device=stats.device) - 1
    return ReducedRankPath(
        ranks=index + 1,
        residual=residual[:, index].reshape(*batch, len(listed)),
        r2=r2[:, index].reshape(*batch, len(listed)),
        singular_values=singular.reshape(*batch, most),
        left=left.reshape(*batch, q, most),
        right=right.reshape(*batch, most, p),
        _stats=stats,
        _ridge=penalty,
        _roots=roots,
        _dropped=factor.dropped.reshape(batch),
        _error=error.reshape(batch),
        _method=factor.method,
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; of one large problem without the batched product, which takes twice as long on a CPU."""
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b


def _descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1), vectors.flip(-1)
