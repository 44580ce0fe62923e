"""How far two similarity matrices are apart, entry by entry, without either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.distances import METRICS, about_median, check_metric, pair_distances, tiles, unit_rows
from stitchkern.similarity.features import is_features, pair, problem_of, root_of_difference

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input


def rsm_norm(x: Input, y: Features | None = None, *, metric: str = "linear") -> Any:
    r"""The Frobenius norm of the difference of the similarity matrices of x (n, p) and y (n, q).

    .. math:: d = \|S(x) - S(y)\|_F = \Big(\sum_{ij} \big(S(x)_{ij} - S(y)_{ij}\big)^2\Big)^{1/2}

    over all n² pairs. S: ``"linear"``, inner products of centred samples; ``"inner"``, of samples as they come (the PIP
    loss of Yin and Shen 2018); distances ``"euclidean"``, ``"correlation"`` and ``"cosine"`` as in
    :func:`stitchkern.rsa` (of the last two, the similarities 1 − d differ by as much). It grows with n: divide by n to
    compare. A metric on S; invariant to rotations (not "correlation"), "linear" and "euclidean" to offsets, but for
    "correlation" and "cosine" not to scales: features of different size are far apart whatever their shape.

    The first two need nothing but moments, n√(‖C_xx‖² + ‖C_yy‖² − 2‖C_xy‖²): a root of a difference, where what
    products cannot tell from equal, √ε of the larger norm, is 0 (:func:`stitchkern.procrustes_distance`). The others
    take features and stream tiles of 512 × 512 pairs. ReSi's code reports the largest singular value of the difference
    of Euclidean distances in place of the norm.

    Args:
        x: (n, p) torch or numpy; with "linear" and "inner" also two-sided moments, statistics, or a list of these.
        y: (n, q), only with features.
        metric: "linear", "inner", "euclidean", "correlation" or "cosine".

    Returns:
        A number, or a tensor with one for each problem of statistics and lists.

    Raises:
        ValueError: another metric, or one that needs features. StatisticsError: fewer than two samples, or their number
            is not known; overflow; a sample that is zero ("cosine") or has equal features ("correlation").
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    check_metric(metric, ("linear", "inner", *METRICS))
    if metric not in METRICS:
        return _norm_of_products(x, y, metric)
    if not is_features(x):
        raise ValueError(f"metric {metric!r} needs features; moments and statistics know linear and inner")
    sides = []
    for name, t in zip("xy", pair(x, y), strict=True):
        sides.append(about_median(t.double() if metric == "euclidean" else unit_rows(name, t, metric)))
    largest = max(rows.abs().max() for rows in sides)
    if not bool(largest > 0):
        return 0.0
    sides = [rows / largest for rows in sides]  # whose squares cannot overflow
    total = torch.zeros((), dtype=torch.float64, device=largest.device)
    for i, j in tiles(len(sides[0])):
        d, e = (pair_distances(rows, metric, i, j) for rows in sides)
        total += (d - e).square().sum()
    value = (2 * total).sqrt() * (largest if metric == "euclidean" else largest.square())
    _check_finite(value)
    return value.item()


def _norm_of_products(x: Input, y: Features | None, metric: str) -> Any:
    problem = problem_of(x, y, rotate=metric == "linear")
    stats = problem.stats
    if not bool(stats.count.isfinite().all()):
        raise StatisticsError("RSM norm needs the number of samples, which these statistics do not know")
    xx, xy, yy = (c.square().sum((-2, -1)) for c in (stats.cov_xx, stats.cov_xy, stats.cov_yy))
    _check_finite(xx + yy)
    value = root_of_difference(xx + yy - 2 * xy, xx + yy, stats)
    if metric == "inner":  # S = K + 1vᵀ + v1ᵀ + m² 11ᵀ with v = X̃ m, whose sum is zero: the parts are orthogonal
        a, b = stats.mean_x, stats.mean_y
        along_x, along_y = _form(a, stats.cov_xx, a), _form(b, stats.cov_yy, b)
        _check_finite(along_x + along_y)
        along = root_of_difference(along_x + along_y - 2 * _form(a, stats.cov_xy, b), along_x + along_y, stats)
        means = a.square().sum(-1) - b.square().sum(-1)
        value = (value.square() + 2 * along.square() + means.square()).sqrt()
    value = value * stats.count
    _check_finite(value)
    return problem.answer(value)


def _check_finite(value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise StatisticsError("RSM norm overflows float64; scale the features down")


def _form(a: Tensor, m: Tensor, b: Tensor) -> Tensor:
    """aᵀ m b"""
    return (a[..., None, :] @ m @ b[..., None])[..., 0, 0]
