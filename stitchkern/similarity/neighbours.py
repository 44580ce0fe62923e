"""Do two representations agree on which samples are neighbours? In blocks of rows, never an n × n matrix."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.distances import check_metric, points, unit_rows
from stitchkern.similarity.features import pair
from stitchkern.similarity.nearest import by_distance, nearest

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features

_METRICS = ("cosine", "euclidean")


def mutual_knn(x: Features, y: Features, *, k: int = 10, metric: str = "cosine") -> float:
    r"""The share of the k nearest neighbours that x (n, p) and y (n, q) have in common, in 0 … 1 (Huh et al. 2024).

    .. math:: \frac1n \sum_i \frac{|N_x(i) \cap N_y(i)|}{k}

    N(i): the k other samples nearest to sample i, by cosine or Euclidean distance. Of samples equally far away (to
    rounding, a relative 2^-41) those that come first are taken, so duplicates count as neighbours of each other and the
    value does not depend on how sums were ordered. Symmetric; invariant to a scale of each side and to rotations,
    "euclidean" also to offsets. For unrelated sides it is about k / (n − 1), not 0. platonic-rep takes the inner
    product of features as they come, which is the cosine if the caller has normalised them.

    Memory: copies of the features, and a few blocks of at most 64 MB (64 rows of n where that is more).

    Raises:
        ValueError: k outside 1 … n − 1, or another metric.
        StatisticsError: all samples of one side alike; a sample that is zero ("cosine"); fewer than two samples.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    tx, ty, k = _checked(x, y, k, metric)
    shared = sum(int(_shared(a, b, len(tx)).sum()) for _, a, b in _both(tx, ty, k, metric))
    return shared / (len(tx) * k)


def jaccard(x: Features, y: Features, *, k: int = 10, metric: str = "cosine") -> float:
    r"""The mean Jaccard index of the k nearest neighbours in x (n, p) and y (n, q), in 0 … 1.

    .. math:: \frac1n \sum_i \frac{|N_x(i) \cap N_y(i)|}{|N_x(i) \cup N_y(i)|}

    (Schumacher et al. 2021; Wang et al. 2022). Neighbours, memory and errors as :func:`mutual_knn`, which divides by k.
    """
    tx, ty, k = _checked(x, y, k, metric)
    total = torch.zeros((), dtype=torch.float64, device=tx.device)
    for _, a, b in _both(tx, ty, k, metric):
        shared = _shared(a, b, len(tx)).double()
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
        a, b = _mask(a, len(tx)), _mask(b, len(tx))
        g, h = (c[rows] @ c.T + d for c, d in zip(about, shift, strict=True))
        for i, (mask, left, right) in enumerate(((a & b, g, h), (a, g, g), (b, h, h))):
            sums[i] += torch.where(mask, left * right, 0.0).sum()
    xy, xx, yy = sums.tolist()
    for name, own in (("x", xx), ("y", yy)):
        if not own > 0:
            raise StatisticsError(f"CKNNA is undefined: {name} has no variation among its neighbours")
    return xy / (xx**0.5 * yy**0.5)


def cycle_knn(x: Features, y: Features, *, k: int = 10, metric: str = "cosine") -> float:
    r"""The share of samples that are found again by going to their neighbours in y (n, q) and from there to those in x
    (n, p), in 0 … 1 (Huh et al. 2024, code).

    .. math:: \frac1n\,\#\{i : i \in N_x(j) \text{ for some } j \in N_y(i)\}

    Not symmetric, and not 1 for equal sides: of x with itself it is the share of samples that some neighbour counts
    among its own. For unrelated sides about 1 − (1 − k/(n−1))^k. Neighbours, invariances and errors as
    :func:`mutual_knn`; memory also n k indices.
    """
    tx, ty, k = _checked(x, y, k, metric)
    n = len(tx)
    # (j, i) for the neighbours i of j in x, as numbers that ascend as they come
    known = torch.cat([_pairs(rows, found, n).flatten() for rows, found in nearest(points("x", tx, metric), k, metric)])
    back = 0
    for rows, found in nearest(points("y", ty, metric), k, metric):
        wanted = found * n + torch.arange(rows.start, rows.stop, device=found.device)[:, None]
        place = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
        back += int((known[place] == wanted).any(1).sum())
    return back / n


