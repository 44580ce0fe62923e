"""Centred kernel alignment and the Hilbert-Schmidt independence criterion: linear ones exact in one pass over the data,
others tile by tile over the pairs of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.moments import Moments
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    import numpy as np

    Features = Tensor | np.ndarray
    Bandwidth = float | str | Sequence[float | str] | Tensor | None

#: Samples whose distances stand for all in a median, and their seed.
MEDIAN_SAMPLES, MEDIAN_SEED = 512, 0


def cka(
    x: Moments | Statistics | Features,
    y: Features | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Bandwidth = None,
    unbiased: bool = False,
    debiased: bool = False,
) -> Any:
    r"""CKA of x (n, p) and y (n, q), or (linear) of two-sided moments.

    .. math:: \mathrm{CKA} = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\,\mathrm{HSIC}(y, y)}}
              = \frac{\|C_{xy}\|_F^2}{\|C_{xx}\|_F \|C_{yy}\|_F} \text{ (linear, biased)}

    (Kornblith et al. 2019). ``unbiased`` (or ``debiased``) uses the U-statistic of HSIC (Song et al. 2012) in all three
    places; it can be negative, and needs four samples. Both are exact: no minibatch approximation, and offsets and
    scales of the features do not matter. ``kernel`` and ``bandwidth``: see :func:`hsic`.

    From :class:`Statistics` comes a tensor with a value for each problem of the batch, as :func:`stitchkern.bootstrap`
    asks for it (biased only: what the unbiased form adds is not in covariances); from several bandwidths a tensor with
    a value for each; otherwise a float.

    Raises:
        StatisticsError: CKA is undefined: x or y does not vary, or (unbiased) its HSIC with itself is not positive,
            there are fewer than 4 samples, or weights other than 0 and 1. Or the median distance is asked for and 0.
        NotFiniteError: x or y holds NaN or Inf.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples.
        ValueError: another kernel, a bandwidth that is not positive, or one where the kernel has none.
    """
    if isinstance(x, Statistics):
        _check_linear(kernel, bandwidth)
        return _cka_of_statistics(x, y, unbiased or debiased)
    triples = _hsic_triples(x, y, kernel, bandwidth, unbiased=unbiased or debiased)
    values = []
    for xy, xx, yy in triples:
        for name, value in (("x", xx), ("y", yy)):
            if not value > 0:
                why = "does not vary" if value == 0 else f"has no positive unbiased HSIC with itself ({value:.3g})"
                raise StatisticsError(f"CKA is undefined: {name} {why}")
        values.append(xy / (math.sqrt(xx) * math.sqrt(yy)))
    return torch.tensor(values, dtype=torch.float64) if _is_several(bandwidth) else values[0]


def hsic(
    x: Moments | Features,
    y: Features | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Bandwidth = None,
    unbiased: bool = False,
) -> Any:
    r"""HSIC of x (n, p) and y (n, q), or (linear) of two-sided moments, with one kernel for both sides.

    Biased, with K and L the n × n kernel matrices, k and l their row sums:
    tr(KHLH) / n² = (Σ K∘L − (2/n) Σ k l + Σk Σl / n²) / n²; for the linear kernel that is :math:`\|C_{xy}\|_F^2`.
    Codes that divide by (n−1)² have n²/(n−1)² times as much. ``unbiased``, with zeros on the diagonals of K and L (Song
    et al. 2012, equation 5): (Σ K∘L + Σk Σl / ((n−1)(n−2)) − 2/(n−2) Σ k l) / (n(n−3)); it can be negative, and needs
    four samples.

    Args:
        kernel: "linear", "rbf": exp(−‖a − b‖² / (2σ²)), or "laplace": exp(−‖a − b‖ / σ). These two visit all pairs of
            samples in tiles: time O(n² (p + q)), memory O(n).
        bandwidth: σ of both sides, a positive number; or ``"median"`` or ``"0.5 median"``: that multiple of each side's
            own median distance between two different samples, among at most 512 of them (all where there are no more;
            otherwise those that ``torch.randperm`` puts first with seed 0), as ``None`` does. A sequence or a tensor of
            one dimension holds several: the result is a tensor with a value for each, of about one pass over the
            distances.

    Raises: as :func:`cka`, except that constant features give 0 (with a number as bandwidth: their median is 0).
    """
    values = [xy for xy, _, _ in _hsic_triples(x, y, kernel, bandwidth, unbiased=unbiased)]
    return torch.tensor(values, dtype=torch.float64) if _is_several(bandwidth) else values[0]


def _cka_of_statistics(stats: Statistics, y: Features | None, unbiased: bool) -> Tensor:
    if y is not None or unbiased:
        raise ValueError("statistics hold both sides, and no more than biased CKA needs")
    xy, xx, yy = (c.square().sum((-2, -1)) for c in (stats.cov_xy, stats.cov_xx, stats.cov_yy))
    if not bool((xx.isfinite() & yy.isfinite()).all()):
        raise StatisticsError("HSIC overflows float64; scale the features down")
    for name, value in (("x", xx), ("y", yy)):
        if bool((value == 0).any()):
            raise StatisticsError(f"CKA is undefined: {name} does not vary")
    return xy / (xx.sqrt() * yy.sqrt())


def _hsic_triples(
    x: Moments | Features, y: Features | None, kernel: str, bandwidth: Bandwidth, *, unbiased: bool
) -> list[tuple[float, float, float]]:
    """HSIC(x, y), HSIC(x, x) and HSIC(y, y) for each bandwidth."""
    if kernel not in ops.HSIC_KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(ops.HSIC_KERNELS)}; got {kernel!r}")
    if kernel == "linear" or isinstance(x, Moments):
        _check_linear(kernel, bandwidth)
        triples = [_hsic_triple(x, y, unbiased=unbiased)]
    else:
        triples = _from_tiles(*_features(x, y), kernel, bandwidth, unbiased)
    if not all(math.isfinite(value) for triple in triples for value in triple):
        raise StatisticsError("HSIC overflows float64; scale the features down")
    return triples


def _check_linear(kernel: str, bandwidth: Bandwidth) -> None:
    if kernel != "linear":
        raise ValueError(f"moments and statistics know the linear kernel only, not {kernel!r}; give features")
    if bandwidth is not None:
        raise ValueError("bandwidth is given, but the linear kernel has none")


def _features(x: Features, y: Features | None) -> tuple[Tensor, Tensor]:
    if y is None:
        raise ValueError("y is missing: cka(x, y) with features, or cka(moments)")
    tx, ty = torch.as_tensor(x), torch.as_tensor(y)
    if tx.ndim != 2 or ty.ndim != 2 or len(tx) != len(ty):
        raise ShapeError(
            f"x and y must be (n, p) and (n, q) with the same n; got {tuple(tx.shape)} and {tuple(ty.shape)}"
        )
    return tx.detach(), ty.detach()


def _hsic_triple(x: Moments | Features, y: Features | None, *, unbiased: bool) -> tuple[float, float, float]:
    if isinstance(x, Moments):
        if y is not None:
            raise ValueError("y must not be given with moments: they hold both sides")
        return _from_moments(x, unbiased)
    tx, ty = _features(x, y)
    n, (p, q) = len(tx), (tx.shape[1], ty.shape[1])
    if n <= max(p, q):  # the n × n side is the smaller one
        return _from_samples(tx, ty, unbiased)
    return _from_moments(Moments(p, q).update(tx, ty), unbiased)


def _from_moments(m: Moments, unbiased: bool) -> tuple[float, float, float]:
    squares = [c.square().sum().item() for c in (m.cov_xy, m.cov_xx, m.cov_yy)]
    if not unbiased:
        return squares[0], squares[1], squares[2]
    n = _sample_count(m)
    traces = m.cov_xx.trace().item() * n, m.cov_yy.trace().item() * n
    xx, xy, yy = m.centred_norms().tolist()
    pairs = ((0, xy, traces[0] * traces[1]), (1, xx, traces[0] * traces[0]), (2, yy, traces[1] * traces[1]))
    a, b, c = (_unbiased(n, squares[i] * n * n, joint, product) for i, joint, product in pairs)
    return a, b, c


def _sample_count(m: Moments) -> float:
    if abs(m.effective_count - m.count) > 1e-9 * m.count:
        raise StatisticsError("unbiased HSIC needs weights of 0 or 1")
    return m.count


def _unbiased(n: float, square: float, joint: float, traces: float) -> float:
    if n < 4:
        raise StatisticsError(f"unbiased HSIC needs at least 4 samples; got {n:g}")
    return (square + traces / ((n - 1) * (n - 2)) - joint * n / (n - 2)) / (n * (n - 3))


def _from_samples(x: Tensor, y: Tensor, unbiased: bool) -> tuple[float, float, float]:
    n = len(x)
    if n < 2:
        raise StatisticsError(f"HSIC needs at least two samples; got {n}")
    grams = []
    for name, t in (("x", x), ("y", y)):
        t = t.double()
        t = t - t[0]  # so that constant features become exactly zero
        t = t - t.mean(0)
        if not torch.isfinite(t).all():
            raise StatisticsError(f"{name} holds NaN or Inf")
        grams.append(t @ t.T)
    k, l = grams

    def one(k: Tensor, l: Tensor) -> float:
        square = (k * l).sum().item()
        if not unbiased:
            return square / n**2
        a, b = k.diagonal(), l.diagonal()
        return _unbiased(n, square, (a @ b).item(), (a.sum() * b.sum()).item())

    return one(k, l), one(k, k), one(l, l)


# ---------------------------------------------------------------------------------------------------- other kernels


def _from_tiles(
    x: Tensor, y: Tensor, kernel: str, bandwidth: Bandwidth, unbiased: bool
) -> list[tuple[float, float, float]]:
    n = len(x)
    least, what = (4, "unbiased HSIC") if unbiased else (2, "HSIC")
    if n < least:
        raise StatisticsError(f"{what} needs at least {least if unbiased else 'two'} samples; got {n}")
    sides = []
    for name, t in (("x", x), ("y", y)):
        if t.device.type != "cpu":
            raise ValueError(f"kernel {kernel!r} is for CPU tensors so far; {name} is on {t.device}")
        t = t if t.is_floating_point() and t.dtype.itemsize > 1 else t.double()
        if t.shape[1] == 0:
            raise ShapeError(f"{name} must have at least one feature; got {tuple(t.shape)}")
        if not math.isfinite(t.sum(dtype=torch.float64)):
            raise NotFiniteError(f"{name} holds NaN or Inf")
        sides.append(t)

    # σ of each side, and the mean of its kernel over some pairs: less that, sums keep their digits
    wanted = list(bandwidth) if _is_several(bandwidth) else [bandwidth]  # type: ignore[arg-type]
    widths, shifts = torch.empty(2, len(wanted), dtype=torch.float64), torch.empty(2, len(wanted), dtype=torch.float64)
    for side, (name, t) in enumerate(zip("xy", sides, strict=True)):
        distance = _some_distances(t)
        for j, one in enumerate(wanted):
            sigma = _sigma(one, name, distance)
            exponent = (distance / sigma).square() / 2 if kernel == "rbf" else distance / sigma
            widths[side, j], shifts[side, j] = sigma, torch.exp(-exponent).mean()

    code = ops.HSIC_KERNELS[kernel]
    rows, diagonal, sums = ops.hsic_sums(sides[0], sides[1], code, code, widths, shifts)
    triples = []
    for j in range(len(wanted)):
        k, l = (_Side(rows[side, j], diagonal[side, j]) for side in range(2))
        xy, xx, yy = (
            _hsic_of_sums(a, b, total, unbiased)
            for a, b, total in zip((k, k, l), (l, k, l), sums[:, j].tolist(), strict=True)
        )
        triples.append((xy, xx, yy))
    return triples


class _Side:
    """One kernel matrix: its row sums off the diagonal, and its diagonal."""

    def __init__(self, rows: Tensor, diagonal: Tensor) -> None:
        self.off, self.diagonal, self.full = rows, diagonal, rows + diagonal


def _hsic_of_sums(k: _Side, l: _Side, products: float, unbiased: bool) -> float:
    """HSIC from row sums, diagonals, and Σ K∘L off the diagonal; what row sums have in common is taken out first."""
    n = len(k.off)
    if not unbiased:
        a, b, least, pairs = k.full, l.full, n, n * n
        products += (k.diagonal @ l.diagonal).item()
    else:
        a, b, least, pairs = k.off, l.off, n - 2, n * (n - 3)
    common = (a.sum() * b.sum()).item() / (n * n if not unbiased else n * (n - 1))
    spread = ((a - a.mean()) @ (b - b.mean())).item()
    return (products - common - 2 / least * spread) / pairs


def _is_several(bandwidth: Bandwidth) -> bool:
    return (isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str)) or getattr(bandwidth, "ndim", 0) > 0


def _sigma(bandwidth: Any, name: str, distance: Tensor) -> float:
    """σ of one side from what the caller asked for; `distance`: between some of its samples."""
    multiple = "median" if bandwidth is None else bandwidth
    if isinstance(multiple, str):
        number, _, unit = multiple.rpartition("median")
        try:
            factor = float(number) if number.strip() else 1.0
        except ValueError:
            factor = math.nan
        if unit.strip() or "median" not in multiple or not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f'bandwidth must be a positive number, "median" or "0.5 median"; got {bandwidth!r}')
        middle = torch.quantile(distance, 0.5).item()
        if middle == 0:
            why = "does not vary" if not bool(distance.any()) else "holds too many equal samples"
            raise StatisticsError(f"the median distance of {name} is 0: it {why}; give bandwidth as a number")
        return factor * middle
    sigma = float(bandwidth)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"bandwidth must be positive and finite; got {bandwidth!r}")
    return sigma


def _some_distances(t: Tensor) -> Tensor:
    """All distances between two of at most MEDIAN_SAMPLES samples, in float64."""
    if len(t) > MEDIAN_SAMPLES:
        t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(MEDIAN_SEED))[:MEDIAN_SAMPLES]]
    return torch.pdist(t.double())
