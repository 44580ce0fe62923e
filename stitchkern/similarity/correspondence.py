"""Does each feature of one representation have a counterpart in the other? Indices that see single features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.similarity.features import problem_of
from stitchkern.solvers.assignment import transport

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input
    from stitchkern.statistics import Statistics


def correlation_match(x: Input, y: Features | None = None, *, kind: str = "hard", absolute: bool = False) -> Any:
    r"""The mean correlation of matched features of x (n, p) and y (n, q) (Li et al. 2016), in −1 … 1.

    .. math:: r_{jk} = \mathrm{corr}(x_j, y_k),\qquad
              \text{hard} = \max_\pi \frac1{\min(p, q)} \sum_{(j, k)\in\pi} r_{jk},\qquad
              \text{soft} = \tfrac12\Big(\tfrac1p \sum_j \max_k r_{jk} + \tfrac1q \sum_k \max_j r_{jk}\Big)

    Hard: the one-to-one matching π of min(p, q) pairs with the largest sum (bipartite matching), by scipy's
    ``linear_sum_assignment``; the wider side's other features do not count. Soft: each feature's best partner, which
    may serve several ("semi-matching"), averaged over both directions as ReSi does. Symmetric; invariant to offsets, to
    the order of features and to a positive scale of each, not to rotations. 1 for equal sides; that of unrelated sides
    grows with p and q, as a maximum does.

    A dead feature has no correlation: p and q are the features that vary (ReSi counts 0 for the others, so that they
    lower even self-similarity).

    Args:
        x: (n, p) torch or numpy, or two-sided moments, statistics, or a list of these.
        y: (n, q), only with features.
        kind: "hard" or "soft".
        absolute: match by \|r\|, so that a feature and its negative agree; the value is then in 0 … 1.

    Returns:
        A number, or a tensor with one for each problem of statistics and lists.

    Raises:
        ValueError: another kind. StatisticsError: fewer than two samples; x or y does not vary.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    if kind not in ("hard", "soft"):
        raise ValueError(f"kind must be hard or soft; got {kind!r}")
    problem = problem_of(x, y)
    problem.check_varies("correlation match")
    values = []
    for r in _correlations(problem.flat().stats):
        r = r.abs() if absolute else r
        values.append(_matched(r) if kind == "hard" else (r.amax(1).mean() + r.amax(0).mean()) / 2)
    return problem.answer(torch.stack(values))


def soft_matching_distance(x: Input, y: Features | None = None, *, standardize: bool = False) -> Any:
    r"""The soft matching distance of x (n, p) and y (n, q), centred (Khosla and Williams 2024).

    .. math:: d = \sqrt{\min_{T\ge 0} \sum_{jk} T_{jk}\, E(x_j-y_k)^2},\qquad
              T\mathbf 1 = \tfrac1p\mathbf 1,\quad T^\top\mathbf 1 = \tfrac1q\mathbf 1

    The 2-Wasserstein distance between the two sets of features, each feature a point among the functions of a sample;
    for p = q that of the best permutation, over √p. A metric: symmetric, with the triangle inequality, 0 for the same
    features in any order (or each of them as often). Invariant to offsets and to the order of features, not to
    rotations. In units of the features, per sample: √n less than with sums over samples, as the paper writes it.

    It is the root of a difference: what products cannot tell from equal, √ε, is 0: about 2e-8 of the features' size
    from features, 3e-4 from float32 moments. Time as :func:`stitchkern.soft_matching`.

    Args:
        standardize: divide each feature by its deviation first and leave dead ones out, so that only correlations
            count: d² = 2 − 2 max Σ T corr, in 0 … 4. Others as :func:`correlation_match`.

    Raises:
        StatisticsError: fewer than two samples; with ``standardize``, a side that does not vary. ShapeError: x and y do
            not fit. NotFiniteError: NaN or Inf.
    """
    problem = problem_of(x, y)
    stats = problem.flat().stats
    if standardize:
        problem.check_varies("soft matching distance")
        costs = [2 - 2 * r for r in _correlations(stats)]
    else:
        var_x, var_y = (c.diagonal(dim1=-2, dim2=-1) for c in (stats.cov_xx, stats.cov_yy))
        costs = list(var_x[..., :, None] + var_y[..., None, :] - 2 * stats.cov_xy)
    plans = (torch.from_numpy(transport(c.cpu().numpy())).to(c.device) for c in costs)
    squares = torch.stack([(plan * c).sum() for plan, c in zip(plans, costs, strict=True)])
    return problem.answer(squares.clamp(min=0.0).sqrt())


def _correlations(stats: Statistics) -> list[Tensor]:
    """corr(x_j, y_k) of the features that vary, (p', q') for each problem of the batch."""
    found = []
    for cov_xx, cov_xy, cov_yy in zip(stats.cov_xx, stats.cov_xy, stats.cov_yy, strict=True):
        spread_x, spread_y = (c.diagonal().sqrt() for c in (cov_xx, cov_yy))
        live_x, live_y = spread_x > 0, spread_y > 0
        found.append(cov_xy[live_x][:, live_y] / spread_x[live_x, None] / spread_y[live_y])
    return found


def _matched(r: Tensor) -> Tensor:
    """The mean of the matching with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(r.cpu().numpy(), maximize=True)
    return r[torch.from_numpy(rows).to(r.device), torch.from_numpy(columns).to(r.device)].mean()
