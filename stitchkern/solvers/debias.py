"""Least squares of each target on features of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.solvers.linear import least_squares
from stitchkern.statistics import Statistics

#: numbers in the covariances of one batch at most
_NUMBERS = 1 << 23


def least_squares_on(stats: Statistics, support: Tensor, *, positive: bool = False) -> Tensor:
    """M (q, p) that minimises E‖M(x − x̄) − (y − ȳ)‖² where ``support`` (q, p) is true, and is 0 elsewhere.

    Dependent features are handled as :func:`least_squares` does. ``positive``: under M ≥ 0.
    """
    q, p = support.shape
    weight = stats.cov_xy.new_zeros(q, p)
    sizes = support.sum(1)
    order = sizes.argsort()
    order = order[sizes[order] > 0]
    index = torch.sort(support, dim=1, descending=True, stable=True).indices  # a target's features first, in order
    if positive:
        for k in order.tolist():
            weight[k, index[k, : sizes[k]]] = _non_negative(stats, index[k, : sizes[k]], k)
        return weight
    while len(order):  # problems of about one size, small ones first
        count = int(_NUMBERS // int(sizes[order[: max(1, len(order) // 8)]].max()) ** 2) or 1
        some, order = order[: max(1, min(count, -(-len(order) // 8)))], order[max(1, min(count, -(-len(order) // 8))) :]
        most = int(sizes[some].max())
        at = index[some, :most]
        inside = torch.arange(most, device=at.device) < sizes[some, None]  # the rest are features of no variance
        fit = least_squares(
            Statistics(
                stats.cov_xx[at[:, :, None], at[:, None, :]] * (inside[:, :, None] & inside[:, None, :]),
                (stats.cov_xy[at, some[:, None]] * inside)[..., None],
                stats.cov_yy.diagonal()[some, None, None],
                stats.mean_x[at] * inside,
                stats.mean_y[some, None],
                stats.count.expand(len(some)),
                stats.epsilon.expand(len(some)),
            )
        )
        weight[some[:, None].expand_as(at)[inside], at[inside]] = fit.weight[:, 0][inside]
    return weight


def _non_negative(stats: Statistics, features: Tensor, target: int) -> Tensor:
    gram = stats.cov_xx[features[:, None], features]
    cross = stats.cov_xy[features, target, None].contiguous()
    unit = gram.diagonal().amax()
    zero = cross.new_zeros(1, 1)
    found, _ = ops.lasso_path(
        gram / unit, cross / unit, zero[0], zero, zero, cross.new_zeros(1, len(features)), True, False, 1e-9, 10_000
    )
    return found[0, 0]