def rank_similarity(x: Features, y: Features, *, k: int = 10, metric: str = "cosine") -> float:
    r"""Do x (n, p) and y (n, q) put the neighbours that they share in the same order? In 0 … 1 (Wang et al. 2022).

    .. math:: \frac1n \sum_i \frac{1}{1 + \frac12 + \dots + \frac1{K_i}} \sum_{j \in N_x(i) \cap N_y(i)}
              \frac{2}{(1 + |r_{ij} - s_{ij}|)(r_{ij} + s_{ij})},\qquad K_i = |N_x(i) \cap N_y(i)|

    with r and s the ranks 1 … k of j among the neighbours of i in x and in y: near neighbours weigh more. 0 for a
    sample whose sides share none; how many they share otherwise does not count, that is :func:`jaccard`. Symmetric; 1
    for equal sides. Neighbours (equally distant ones rank by index), invariances, memory and errors as
    :func:`mutual_knn`.
    """
    tx, ty, k = _checked(x, y, k, metric)
    n = len(tx)
    sides = points("x", tx, metric), points("y", ty, metric)
    ranks = torch.arange(1, k + 1, device=tx.device)
    harmonic = torch.cat([ranks.new_ones(1).double(), (1 / ranks.double()).cumsum(0)])  # 1 where none is shared
    total = torch.zeros((), dtype=torch.float64, device=tx.device)
    for (rows, a), (_, b) in zip(*(nearest(s, k, metric) for s in sides), strict=True):
        a, b = (by_distance(s, rows, found, metric) for s, found in zip(sides, (a, b), strict=True))
        place = torch.zeros(len(a), n, dtype=torch.int64, device=tx.device).scatter_(1, a, ranks.expand_as(a))
        in_x = place.gather(1, b)  # the rank in x of y's neighbours, 0 where they are none
        score = 2 / ((1 + (in_x - ranks).abs()) * (in_x + ranks)).double()
        shared = in_x > 0
        total += (torch.where(shared, score, 0.0).sum(1) / harmonic[shared.sum(1)]).sum()
    return (total / n).item()


def second_order_cosine(x: Features, y: Features, *, k: int = 10) -> float:
    r"""The mean cosine between the similarities of a sample to its neighbours in x (n, p) and those in y (n, q), in
    −1 … 1 (Hamilton et al. 2016).

    .. math:: \frac1n \sum_i \cos\left(s^x_i, s^y_i\right),\qquad
              s^x_i = \left(\cos(x_i, x_j)\right)_{j \in N_x(i) \cup N_y(i)}

    Symmetric; 1 for equal sides; invariant to a scale of each sample and to rotations, not to offsets. ReSi's code puts
    cosine distances in place of the similarities. Neighbours (by cosine) and memory as :func:`mutual_knn`.

    Raises:
        StatisticsError: also where a sample is orthogonal to all of these neighbours. Others as :func:`mutual_knn`.
    """
    tx, ty, k = _checked(x, y, k, "cosine")
    n = len(tx)
    units = unit_rows("x", tx, "cosine"), unit_rows("y", ty, "cosine")
    total = torch.zeros((), dtype=torch.float64, device=tx.device)
    for rows, a, b in _both(tx, ty, k, "cosine"):
        union = torch.cat([a, b], 1)
        once = torch.cat([torch.ones_like(a, dtype=torch.bool), ~_mask(a, n).gather(1, b)], 1)
        s, t = (torch.where(once, _cosines(u, rows, union), 0.0) for u in units)
        sizes = [v.square().sum(1).sqrt() for v in (s, t)]
        for name, size in zip("xy", sizes, strict=True):
            none = (size < 2.0**-48).nonzero()
            if len(none):
                raise StatisticsError(
                    f"second-order cosine is undefined: sample {rows.start + int(none[0, 0])} of {name} is orthogonal "
                    "to all neighbours"
                )
        total += ((s * t).sum(1) / (sizes[0] * sizes[1])).sum()
    return (total / n).item()


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
    """Rows, and for them the neighbours in x and in y, (rows, k), ascending."""
    sides = points("x", x, metric), points("y", y, metric)
    for (rows, a), (_, b) in zip(*(nearest(s, k, metric) for s in sides), strict=True):
        yield rows, a, b


def _mask(found: Tensor, n: int) -> Tensor:
    """(rows, n) bool: who is among these neighbours (rows, k)."""
    return torch.zeros(len(found), n, dtype=torch.bool, device=found.device).scatter_(1, found, True)


def _shared(a: Tensor, b: Tensor, n: int) -> Tensor:
    """How many neighbours each row has in common."""
    return _mask(a, n).gather(1, b).sum(1)


def _pairs(rows: slice, found: Tensor, n: int) -> Tensor:
    """i n + j for each row i and its neighbours j."""
    return torch.arange(rows.start, rows.stop, device=found.device)[:, None] * n + found


def _cosines(units: Tensor, rows: slice, columns: Tensor) -> Tensor:
    """Of these rows with, for each of them, these samples (rows, c)."""
    mine, (_, p) = units[rows], units.shape
    if 4 * columns.shape[1] > len(units):
        return (mine @ units.T).gather(1, columns)
    parts = zip(mine.split(some := max(1, 2**20 // (columns.shape[1] * p))), columns.split(some), strict=True)
    return torch.cat([(units[c] @ a[..., None])[..., 0] for a, c in parts])
