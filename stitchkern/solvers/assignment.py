"""Maps that match features with features: permutation, soft matching, semi-matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source

#: above this side a soft matching is solved as a linear programme instead of an assignment of copies
_COPIES = 2048


@dataclass(frozen=True, repr=False)
class MatchedMap(AffineMap):
    """ŷ = M x + b whose rows pick features of x.

    Attributes:
        matches: (…, q) int64, which feature of x each feature of y is matched with (most strongly); −1: with none.
        distance: √(E Σ of squared differences of matched, centred features, by the weight of each match).
    """

    matches: Tensor = None  # type: ignore[assignment]
    distance: Any = float("nan")


def permutation(m: Source, *, criterion: str = "covariance", scale: bool = False) -> MatchedMap:
    r"""The one-to-one matching of features that agrees best, as a map of zeros and ones.

    .. math:: \max_\pi \sum_k g_{\pi(k)k},\qquad g = \mathrm{cov}(x_j, y_k) - \tfrac12 \mathrm{var}(x_j)
              \text{ or } \mathrm{corr}(x_j, y_k)

    The first minimises E‖P x + b − y‖² over all matchings of min(p, q) pairs; the second matches features whatever
    their scales. With p > q some features of x are left over, with p < q some rows of P are zero. Solved by scipy's
    ``linear_sum_assignment`` (Li et al. 2016; Ainsworth et al. 2023, "activation matching").

    Args:
        m: as for :func:`least_squares`.
        criterion: ``"covariance"``, ``"correlation"``, or ``"absolute"``: the correlation without its sign (needs
            ``scale`` to make sense as a map).
        scale: give each match the slope cov/var of its own regression instead of 1.

    Raises:
        ValueError: unknown criterion. Others as :func:`least_squares`.
    """
    from scipy.optimize import linear_sum_assignment

    stats = Statistics.of(m)
    flat = stats.reshape(stats.batch.numel())
    gain = _gain(flat, criterion)
    if criterion == "covariance":
        gain = gain - flat.cov_xx.diagonal(dim1=-2, dim2=-1)[..., None] / 2
    matches = torch.full((len(gain), stats.q), -1)
    for i, g in enumerate(gain.cpu().numpy()):
        rows, columns = linear_sum_assignment(g, maximize=True)
        matches[i, torch.from_numpy(columns)] = torch.from_numpy(rows)
    return _matched(stats, flat, matches.to(stats.device), scale, "assignment")


def semi_matching(m: Source, *, criterion: str = "correlation", scale: bool = True) -> MatchedMap:
    r"""For each feature of y the feature of x that correlates with it most; one may serve several.

    .. math:: \pi(k) = \arg\max_j \mathrm{corr}(x_j, y_k)

    Args:
        m: as for :func:`least_squares`.
        criterion: ``"correlation"``, ``"absolute"`` (its magnitude), or ``"covariance"``.
        scale: give each match the slope cov/var of its own regression (default) instead of 1.

    A feature of y with which nothing correlates has no match (−1) and a zero row.

    Raises:
        ValueError: unknown criterion. Others as :func:`least_squares`. Source: Li et al. 2016, "semi-matching".
    """
    stats = Statistics.of(m)
    flat = stats.reshape(stats.batch.numel())
    gain = _gain(flat, criterion)
    dead = flat.cov_xx.diagonal(dim1=-2, dim2=-1)[..., None] == 0
    best = gain.masked_fill(dead, -torch.inf).max(dim=-2)
    matched = best.values.isfinite() & (best.values != 0)
    return _matched(stats, flat, torch.where(matched, best.indices, -1), scale, "argmax")


def soft_matching(m: Source) -> MatchedMap:
    r"""Soft matching: each feature of y as a weighted mean of the features of x that an optimal transport sends to it.

    .. math:: \min_{T\ge 0} \sum_{jk} T_{jk}\,E(x_j-y_k)^2,\quad T\mathbf 1 = \tfrac1p,\ T^\top\mathbf 1=\tfrac1q,\qquad
              M = q\,T^\top

    about the means. For p = q it is the best permutation. ``distance`` is the root of the optimum, the soft-matching
    distance of Khosla and Williams 2024. Features are compared in their own units: scale them first where that is not
    meant. Solved exactly as an assignment of copies (scipy ``linear_sum_assignment``) where lcm(p, q) ≤ 2048 or p = q,
    otherwise as a linear programme (scipy's HiGHS) to 1e-10 of the largest cost, which takes minutes from p·q about
    1e5 on.

    Raises: as :func:`least_squares`.
    """
    stats = Statistics.of(m)
    flat = stats.reshape(stats.batch.numel())
    variances = flat.cov_xx.diagonal(dim1=-2, dim2=-1)[..., None], flat.cov_yy.diagonal(dim1=-2, dim2=-1)[..., None, :]
    cost = variances[0] + variances[1] - 2 * flat.cov_xy
    plans = torch.zeros_like(cost)
    for plan, c in zip(plans, cost.cpu().numpy(), strict=True):
        plan.copy_(torch.from_numpy(transport(c)))
    weight = (stats.q * plans.mT).reshape(*stats.batch, stats.q, stats.p)
    value = (plans * cost).sum((-2, -1)).clamp(min=0.0).sqrt()
    return settle(
        stats,
        weight,
        rank=torch.linalg.matrix_rank(weight),
        dropped=0,
        method="transport",
        error=torch.zeros(stats.batch, dtype=torch.float64, device=stats.device),
        kind=MatchedMap,
        matches=weight.argmax(-1),
        distance=value.reshape(stats.batch),
    )


#: of HiGHS, the tightest it takes
_EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def _gain(stats: Statistics, criterion: str) -> Tensor:
    if criterion not in ("covariance", "correlation", "absolute"):
        raise ValueError(f"criterion must be covariance, correlation or absolute; got {criterion!r}")
    if criterion == "covariance":
        return stats.cov_xy
    spreads = (c.diagonal(dim1=-2, dim2=-1).sqrt() for c in (stats.cov_xx, stats.cov_yy))
    x, y = (torch.where(s > 0, s, 1.0) for s in spreads)
    gain = stats.cov_xy / x[..., :, None] / y[..., None, :]
    return gain.abs() if criterion == "absolute" else gain


def _matched(stats: Statistics, flat: Statistics, matches: Tensor, scale: bool, method: str) -> MatchedMap:
    """The map of these matches (b, q)."""
    found = matches.clamp(min=0)[:, None, :]
    covariance = flat.cov_xy.gather(1, found)[:, 0]
    variance = flat.cov_xx.diagonal(dim1=-2, dim2=-1).gather(1, found[:, 0])
    slope = torch.ones_like(covariance)
    if scale:
        slope = torch.where(variance > 0, covariance / torch.where(variance > 0, variance, 1.0), 0.0)
    slope = torch.where(matches >= 0, slope, 0.0)
    weight = flat.cov_xy.new_zeros(len(matches), stats.q, stats.p).scatter_(2, found.mT, slope[..., None])
    apart = variance + flat.cov_yy.diagonal(dim1=-2, dim2=-1) - 2 * covariance
    used = torch.nn.functional.one_hot(found[:, 0], stats.p).mul((slope != 0)[..., None]).amax(1).sum(-1)
    batch = stats.batch
    return settle(
        stats,
        weight.reshape(*batch, stats.q, stats.p),
        rank=used.reshape(batch),
        dropped=0,
        method=method,
        error=(stats.epsilon if scale else torch.zeros(batch, dtype=torch.float64, device=stats.device)).expand(batch),
        kind=MatchedMap,
        matches=matches.reshape(*batch, stats.q),
        distance=torch.where(matches >= 0, apart, 0.0).sum(-1).clamp(min=0.0).sqrt().reshape(batch),
    )


def transport(cost: np.ndarray) -> np.ndarray:
    """The plan (p, q) with uniform marginals 1/p and 1/q of least cost."""
    from scipy.optimize import linear_sum_assignment, linprog
    from scipy.sparse import eye_array, kron, vstack

    p, q = cost.shape
    copies = math.lcm(p, q)
    if copies <= _COPIES or p == q:
        rows, columns = linear_sum_assignment(np.repeat(np.repeat(cost, copies // p, 0), copies // q, 1))
        plan = np.zeros((p, q))
        np.add.at(plan, (rows // (copies // p), columns // (copies // q)), 1.0 / copies)
        return plan
    marginals = vstack([kron(eye_array(p), np.ones((1, q))), kron(np.ones((1, p)), eye_array(q))]).tocsr()
    mass = np.concatenate([np.full(p, 1 / p), np.full(q, 1 / q)])
    scale = np.abs(cost).max() or 1.0
    solved = linprog((cost / scale).ravel(), A_eq=marginals, b_eq=mass, method="highs", options=_EXACT)
    if not solved.success:
        raise RuntimeError(f"the transport programme was not solved: {solved.message}")
    return solved.x.reshape(p, q)
