"""Representational similarity analysis: do two representations agree on which samples are alike?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.distances import check_metric, pair_distances, points, tiles
from stitchkern.similarity.features import pair
from stitchkern.similarity.ranks import doubled_ranks

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features


def rsa(x: Features, y: Features, *, metric: str = "euclidean", comparison: str = "pearson") -> float:
    r"""The correlation of all distances between samples in x (n, p) with those in y (n, q), in −1 … 1.

    .. math:: \mathrm{RSA} = \mathrm{corr}_{i<j}\left(d(x_i, x_j),\ d(y_i, y_j)\right)

    over the n(n−1)/2 pairs (Kriegeskorte et al. 2008). Distances: ``"euclidean"`` ‖a − b‖ (some codes take its square),
    ``"correlation"`` 1 − the Pearson correlation of two samples over their features, ``"cosine"`` 1 − cos(a, b).
    ``comparison`` is Pearson's correlation of the distances, or Spearman's: Pearson's of their ranks, where ties share
    their mean rank. Symmetric; invariant to a scale of each side and to rotations (not "correlation"); "euclidean" also
    to offsets of features, "correlation" to those of samples.

    Everything is float64, and small distances are taken from differences, not from products. "pearson" streams tiles of
    512 × 512 pairs and keeps no more than float64 copies of the features. "spearman" ranks the vector of pairs: about
    30 bytes for each of n(n−1)/2, so 0.25 GB at n = 4096. Distances closer than rounding (a relative 2^-41) are ties.

    Raises:
        StatisticsError: fewer than three samples; all samples of one side alike, or equally far apart; a sample that is
            zero ("cosine") or has equal features throughout ("correlation").
        ValueError: another metric or comparison. ShapeError: x and y are not (n, p) and (n, q) of the same samples.
        NotFiniteError: NaN or Inf.
    """
    check_metric(metric)
    if comparison not in ("pearson", "spearman"):
        raise ValueError(f"comparison must be pearson or spearman; got {comparison!r}")
    tx, ty = pair(x, y, at_least=3)
    sides = points("x", tx, metric), points("y", ty, metric)
    if comparison == "pearson":
        chunks = (torch.stack([pair_distances(rows, metric, i, j) for rows in sides]) for i, j in tiles(len(tx)))
    else:
        ranks = [doubled_ranks(all_distances(rows, metric), metric) for rows in sides]
        chunks = (torch.stack([r[a : a + 2**18].double() for r in ranks]) for a in range(0, len(ranks[0]), 2**18))
    count, mean, cov = 0, tx.new_zeros(2, dtype=torch.float64), tx.new_zeros(2, 2, dtype=torch.float64)
    for v in chunks:  # sums about the mean of each chunk, put together as Chan et al. 1979 do
        m = v.shape[1]
        if m == 0:  # a tile of one sample on the diagonal
            continue
        here = v.mean(1)
        v = v - here[:, None]
        moved = here - mean
        cov += v @ v.T + torch.outer(moved, moved) * (count * m / (count + m))
        mean += moved * (m / (count + m))
        count += m
    # what rounding leaves of equal distances d: of unit vectors, whose differences have length √(2d), that too
    rounding = 2.0**-46 * mean
    if metric != "euclidean" and comparison != "spearman":
        rounding = rounding + 2.0**-50 * (2 * mean).sqrt()
    spread = cov.diagonal() / count
    for name, varies in zip("xy", (spread > rounding.square()).tolist(), strict=True):
        if not varies:
            raise StatisticsError(f"RSA is undefined: all samples of {name} are equally far apart")
    return (cov[0, 1] / (cov[0, 0].sqrt() * cov[1, 1].sqrt())).item()


def all_distances(rows: Tensor, metric: str) -> Tensor:
    """The vector of all n(n−1)/2 distances, tile by tile."""
    n, done = len(rows), 0
    found = rows.new_empty(n * (n - 1) // 2)
    for i, j in tiles(n):
        d = pair_distances(rows, metric, i, j)
        found[done : done + len(d)] = d
        done += len(d)
    return found
