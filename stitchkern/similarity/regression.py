"""What can be predicted from a representation, by affine maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.moments import Moments
from stitchkern.qr import StreamingQR
from stitchkern.similarity.features import centred, epsilon_of, is_features, pair, problem_of, root_of_difference
from stitchkern.similarity.whitening import COLLINEAR, Span, whitened
from stitchkern.solvers import least_squares
from stitchkern.solvers.factor import Factor

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input

DIRECTIONS = ("x_to_y", "y_to_x", "both")


def linear_r2(x: Input, y: Features | None = None, *, direction: str = "x_to_y", adjusted: bool = False) -> Any:
    r"""R² of the least-squares map from x (n, p) to y (n, q): the share of y's variance that x explains linearly.

    .. math:: R^2 = 1 - \frac{\min_{M,b} E\|Mx+b-y\|^2}{E\|y-\bar y\|^2}
              = \frac{\|C_{xx}^{-1/2} C_{xy}\|_F^2}{\operatorname{tr} C_{yy}}

    the R²_LR of Kornblith et al. (2019): the variance of y's features together, so that large ones count most, not the
    mean of their own R². Not symmetric: ``"x_to_y"`` predicts y, ``"y_to_x"`` predicts x. In 0 … 1; invariant to
    offsets, to invertible linear maps of the side that predicts, and to rotations and one scale of the other.
    Directions of the predicting side that are rounding (see :func:`stitchkern.cca`) explain nothing.

    In-sample, so it tends to 1 as the predicting side's rank r approaches n − 1, and is exactly 1 (and says nothing)
    from there on; unrelated sides have about r / (n − 1). ``adjusted`` takes that out (Ezekiel 1930); it may be
    negative:

    .. math:: R^2_\text{adj} = 1 - (1 - R^2)\,\frac{n - 1}{n - 1 - r}

    For R² of samples that were not fitted there is ``sk.cross_validate(folds).r2``.

    Args:
        x: (n, p) torch or numpy, or two-sided moments, a :class:`StreamingQR`, statistics, or a list of these.
        y: (n, q), only with features.
        direction: "x_to_y", "y_to_x", or "both": a pair, in this order.
        adjusted: by the degrees of freedom of the fit.

    Returns:
        A number, of statistics and lists a tensor with one for each problem; of "both" a pair of these.

    Raises:
        ValueError: another direction.
        StatisticsError: the predicted side does not vary; fewer than two samples; an indefinite covariance; adjusted
            with n − 1 ≤ r, with weights other than 0 and 1, or of statistics without a count.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be x_to_y, y_to_x or both; got {direction!r}")
    ways = DIRECTIONS[:2] if direction == "both" else (direction,)
    if is_features(x):
        sides = pair(x, y)
        values = [_of_features(*(sides if way == "x_to_y" else sides[::-1]), way, adjusted) for way in ways]
    else:
        values = _of_moments(x, y, ways, adjusted)
    return tuple(values) if direction == "both" else values[0]


