"""Distances between samples, in float64 and in tiles: what RSA and the neighbour indices are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError

METRICS = ("euclidean", "correlation", "cosine")
#: below this share of ‖a‖² + ‖b‖², ‖a‖² + ‖b‖² − 2ab has lost ten bits, and the difference is taken itself
_CANCELLED = 2.0**-10
#: what rounding leaves of ‖a − b‖², relative
ROUNDOFF = 2.0**-41
#: samples whose median stands for that of all
_SOME = 256


def check_metric(metric: str, allowed: tuple[str, ...] = METRICS) -> None:
    if metric not in allowed:
        raise ValueError(f"metric must be {', '.join(allowed[:-1])} or {allowed[-1]}; got {metric!r}")


def unit_rows(name: str, t: Tensor, metric: str) -> Tensor:
    """Samples (n, p) of norm 1, float64; for the correlation of samples over features without their own mean."""
    t = t.to(torch.float64, copy=True)
    if metric == "correlation":
        t -= t[:, :1].clone()  # first, so that a sample of equal features is zero
        t -= t.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(t, dim=1, keepdim=True)
    if bool(((length > 2.0**-400) & (length < 2.0**400)).all()):
        return t.div_(length)
    largest = t.abs().amax(1, keepdim=True)  # squares of tiny or huge features leave float64
    zero = (largest == 0).nonzero()
    if len(zero):
        what = "has equal features throughout" if metric == "correlation" else "is zero"
        raise StatisticsError(f"the {metric} distance is undefined: sample {int(zero[0, 0])} of {name} {what}")
    t /= largest
    return t.div_(t.square().sum(1, keepdim=True).sqrt())


def about_median(rows: Tensor) -> Tensor:
    """Rows (n, p) about the median of each feature over some of them: distances do not see it, products keep the digits
    that an offset would cost, and one huge outlier cannot move it away from the others, as it moves a mean. A constant
    feature becomes exactly zero."""
    some = rows[:: max(1, len(rows) // _SOME)]
    return rows - some.median(0).values


def points(name: str, t: Tensor, metric: str) -> Tensor:
    """Rows (n, p) float64 whose squared Euclidean distance is that of the metric, or twice it (cosine, correlation).

    1 − cos = ½‖u − v‖² for unit vectors, which keeps its digits where samples point nearly the same way.
    """
    if metric == "euclidean":
        rows = about_median(t.double())
        largest = rows.abs().max()
        if not bool(largest > 0):
            raise StatisticsError(f"the index is undefined: {name} does not vary")
        return rows / largest  # a scale that no index of distances sees, and whose square cannot overflow
    rows = about_median(unit_rows(name, t, metric))
    if not bool(rows.square().sum(1).max() > 2.0**-98):
        raise StatisticsError(f"the index is undefined: all samples of {name} point the same way")
    return rows


def squared(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖² (m, n) of rows (m, p) and (n, p), to about 2^-41 of each entry as the rows stand."""
    sums = a.square().sum(1)[:, None] + b.square().sum(1)
    found = torch.addmm(sums, a, b.T, alpha=-2)
    near = (found < _CANCELLED * sums).nonzero()
    for some in near.split(max(1, 2**20 // a.shape[1])):
        i, j = some.unbind(1)
        found[i, j] = (a[i] - b[j]).square().sum(1)
    return found


def tiles(n: int, side: int = 512) -> Iterator[tuple[slice, slice]]:
    """Of the upper triangle of an n × n matrix."""
    for i in range(0, n, side):
        for j in range(i, n, side):
            yield slice(i, min(i + side, n)), slice(j, min(j + side, n))


def pair_distances(rows: Tensor, metric: str, i: slice, j: slice) -> Tensor:
    """The distances of one tile as a vector; of a tile on the diagonal those of its upper triangle."""
    d = squared(rows[i], rows[j])
    if i == j:
        above = torch.triu_indices(len(d), len(d), 1, device=d.device)
        d = d[above[0], above[1]]
    d = d.reshape(-1)
    return d.sqrt_() if metric == "euclidean" else d.mul_(0.5)


def tie_width(values: Tensor, metric: str, *, are_squared: bool) -> Tensor:
    """How far apart distances are that rounding cannot tell apart."""
    if metric == "euclidean":
        return ROUNDOFF * values
    root = values.sqrt() if are_squared else (2 * values).sqrt()
    return ROUNDOFF * values + 2.0**-50 * root  # directions are rounded themselves, by about 2^-53
