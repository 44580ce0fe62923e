"""What can be predicted from a representation, by affine maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.moments import Moments
from stitchkern.similarity.features import problem_of, root_of_difference
from stitchkern.similarity.whitening import whitened
from stitchkern.solvers import least_squares
from stitchkern.solvers.factor import Factor

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input


def linear_r2(x: Moments | Features, y: Features | None = None) -> float:
    r"""R² of the least-squares map from x (n, p) to y (n, q): the share of y's variance that x explains linearly.

    .. math:: R^2 = 1 - \frac{\min_{M,b} E\|Mx+b-y\|^2}{E\|y-\bar y\|^2}

    Not symmetric: x explains y. In-sample, so it tends to 1 as p approaches the number of samples, and is exactly 1
    (and says nothing) from n ≤ p + 1 on.

    Raises:
        StatisticsError: fewer than two samples. ShapeError: x and y do not fit.
    """
    if isinstance(x, Moments):
        if y is not None:
            raise ValueError("y must not be given with moments: they hold both sides")
        return least_squares(x).r2
    if y is None:
        raise ValueError("y is missing: linear_r2(x, y) with features, or linear_r2(moments)")
    tx, ty = torch.as_tensor(x), torch.as_tensor(y)
    return least_squares(Moments(tx.shape[-1], ty.shape[-1]).update(tx, ty)).r2


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
