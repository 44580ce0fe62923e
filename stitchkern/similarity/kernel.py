"""Linear centred kernel alignment and the Hilbert-Schmidt independence criterion, exact in one pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError, StatisticsError
from stitchkern.moments import Moments
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    import numpy as np

    Features = Tensor | np.ndarray


def cka(
    x: Moments | Statistics | Features,
    y: Features | None = None,
    *,
    unbiased: bool = False,
    debiased: bool = False,
) -> Any:
    r"""Linear CKA of x (n, p) and y (n, q), or of two-sided moments.

    .. math:: \mathrm{CKA} = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\,\mathrm{HSIC}(y, y)}}
              = \frac{\|C_{xy}\|_F^2}{\|C_{xx}\|_F \|C_{yy}\|_F} \text{ (biased)}

    (Kornblith et al. 2019). ``unbiased`` (or ``debiased``) uses the U-statistic of HSIC (Song et al. 2012) in all three
    places; it can be negative, and needs four samples. Both are exact: no minibatch approximation, and offsets and
    scales of the features do not matter.

    From :class:`Statistics` comes a tensor with a value for each problem of the batch, as :func:`stitchkern.bootstrap`
    asks for it (biased only: what the unbiased form adds is not in covariances); otherwise a float.

    Raises:
        StatisticsError: CKA is undefined: x or y does not vary, or (unbiased) its HSIC with itself is not positive,
            there are fewer than 4 samples, or weights other than 0 and 1.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples.
    """
    if isinstance(x, Statistics):
        return _cka_of_statistics(x, y, unbiased or debiased)
    xy, xx, yy = _hsic_triple(x, y, unbiased=unbiased or debiased)
    if not all(map(math.isfinite, (xy, xx, yy))):
        raise StatisticsError("HSIC overflows float64; scale the features down")
    for name, value in (("x", xx), ("y", yy)):
        if not value > 0:
            why = "does not vary" if value == 0 else f"has no positive unbiased HSIC with itself ({value:.3g})"
            raise StatisticsError(f"CKA is undefined: {name} {why}")
    return xy / (math.sqrt(xx) * math.sqrt(yy))


def hsic(x: Moments | Features, y: Features | None = None, *, unbiased: bool = False) -> float:
    r"""Linear HSIC: :math:`\|C_{xy}\|_F^2` (biased), or its unbiased estimate from the off-diagonal kernel entries.

    With centred rows, a = ‖x‖², b = ‖y‖², S = Σ x yᵀ: (‖S‖² + Σa·Σb/((n−1)(n−2)) − Σab·n/(n−2)) / (n(n−3)),
    which is Song et al. 2012, equation 5, for linear kernels.

    Raises: as :func:`cka`, except that constant features give 0.
    """
    return _hsic_triple(x, y, unbiased=unbiased)[0]


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


def _hsic_triple(x: Moments | Features, y: Features | None, *, unbiased: bool) -> tuple[float, float, float]:
    if isinstance(x, Moments):
        if y is not None:
            raise ValueError("y must not be given with moments: they hold both sides")
        return _from_moments(x, unbiased)
    if y is None:
        raise ValueError("y is missing: cka(x, y) with features, or cka(moments)")
    tx, ty = torch.as_tensor(x), torch.as_tensor(y)
    if tx.ndim != 2 or ty.ndim != 2 or len(tx) != len(ty):
        raise ShapeError(
            f"x and y must be (n, p) and (n, q) with the same n; got {tuple(tx.shape)} and {tuple(ty.shape)}"
        )
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
