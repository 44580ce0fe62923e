"""Ordinary, ridge, reduced-rank and full-rank least squares from moments; one problem or a batch."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.errors import ShapeError
from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.solvers.factor import Factor, inverse_norm, noise, probes, scale_of, trusted
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source


def least_squares(
    m: Source,
    *,
    ridge: float | Tensor = 0.0,
    rank: int | None = None,
    target_weight: Tensor | None = None,
) -> AffineMap:
    r"""The affine map that minimises E‖M x + b − y‖² + ridge·‖M‖²_F, of rank at most ``rank``.

    .. math:: M = C_{yx} (C_{xx} + \mathrm{ridge}\cdot I)^{-1}, \qquad b = \bar y - M\bar x

    from the population covariances of ``m``, in float64, in correlation form (each feature of x scaled by the root of
    its variance plus ridge). Cholesky first. Where that fails, or leaves a pivot that the accuracy of the moments
    cannot vouch for (collinear features, fewer samples than features), an eigendecomposition drops the directions below
    the noise, ε (√p + λ_max) with ε = ``m.epsilon``, and the map is the one of minimum norm ‖M‖_F among the minimisers.
    ``dropped`` says how many directions that were, ``error`` how far rounding may have moved the map. For features so
    collinear that these matter, there are ``Moments(precision="float64")`` (noise 1e9 times lower),
    :class:`stitchkern.StreamingQR`, which this function takes as well, and :func:`stitchkern.lstsq`, which chooses.

    With ``rank=k``, the exact optimum of rank at most k (reduced-rank regression, Izenman 1975): the fit projected on
    the k leading principal directions of the fitted values, not the truncated SVD of M.

    Args:
        m: two-sided :class:`Moments` of at least two samples, a list of them, :class:`Statistics` with any batch
            dimensions, or a :class:`StreamingQR`. All problems of a batch are solved in one call.
        ridge: non-negative, in squared units of x, one for all or one per problem; the intercept is not penalised.
        rank: 1 … min(p, q), or None.
        target_weight: (q,) or (…, q) positive ω: target k counts ω_k times, in the error and in the penalty. That
            changes ``residual`` and ``r2``, and the map where its rank is constrained.

    Raises:
        ValueError: a negative ridge, a rank outside 1 … min(p, q), a target weight that is not positive.
        ShapeError: ridge or target weights that do not fit the batch.
        StatisticsError: one-sided moments, fewer than two samples, or an indefinite covariance.
    """
    from stitchkern.qr import StreamingQR

    if isinstance(m, StreamingQR):
        from stitchkern.solvers.triangular import least_squares_qr

        return least_squares_qr(m, ridge=ridge, rank=rank, target_weight=target_weight)
    if rank is not None:
        from stitchkern.solvers.reduced_rank import reduced_rank_path

        return reduced_rank_path(m, ridge=ridge, target_weight=target_weight).at(rank)
    stats = Statistics.of(m)
    ridges = ridges_of(ridge, stats)
    if target_weight is not None:
        roots = target_roots(target_weight, stats)
        return unscale(_solve(scale_targets(stats, roots), ridges), roots)
    return _solve(stats, ridges)


def full_rank(m: Source, *, floor: float) -> AffineMap:
    r"""The least-squares map where its smallest singular value reaches ``floor``, otherwise the nearest that does.

    .. math:: M = U\Sigma V^\top \;\mapsto\; U \max(\Sigma, \mathrm{floor}) V^\top

    is the nearest map in Frobenius norm among those whose min(p, q) singular values are at least ``floor``
    (Mirsky 1960). Where M has full rank and its singular values suffice, it is returned as it is.
    ``loss_increase`` is what the residual grows by, E‖(M′ − M)(x − x̄)‖². Where a singular value is zero but for
    rounding there are many nearest maps, and ``error`` is infinite.

    Raises:
        ValueError: floor is not positive. Others as :func:`least_squares`.
    """
    if not 0 < floor < float("inf"):
        raise ValueError(f"floor must be positive and finite; got {floor}")
    stats = Statistics.of(m)
    ordinary = least_squares(m if not isinstance(m, list | tuple) else stats)
    u, s, v = torch.linalg.svd(ordinary.weight, full_matrices=False)
    short = s[..., -1] < floor
    moved = torch.where(short[..., None, None], (u * s.clamp(min=floor)[..., None, :]) @ v, ordinary.weight)
    change = moved - ordinary.weight
    # a singular value that is zero but for rounding has no direction, so neither has what it is raised to
    error = torch.as_tensor(ordinary.error, dtype=torch.float64, device=stats.device)
    error = torch.where(short & (s[..., -1] <= (error + 2.0**-50) * s[..., 0]), torch.inf, error)
    # At a minimiser the cross term vanishes: the loss grows by the square of the change alone.
    increase = ((change @ stats.cov_xx) * change).sum((-2, -1)).clamp(min=0.0)
    return settle(
        stats,
        moved,
        rank=torch.full(stats.batch, min(stats.p, stats.q), device=stats.device),
        dropped=torch.as_tensor(ordinary.dropped, device=stats.device),
        method=ordinary.method,
        error=error,
        loss_increase=increase,
    )


def _solve(stats: Statistics, ridge: Tensor) -> AffineMap:
    """Least squares of every problem of the batch; ``ridge`` has its shape."""
    batch, p, q = stats.batch, stats.p, stats.q
    flat = stats.reshape(batch.numel())
    ridge = ridge.reshape(-1)
    dropped = (flat.cov_xx.diagonal(dim1=-2, dim2=-1) + ridge[:, None] == 0).sum(-1)
    method = ["cholesky"] * len(ridge)
    if p <= ops.LSQ_MAX_FEATURES[stats.device.type]:
        xx, xy, mean_x = (_contiguous(t) for t in (flat.cov_xx, flat.cov_xy, flat.mean_x))
        solved, sums, score = ops.lsq_solve(xx, xy, mean_x, ridge, probes(p, stats.device))
        explained, pivot, norm, inverse, size = score.unbind(-1)
        inverse = inverse_norm(inverse, pivot)
        level = noise(flat.epsilon, p, norm)
        left = (~trusted(pivot, norm, flat.epsilon, p)).nonzero()[:, 0]
    else:
        solved, sums = torch.empty_like(flat.cov_xy), flat.cov_xy.new_empty(len(ridge), 2, q)
        explained, inverse, size, level = torch.empty_like(ridge).expand(4, -1).clone()
        left = torch.arange(len(ridge), device=stats.device)
    if len(left):
        some = flat if len(left) == len(ridge) else flat[left]
        factor = Factor(some.cov_xx, ridge[left], some.epsilon)
        z = factor.forward(some.cov_xy)
        solved[left] = x = factor.back(z)
        # 2 tr(M S) − tr(M C Mᵀ) = ‖Z‖² + ridge‖M‖², as tr(M S) = ‖Z‖²
        explained[left] = z.square().sum((-2, -1)) + penalised(ridge[left], x)
        inverse[left], level[left], dropped[left] = factor.inverse, factor.noise, factor.dropped
        size[left] = size_of(x, some.cov_xx, ridge[left])
        deviation = some.cov_xx.diagonal(dim1=-2, dim2=-1).sqrt()
        sums[left, 0], sums[left, 1] = ((t[:, None] @ v)[:, 0] for t, v in ((some.mean_x, x), (deviation, x.abs())))
        for i, road in zip(left.tolist(), factor.method, strict=True):
            method[i] = road
    return settle(
        stats,
        solved.mT.reshape(*batch, q, p),
        rank=(p - dropped).clamp(max=q).reshape(batch),
        dropped=dropped.reshape(batch),
        method=tuple(method),
        error=weight_error(flat, size, inverse, level).reshape(batch),
        explained=explained.reshape(batch),
        sums=sums.reshape(*batch, 2, q),
    )


def _contiguous(t: Tensor) -> Tensor:
    """The same with contiguous dimensions after the batch, which may be expanded."""
    return t if t[:1].is_contiguous() else t.contiguous()


def penalised(ridge: Tensor, weight: Tensor) -> Tensor:
    """ridge ‖M‖²_F; 0 without a ridge, even where the square leaves float64."""
    return torch.where(ridge > 0, ridge * weight.square().sum((-2, -1)), 0.0)


def size_of(solved: Tensor, cov_xx: Tensor, ridge: Tensor) -> Tensor:
    """‖M D‖_F of transposed maps (b, p, q)."""
    return (solved * scale_of(cov_xx, ridge)[..., None]).square().sum((-2, -1)).sqrt()


def weight_error(stats: Statistics, size: Tensor, inverse: Tensor, level: Tensor) -> Tensor:
    """2 ‖A⁺‖ (‖δA‖ + ‖δS‖/‖M‖) in correlation form, with ‖δA‖ the noise and |δS_jk| ≤ ε σ_k: first order, doubled."""
    spread = stats.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    beside = torch.where(size > 0, spread / torch.where(size > 0, size, 1.0), 0.0)
    return 2 * inverse * (level + stats.epsilon * stats.p**0.5 * beside)


# ------------------------------------------------------------------------------------------ arguments


def ridges_of(ridge: float | Tensor, stats: Statistics) -> Tensor:
    """One ridge per problem of the batch."""
    ridges = torch.as_tensor(ridge, dtype=torch.float64, device=stats.device)
    if not bool(((ridges >= 0) & ridges.isfinite()).all()):
        raise ValueError(f"ridge must be non-negative and finite; got {ridge}")
    try:
        return ridges.expand(stats.batch)
    except RuntimeError:
        raise ShapeError(
            f"ridge must be one number or fit the batch {tuple(stats.batch)}; got {tuple(ridges.shape)}"
        ) from None


def check_rank(rank: int, p: int, q: int) -> int:
    try:
        index = operator.index(rank)
    except TypeError:
        index = 0
    if isinstance(rank, bool) or not 1 <= index <= min(p, q):
        raise ValueError(f"rank must be 1 … {min(p, q)} for p={p}, q={q}; got {rank}")
    return index


def target_roots(target_weight: Tensor, stats: Statistics) -> Tensor:
    """√ω (…, q)."""
    weight = torch.as_tensor(target_weight, dtype=torch.float64, device=stats.device)
    if weight.shape[-1:] != (stats.q,):
        raise ShapeError(f"target_weight must be (…, {stats.q}); got {tuple(weight.shape)}")
    if not bool(((weight > 0) & weight.isfinite()).all()):
        raise ValueError("target_weight must be positive and finite")
    try:
        return weight.sqrt().expand(*stats.batch, stats.q)
    except RuntimeError:
        raise ShapeError(f"target_weight must fit the batch {tuple(stats.batch)}; got {tuple(weight.shape)}") from None


def scale_targets(stats: Statistics, roots: Tensor) -> Statistics:
    """The statistics of √ω y in place of y."""
    return replace(
        stats,
        cov_xy=stats.cov_xy * roots[..., None, :],
        cov_yy=stats.cov_yy * roots[..., None, :] * roots[..., :, None],
        mean_y=stats.mean_y * roots,
    )


def unscale(fit: AffineMap, roots: Tensor) -> AffineMap:
    """The map to y itself of a map to √ω y. The fit stays in weighted units."""
    more: dict[str, Any] = {}
    if fit.factors is not None:
        more["factors"] = (fit.factors[0] / roots[..., None], fit.factors[1])
    return replace(fit, weight=fit.weight / roots[..., None], bias=fit.bias / roots, **more)
