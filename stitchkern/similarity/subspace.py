"""Do two representations span the same functions of the sample?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stitchkern.similarity.whitening import whitened

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input


def eigenspace_overlap(x: Input, y: Features | None = None, *, center: bool = False) -> Any:
    r"""The eigenspace overlap score of x (n, p) and y (n, q) (May et al. 2019), in 0 … 1.

    .. math:: \mathrm{EOS} = \frac{\|U^\top V\|_F^2}{\max(r_x, r_y)},\qquad
              U\ (n, r_x),\ V\ (n, r_y) \text{ orthonormal bases of what the columns of x and of y span}

    the left singular vectors of the features as they come. Symmetric; invariant to every invertible linear map of
    either side, but not to offsets, which change what is spanned: features far from zero both hold the constant
    function. ``center=True`` takes it out first; the score is then ``cca(x, y).pillai / max(r_x, r_y)`` and ignores
    offsets. 1 for equal spans, 0 for orthogonal ones; r / max(r_x, r_y) where one holds the other.

    Ranks are numerical, with what counts as rounding as in :func:`stitchkern.cca`; dead and collinear features do not
    matter. May et al. assume full rank; ReSi's code divides by max(p, q) instead, so that collinear features, or n < p,
    lower even self-similarity. In-sample: once r_x + r_y > n the spans must meet, and for n ≤ min(p, q) they are all.

    Args:
        x: (n, p) torch or numpy, or two-sided moments, a :class:`StreamingQR`, statistics, or a list of these.
        y: (n, q), only with features.
        center: of centred features.

    Returns:
        A number, or a tensor with one for each problem of statistics and lists.

    Raises:
        StatisticsError: x or y does not vary, fewer than two samples, or an indefinite covariance.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    white = whitened("eigenspace overlap", x, y)
    w, rank_x, rank_y = white.cross, white.rank_x, white.rank_y
    shared = w.square().sum((-2, -1))
    if not center:
        # With U of centred features and 1̂ the constant of norm 1, features with the mean h along U span [U, 1̂] if they
        # hold the constant, and otherwise [U, 1̂] without a = (U h − 1̂)/√(1 + h²): what no X w = (U + 1̂hᵀ) w meets.
        h, g = white.constant_x.mean, white.constant_y.mean
        holds_x, holds_y = white.constant_x.outside, white.constant_y.outside
        size_h, size_g = (1 + t.square().sum(-1) for t in (h, g))
        a_in_y = ((w.mT @ h[..., None]).square().sum((-2, -1)) + 1) / size_h
        b_in_x = ((w @ g[..., None]).square().sum((-2, -1)) + 1) / size_g
        a_in_b = ((h[..., None, :] @ w @ g[..., None])[..., 0, 0] + 1).square() / (size_h * size_g)
        shared = (
            shared
            + 1
            - torch.where(holds_x, 0.0, a_in_y)
            - torch.where(holds_y, 0.0, b_in_x)
            + torch.where(holds_x | holds_y, 0.0, a_in_b)
        )
        rank_x, rank_y = rank_x + holds_x, rank_y + holds_y
    return white.answer(shared / torch.maximum(rank_x, rank_y))
