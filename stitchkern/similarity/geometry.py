"""Numbers of one representation: where it lies, and how it spreads over directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.moments import Moments
from stitchkern.similarity.distances import about_median, squared, tiles, unit_rows
from stitchkern.similarity.features import single
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input


def magnitude(x: Input) -> Any:
    r"""The length of the mean of x (n, p), ‖x̄‖ (Wang et al. 2022, as ReSi has it).

    Invariant to rotations; in units of the features. Two representations are compared by
    ``abs(magnitude(x) - magnitude(y))``, which is 0 for equal means and ignores nothing else; ReSi's
    "magnitude difference".

    Args:
        x: (n, p) torch or numpy, or moments, statistics or a list of these: of their x side.

    Returns:
        A number, or a tensor with one for each problem of statistics and lists.

    Raises:
        StatisticsError: no samples. ShapeError: x is not (n, p). NotFiniteError: NaN or Inf.
    """
    if isinstance(x, Tensor | np.ndarray):
        mean = single(x).double().mean(0)
    elif isinstance(x, Moments):  # one-sided ones too
        mean = x.mean_x
    else:
        mean = Statistics.of(x).mean_x
    largest = mean.abs().amax(-1, keepdim=True)  # whose square may leave float64
    length = largest[..., 0] * (mean / torch.where(largest > 0, largest, 1.0)).square().sum(-1).sqrt()
    return length.item() if isinstance(x, Tensor | np.ndarray | Moments) else length


def concentricity(x: Features) -> float:
    r"""The mean cosine of the samples of x (n, p) with their mean (Wang et al. 2022), in −1 … 1.

    .. math:: \frac1n \sum_i \frac{x_i^\top \bar x}{\|x_i\|\,\|\bar x\|}

    1 where all samples point the same way, about 0 for samples around the origin. Invariant to rotations and a scale,
    not to offsets. Two representations are compared by ``abs(concentricity(x) - concentricity(y))``, ReSi's
    "concentricity difference".

    Raises:
        StatisticsError: a sample or the mean is zero, or there are no samples. ShapeError: x is not (n, p).
        NotFiniteError: NaN or Inf.
    """
    t = single(x).double()
    largest = t.abs().max()
    units = unit_rows("x", t, "cosine")
    mean = (t / largest).mean(0)
    length = mean.square().sum().sqrt()
    if not bool(length > 2.0**-50 * (t / largest).square().sum(1).mean().sqrt()):
        raise StatisticsError("concentricity is undefined: the mean of x is zero")
    return (units @ (mean / length)).mean().item()


def uniformity(x: Features, *, t: float = 2.0, normalize: bool = True, self_pairs: bool = False) -> float:
    r"""How evenly x (n, p) is spread over the sphere (Wang and Isola 2020): the lower the more evenly.

    .. math:: \log \frac{2}{n(n-1)} \sum_{i<j} e^{-t\,\|\hat x_i-\hat x_j\|^2}

    of samples of norm 1, in −2t n/(n−1) … 0: 0 where all point the same way, about −2t for independent directions in
    many dimensions. Invariant to rotations and a scale of each sample, not to offsets (without ``normalize`` the other
    way round: to offsets, not to scales, and without a bound below). Two representations are compared by
    ``abs(uniformity(x) - uniformity(y))``.

    ReSi's "uniformity difference" takes features as they come and counts the n pairs of a sample with itself, which
    keeps the value above −log n: ``normalize=False, self_pairs=True``. The logarithm of the sum is taken without
    underflow, so that far samples do not give −∞. Tiles of 512 × 512 pairs in float64, nothing of size n².

    Args:
        t: of the Gaussian potential, positive.
        normalize: samples of norm 1, as the definition has it.
        self_pairs: the mean over all n² pairs instead of the n(n−1)/2 of different samples.

    Raises:
        ValueError: t is not positive. StatisticsError: fewer than two samples, or a sample is zero (``normalize``).
        ShapeError: x is not (n, p). NotFiniteError: NaN or Inf.
    """
    if not 0 < t < float("inf"):
        raise ValueError(f"t must be positive and finite; got {t}")
    rows = single(x, at_least=2)
    rows = about_median(unit_rows("x", rows, "cosine") if normalize else rows.double())
    if not bool(rows.abs().max() < 2.0**500):
        raise StatisticsError("squared distances overflow float64; scale the features of x down")
    n, total = len(rows), -math.inf  # logarithm of the sum so far
    for i, j in tiles(n):
        exponent = squared(rows[i], rows[j]).mul_(-t)
        if i == j:
            above = torch.triu_indices(len(exponent), len(exponent), 1, device=exponent.device)
            exponent = exponent[above[0], above[1]]
        if exponent.numel():
            total = float(np.logaddexp(total, exponent.flatten().logsumexp(0).item()))
    if self_pairs:  # each pair twice, and n times e⁰
        return float(np.logaddexp(total + math.log(2), math.log(n))) - 2 * math.log(n)
    return total - math.log(n * (n - 1) / 2)