def gulp(x: Input, y: Features | None = None, *, ridge: float = 0.0) -> Any:
    r"""The GULP distance of x (n, p) and y (n, q): how differently ridge regression predicts from them (Boix-Adserà et
    al. 2022).

    .. math:: d^2 = \operatorname{tr}\big(A_\lambda C_{xx}A_\lambda C_{xx}\big)
              + \operatorname{tr}\big(B_\lambda C_{yy}B_\lambda C_{yy}\big)
              - 2\operatorname{tr}\big(A_\lambda C_{xy}B_\lambda C_{yx}\big),\quad
              A_\lambda = (C_{xx} + \lambda I)^{-1},\ B_\lambda = (C_{yy} + \lambda I)^{-1}

    of centred features divided by √E‖x‖², so that λ means the same at every scale. With T the matrix that takes the
    targets of the n samples to ridge regression's in-sample predictions, d = ‖T_x − T_y‖_F, which bounds how far the
    predictions of any target of norm 1 are apart. A metric, in 0 … √(r_x + r_y) with the ranks r; invariant to offsets,
    rotations and a scale of each side; at λ = 0 to every invertible linear map: d² = r_x + r_y − 2 Σρ² of the canonical
    correlations, and 0 for n ≤ min(p, q) + 1, where it says nothing. ReSi and the authors' code report d².

    At λ = 0 directions that are rounding are left out, see :func:`stitchkern.cca`. It is the root of a difference: what
    products cannot tell from equal, √ε, is 0, see :func:`stitchkern.procrustes_distance`.

    Args:
        x: (n, p) torch or numpy, or two-sided moments, statistics, or a list of these.
        y: (n, q), only with features.
        ridge: λ ≥ 0, relative to a total variance of 1. The authors use 1e-7 … 1.

    Returns:
        A number, or a tensor with one for each problem of statistics and lists.

    Raises:
        ValueError: a negative ridge. StatisticsError: x or y does not vary; fewer than two samples.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge must be non-negative and finite; got {ridge}")
    if ridge == 0:
        white = whitened("GULP", x, y)
        square = white.rank_x + white.rank_y - 2 * white.cross.square().sum((-2, -1))
        return white.answer(square.clamp(min=0.0).sqrt())
    problem = problem_of(x, y, rotate=True)
    problem.check_varies("GULP")
    flat = problem.flat()
    totals = [cov.diagonal(dim1=-2, dim2=-1).sum(-1) for cov, _, _ in flat.sides()]
    of_x, of_y = (
        Factor(cov, ridge * total, epsilon) for (cov, epsilon, _), total in zip(flat.sides(), totals, strict=True)
    )

    def size(left: Factor, cov: Tensor, right: Factor) -> Tensor:
        """tr (A C B Cᵀ)"""
        return right.forward(left.forward(cov).mT).square().sum((-2, -1))

    stats = flat.stats
    own = size(of_x, stats.cov_xx, of_x) + size(of_y, stats.cov_yy, of_y)
    square = own - 2 * size(of_x, stats.cov_xy, of_y)
    slack = of_x.inverse * of_y.inverse  # what (C + λI)⁻¹ may make of rounding
    return problem.answer(root_of_difference(square, own * slack.clamp(min=1.0), stats))


def _of_features(x: Tensor, y: Tensor, way: str, adjusted: bool) -> float:
    """Of x to y, which are the caller's y and x where the ``way`` is "y_to_x"."""
    c, d = (t / t.abs().max().clamp(min=torch.finfo(t.dtype).tiny) for t in (centred(x), centred(y)))
    total = d.square().sum()
    if not bool(total > 0):
        raise StatisticsError(f"linear R² is undefined: {way[-1]} does not vary")
    explained, rank = torch.zeros_like(total), 0
    if bool(c.any()):
        explained, rank = _explained(x, c, d)
    r2 = explained / total
    return (_adjusted(r2, r2.new_tensor(rank), r2.new_tensor(len(c))) if adjusted else r2).item()


def _explained(x: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, int]:
    """The part of ‖d‖² in what c spans, and its dimension: from products where they keep enough digits."""
    n, p = c.shape
    if n > p:
        cov = (c.T @ c / n)[None]
        zero = cov.new_zeros(1)
        factor = Factor(cov, zero, zero + epsilon_of(x))
        if bool(factor.inverse < COLLINEAR):
            return factor.forward((c.T @ d)[None]).square().sum() / n, p - int(factor.dropped)
    basis = Span.of("linear R²", "x", x).basis
    return (basis.T @ d).square().sum(), basis.shape[1]


def _of_moments(source: Any, y: Any, ways: Sequence[str], adjusted: bool) -> list[Any]:
    problem = problem_of(source, y)
    if adjusted:
        for m in source if isinstance(source, Sequence) else (source,):
            if isinstance(m, Moments) and abs(m.effective_count - m.count) > 1e-9 * m.count:
                raise StatisticsError("adjusted R² needs weights of 0 or 1")
    values = []
    for way in ways:
        stats = problem.stats if way == "x_to_y" else problem.stats.swapped()
        if not bool((stats.cov_yy.diagonal(dim1=-2, dim2=-1) > 0).any(-1).all()):
            raise StatisticsError(f"linear R² is undefined: {way[-1]} does not vary")
        # a QR factor has a road of its own
        fit = least_squares(source if way == "x_to_y" and isinstance(source, StreamingQR) else stats)
        r2 = torch.as_tensor(fit.r2, dtype=torch.float64, device=stats.device)
        if adjusted:
            r2 = _adjusted(r2, stats.p - torch.as_tensor(fit.dropped, device=stats.device), stats.count)
        values.append(problem.answer(r2))
    return values


def _adjusted(r2: Tensor, rank: Tensor, count: Tensor) -> Tensor:
    free = count - 1 - rank
    if not bool((free > 0).all()):
        raise StatisticsError(
            f"adjusted R² is undefined: a map of rank {int(rank.max())} needs at least {int(rank.max()) + 2} samples"
            if bool(count.isfinite().all())
            else "adjusted R² needs the number of samples, which these statistics do not know"
        )
    return 1 - (1 - r2) * (count - 1) / free
