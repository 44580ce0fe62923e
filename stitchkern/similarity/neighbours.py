"""Do two representations agree on which samples are neighbours? In blocks of rows, never an n × n matrix."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.distances import check_metric, points, squared, tie_width, unit_rows
from stitchkern.similarity.features import pair

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features

_METRICS = ("cosine", "euclidean")
_BLOCK = 512


def mutual_knn(x: Features, y: Features, *, k: int = 10, metric: str = "cosine") -> float:
    r"""The share of the k nearest neighbours that x (n, p) and y (n, q) have in common, in 0 … 1 (Huh et al. 2024).

    .. math:: \frac1n \sum_i \frac{|N_x(i) \cap N_y(i)|}{k}

    N(i): the k other samples nearest to sample i, by cosine or Euclidean distance. Of samples equally far away (to
    rounding, a relative 2^-41) those that come first are taken, so duplicates count as neighbours of each other and the
    value does not depend on how sums were ordered. Symmetric; invariant to a scale of each side and to rotations,
    "euclidean" also to offsets. For unrelated sides it is about k / (n − 1), not 0. platonic-rep takes the inner
    product of features as they come, which is the cosine if the caller has normalised them.

    Memory: float64 copies of the features and a few blocks of 512 × n.

    Raises:
        ValueError: k outside 1 … n − 1, or another metric.
        StatisticsError: all samples of one side alike; a sample that is zero ("cosine"); fewer than two samples.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    tx, ty, k = _checked(x, y, k, metric)
    shared = sum((a & b).sum() for _, a, b in _both(tx, ty, k, metric))
    return int(shared) / (len(tx) * k)


def jaccard(x: Features, y: Features, *, k: int = 10, metric: str = "cosine") -> float:
    r"""The mean Jaccard index of the k nearest neighbours in x (n, p) and y (n, q), in 0 … 1.

    .. math:: \frac1n \sum_i \frac{|N_x(i) \cap N_y(i)|}{|N_x(i) \cup N_y(i)|}

    (Schumacher et al. 2021; Wang et al. 2022). Neighbours, memory and errors as :func:`mutual_knn`, which divides by k.
    """
    tx, ty, k = _checked(x, y, k, metric)
    total = torch.zeros((), dtype=torch.float64, device=tx.device)
    for _, a, b in _both(tx, ty, k, metric):
        shared = (a & b).sum(1).double()
        total += (shared / (2 * k - shared)).sum()
    return (total / len(tx)).item()


def cknna(x: Features, y: Features, *, k: int = 10) -> float:
    r"""Centred kernel nearest-neighbour alignment of x (n, p) and y (n, q) (Huh et al. 2024, appendix), in −1 … 1.

    .. math:: \mathrm{CKNNA} = \frac{A(x, y)}{\sqrt{A(x, x)\,A(y, y)}},\qquad
              A(x, y) = \sum_i \sum_{j \in N_x(i) \cap N_y(i)} \tilde K_{ij} \tilde L_{ij},\qquad
              \tilde K_{ij} = \hat x_i^\top (\hat x_j - \bar{\hat x})

    with samples of unit norm x̂ and their mean: CKA's products, of pairs that are neighbours (by cosine) on both sides;
    at k = n − 1 about CKA of normalised samples. Symmetric; invariant to a scale of each sample and to rotations, not
    to offsets. That is the equation of the paper. The authors' code instead puts the masked matrices into the unbiased
    HSIC, and normalises samples only if the caller did. Neighbours and memory as :func:`mutual_knn`.

    Raises:
        StatisticsError: also where a side has no variation among its own neighbours, so that A(x, x) = 0. Others as
            :func:`mutual_knn`.
    """
    tx, ty, k = _checked(x, y, k, "cosine")
    units = unit_rows("x", tx, "cosine"), unit_rows("y", ty, "cosine")
    about = [u - u.mean(0) for u in units]
    # x̂ᵢ·(x̂ⱼ − m) = cᵢ·cⱼ + m·cⱼ with m·cⱼ = (mean ‖c‖² − ‖cⱼ‖²)/2 for unit vectors: small numbers from small ones
    shift = [(c.square().sum(1).mean() - c.square().sum(1)) / 2 for c in about]
    sums = torch.zeros(3, dtype=torch.float64, device=tx.device)
    for rows, a, b in _both(tx, ty, k, "cosine"):
        g, h = (c[rows] @ c.T + d for c, d in zip(about, shift, strict=True))
        for i, (mask, left, right) in enumerate(((a & b, g, h), (a, g, g), (b, h, h))):
            sums[i] += torch.where(mask, left * right, 0.0).sum()
    xy, xx, yy = sums.tolist()
    for name, own in (("x", xx), ("y", yy)):
        if not own > 0:
            raise StatisticsError(f"CKNNA is undefined: {name} has no variation among its neighbours")
    return xy / (xx**0.5 * yy**0.5)


def _checked(x: Features, y: Features, k: int, metric: str) -> tuple[Tensor, Tensor, int]:
    check_metric(metric, _METRICS)
    tx, ty = pair(x, y)
    try:
        index = operator.index(k)
    except TypeError:
        index = 0
    if isinstance(k, bool) or not 1 <= index < len(tx):
        raise ValueError(f"k must be 1 … {len(tx) - 1} for {len(tx)} samples; got {k}")
    return tx, ty, index


def _both(x: Tensor, y: Tensor, k: int, metric: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, and for them who is a neighbour in x and who in y, (rows, n) bool with k in each row."""
    sides = points("x", x, metric), points("y", y, metric)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(x)))
        yield rows, _neighbours(sides[0], rows, k, metric), _neighbours(sides[1], rows, k, metric)


def _neighbours(points: Tensor, rows: slice, k: int, metric: str) -> Tensor:
    d = squared(points[rows], points)
    d.diagonal(rows.start).fill_(torch.inf)
    last = d.topk(k, dim=1, largest=False).values.amax(1, keepdim=True)
    width = tie_width(last, metric, are_squared=True)
    found = d <= last + width
    tied = (found.sum(1) > k).nonzero()[:, 0]
    if len(tied):
        d, last, width = d[tied], last[tied], width[tied]
        sure = d < last - width
        level = found[tied] & ~sure
        found[tied] = sure | (level & (level.cumsum(1) <= k - sure.sum(1, keepdim=True)))
    return found
