"""Orthogonal Procrustes: the rotation that brings x closest to y."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source


@dataclass(frozen=True, repr=False)
class ProcrustesMap(AffineMap):
    """ŷ = s Q x + b with Q orthogonal.

    Attributes:
        scale: s; 1 unless it was asked for.
        distance: the orthogonal Procrustes distance √(E‖x‖² + E‖y‖² − 2‖S_xy‖_*), in units of the features (of centred
            ones unless ``center=False``); symmetric in x and y, and not scaled.
    """

    scale: Any = 1.0
    distance: Any = float("nan")


def procrustes(m: Source, *, scale: bool = False, center: bool = True) -> ProcrustesMap:
    r"""The orthogonal map (with a shift) that minimises E‖s Q x + b − y‖².

    .. math:: S_{yx} = U\Sigma V^\top,\quad Q = UV^\top,\quad
              s = \frac{\operatorname{tr}\Sigma}{\operatorname{tr} Q S_{xx} Q^\top} \text{ or } 1,\quad
              b = \bar y - s Q\bar x

    x is aligned to y. For p ≤ q the columns of Q are orthonormal and Q is the minimiser (Schönemann 1966). For p > q
    its rows are, which is the solution with y padded by zeros up to p features, as shape metrics define it (Williams et
    al. 2021); ``residual`` is that of the map itself, without the padding.

    Args:
        m: as for :func:`least_squares`.
        scale: also fit the factor s ≥ 0.
        center: False aligns the raw features about 0, with b = 0, as Csiszárik et al. 2021 did; ``residual`` and
            ``r2`` are then about 0 as well: r2 = 1 − residual / E‖y‖².

    Returns:
        The map. ``rank`` counts the singular values of S_xy above rounding: below min(p, q), Q is not unique, and
        ``error`` is infinite.

    Raises: as :func:`least_squares`.
    """
    stats = Statistics.of(m)
    if not center:
        stats = stats.about_zero()
    u, s, v = torch.linalg.svd(stats.cov_xy.mT, full_matrices=False)
    q = u @ v
    nuclear = s.sum(-1)
    spread_x = stats.cov_xx.diagonal(dim1=-2, dim2=-1).sum(-1)
    spread_y = stats.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1)
    size = ((q @ stats.cov_xx) * q).sum((-2, -1))
    factor = torch.ones_like(size)
    if scale:
        factor = torch.where(size > 0, nuclear / torch.where(size > 0, size, 1.0), 0.0)
    rounding = stats.epsilon * (spread_x * spread_y).sqrt()  # ‖δS‖_F ≤ ε ‖σ_x‖ ‖σ_y‖
    # Q moves by at most ‖δS‖ / (the two smallest singular values) (Li 1995; for p ≠ q the smallest alone)
    gap = s[..., -1] + (s[..., -2] if stats.p == stats.q and s.shape[-1] > 1 else 0 * s[..., -1])
    unique = (s[..., -1] > rounding) & (gap > 2 * rounding)
    error = torch.where(unique, 2 * rounding / torch.where(gap > 0, gap, 1.0), torch.inf)
    found = settle(
        stats,
        q * factor[..., None, None],
        rank=(s > rounding[..., None]).sum(-1),
        dropped=0,
        method="svd",
        error=error,
        kind=ProcrustesMap,
        scale=factor,
        distance=(spread_x + spread_y - 2 * nuclear).clamp(min=0.0).sqrt(),
    )
    return found if center else replace(found, bias=torch.zeros_like(stats.mean_y))
