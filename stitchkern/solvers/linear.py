"""Ordinary, ridge and reduced-rank least squares from moments."""

from __future__ import annotations

import torch
from torch import Tensor

from stitchkern.moments import Moments
from stitchkern.solvers.affine import AffineMap


def least_squares(m: Moments, *, ridge: float = 0.0, rank: int | None = None) -> AffineMap:
    r"""The affine map that minimises E‖M x + b − y‖² + ridge·‖M‖²_F, of rank at most ``rank``.

    .. math:: M = C_{yx} (C_{xx} + \mathrm{ridge}\cdot I)^{-1}, \qquad b = \bar y - M\bar x

    from the population covariances of ``m``, in float64, in correlation form (each feature of x scaled by its standard
    deviation). Cholesky first. Where that fails, or leaves a pivot that the accuracy of the moments cannot vouch for
    (collinear or dead features, fewer samples than features), an eigendecomposition drops the directions below the
    noise, ε (√p + λ_max) with ε = ``m.epsilon``, and the map is the one of minimum norm ‖M‖_F among the minimisers.
    ``dropped`` says how many directions that were. For features so collinear that these matter (float32 data of
    condition above about 1e3), accumulate with ``Moments(precision="float64")``: the noise is then 1e9 times lower.

    With ``rank=k``, the exact optimum of rank at most k (reduced-rank regression, Izenman 1975): the fit projected on
    the k leading principal directions of the fitted values, not the truncated SVD of M.

    Args:
        m: two-sided moments of at least two samples.
        ridge: non-negative, in squared units of x; the intercept is not penalised.
        rank: 1 … min(p, q), or None.

    Raises:
        ValueError: negative ridge or a rank outside 1 … min(p, q).
        StatisticsError: one-sided moments or fewer than two samples.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge must be non-negative; got {ridge}")
    cov_xx, cov_xy, cov_yy = m.cov_xx, m.cov_xy, m.cov_yy
    p, q = cov_xy.shape
    if rank is not None and not 1 <= rank <= min(p, q):
        raise ValueError(f"rank must be 1 … {min(p, q)} for p={p}, q={q}; got {rank}")

    variance = cov_xx.diagonal()
    scale = torch.where(variance > 0, variance, 1.0).sqrt()
    corr = cov_xx / scale / scale[:, None]
    corr.diagonal().add_(ridge / scale.square())
    cross = cov_xy / scale[:, None]

    factor, info = torch.linalg.cholesky_ex(corr)
    smallest_pivot = factor.diagonal().square().min().item()  # no smaller than the smallest eigenvalue
    if info.item() == 0 and smallest_pivot > 4 * _noise(m, corr.norm().item()):
        weight = (torch.cholesky_solve(cross, factor) / scale[:, None]).T
        dropped, method = 0, "cholesky"
    else:
        weight, dropped = _minimum_norm(m, corr, cross, scale)
        method = "eigh"
    if rank is not None:
        penalised = cov_xx + ridge * torch.eye(p, dtype=cov_xx.dtype, device=cov_xx.device)
        leading = torch.linalg.eigh(weight @ penalised @ weight.T).eigenvectors[:, q - rank :]
        weight = leading @ (leading.T @ weight)

    total = cov_yy.trace().item()
    explained = 2 * (weight.T * cov_xy).sum() - ((weight @ cov_xx) * weight).sum()
    residual = max(total - explained.item(), 0.0)  # the exact value is a mean of squares
    reach = (weight.abs() @ scale) + cov_yy.diagonal().sqrt()  # Σⱼ |Mₖⱼ| σⱼ + σₖ: what rounding of a covariance acts on
    return AffineMap(
        weight=weight,
        bias=m.mean_y - weight @ m.mean_x,
        rank=min(p - dropped, q, rank or q),
        dropped=dropped,
        residual=residual,
        residual_error=8 * m.epsilon * reach.square().sum().item(),
        r2=1.0 - residual / total if total > 0 else 1.0,
        method=method,
    )


def _noise(m: Moments, largest: float) -> float:
    """What rounding may add to an eigenvalue of the correlation matrix whose largest eigenvalue is at most ``largest``.

    ε (√p + λ): independent errors of entries add up to about √p ε, those of equal rows stay in step and grow with λ.
    """
    return m.epsilon * (m.p**0.5 + largest)


def _minimum_norm(m: Moments, corr: Tensor, cross: Tensor, scale: Tensor) -> tuple[Tensor, int]:
    """Solve in the directions of corr above the noise: M (q, p) of minimum norm, and how many were dropped."""
    values, vectors = torch.linalg.eigh(corr)
    largest = values[-1].item()
    floor = max(_noise(m, largest), len(values) * torch.finfo(values.dtype).eps * largest)
    keep = values > floor
    kept, lost = vectors[:, keep], vectors[:, ~keep]
    weight = ((kept / values[keep]) @ (kept.T @ cross) / scale[:, None]).T
    # In x's own units the directions that x never moves along are D⁻¹ lost: a minimum-norm map has no part there.
    null = torch.linalg.qr(lost / scale[:, None]).Q
    return weight - (weight @ null) @ null.T, int((~keep).sum())
