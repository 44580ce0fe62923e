"""Least squares from a streaming QR factor: the accurate road."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.solvers.factor import null_space
from stitchkern.solvers.linear import check_rank, penalised, ridges_of, scale_targets, target_roots, unscale

if TYPE_CHECKING:
    from stitchkern.qr import StreamingQR

_EPS = 2.0**-53


def least_squares_qr(
    qr: StreamingQR,
    *,
    ridge: float | Tensor = 0.0,
    rank: int | None = None,
    target_weight: Tensor | None = None,
    rounding: Tensor | None = None,
) -> AffineMap:
    r"""`least_squares` from R_xx, R_xy, R_yy; a ridge is further rows, √ridge · I, under R_xx.

    With D the standard deviations of x and R_xx D⁻¹ = U Σ Vᵀ: Mᵀ = D⁻¹ V Σ⁺ Uᵀ R_xy, singular values below
    p ε σ_max dropped; reduced rank by the SVD of Uᵀ R_xy, the fitted values in an orthonormal basis.

    Args:
        rounding: (p,) what each feature of x was rounded by before it was added, in its own units. A direction that
            moves no further than p times what this adds up to along it is dropped as well: features that are collinear
            but for the rounding of large means, say.
    """
    r_xx, r_xy, _ = qr.factor()
    stats = qr.statistics()
    p, q = r_xy.shape
    if rank is not None:
        rank = check_rank(rank, p, q)
    if rounding is not None:  # features that hardly move would share their noise with others of equal variance
        r_xx = r_xx.masked_fill(p * rounding >= r_xx.square().sum(0).sqrt(), 0.0)
    penalty = ridges_of(ridge, stats)
    roots = None
    if target_weight is not None:
        roots = target_roots(target_weight, stats)
        stats, r_xy = scale_targets(stats, roots), r_xy * roots
    if penalty > 0:
        r_xx = torch.cat([r_xx, penalty.sqrt() * torch.eye(p, dtype=r_xx.dtype, device=r_xx.device)])
        r_xy = torch.cat([r_xy, r_xy.new_zeros(p, q)])
    largest = r_xx.abs().amax(0)
    largest = torch.where(largest > 0, largest, 1.0)
    scale = largest * (r_xx / largest).square().sum(0).sqrt()  # squares of small or large features leave float64
    scale = torch.where(scale > 0, scale, 1.0)
    u, s, v = torch.linalg.svd(r_xx / scale, full_matrices=False)
    level = _EPS * s[0]
    if rounding is not None:
        level = level + (v * (rounding / scale)).square().sum(1).sqrt()
    keep = s > p * level
    z = u[:, keep].T @ r_xy
    factors = None
    if rank is not None:
        a, b, c = torch.linalg.svd(z, full_matrices=False)
        k = min(rank, len(b))
        z, factors = (a[:, :k] * b[:k]) @ c[:k], (a[:, :k] * b[:k], c[:k])
    least = s[keep].min() if bool(keep.any()) else s[0]
    null = null_space(v[~keep].T, scale, 8 * p * level.max() / least)

    def back(z: Tensor) -> Tensor:
        x = (v[keep].T @ (z / s[keep][:, None])) / scale[:, None]
        change = null @ (null.T @ x)
        # what lies along directions of no variance changes no prediction; where it does, rounding drew them
        moved = (r_xx @ change).square().sum().sqrt()
        return x - change if bool(moved <= 16 * p * level.max() / s[0] * z.square().sum().sqrt()) else x

    weight = back(z).T
    dropped = int((~keep).sum())
    size = (weight * scale).square().sum().sqrt()
    inverse = (1 / s[keep]).square().sum().sqrt() if dropped < p else torch.zeros_like(size)
    # Wedin: ε κ, and ε κ² times the residual where that is not small
    unexplained = (r_xy.square().sum() - z.square().sum()).clamp(min=0.0) + qr.factor()[2].square().sum()
    beside = unexplained.sqrt() / size if size > 0 else 0.0
    error = 4 * _EPS * p**0.5 * inverse * (1 + inverse * beside)
    fit = settle(
        stats,
        weight,
        rank=torch.tensor(min(p - dropped, q, rank or q)),
        dropped=dropped,
        method="qr",
        error=error,
        explained=z.square().sum() + penalised(penalty, weight),
        factors=None if factors is None else (factors[1].T, back(factors[0]).T),
    )
    return fit if roots is None else unscale(fit, roots)
