"""How much of one representation an affine map of the other explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stitchkern.moments import Moments
from stitchkern.solvers import least_squares

if TYPE_CHECKING:
    from stitchkern.similarity.kernel import Features


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
