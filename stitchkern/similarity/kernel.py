"""Centred kernel alignment and the Hilbert-Schmidt independence criterion: linear ones exact in one pass over the data,
others tile by tile over the pairs of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.moments import Moments
from stitchkern.similarity.kernel_sums import cancels, check_kernel, hsic_of_sides, in_features, is_several, sides_of
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features
    from stitchkern.similarity.kernel_sums import Bandwidth


def cka(
    x: Moments | Statistics | Features,
    y: Features | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Bandwidth = None,
    unbiased: bool = False,
    debiased: bool = False,
    space: str = "auto",
) -> Any:
    r"""CKA of x (n, p) and y (n, q), or (linear) of two-sided moments.

    .. math:: \mathrm{CKA} = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\,\mathrm{HSIC}(y, y)}}
              = \frac{\|C_{xy}\|_F^2}{\|C_{xx}\|_F \|C_{yy}\|_F} \text{ (linear, biased)}

    (Kornblith et al. 2019). ``unbiased`` (or ``debiased``) uses the U-statistic of HSIC (Song et al. 2012) in all three
    places; it can be negative, and needs four samples. Both are exact: no minibatch approximation, and offsets and
    scales of the features do not matter. ``kernel``, ``bandwidth`` and ``space``: see :func:`hsic`.

    From :class:`Statistics` comes a tensor with a value for each problem of the batch, as :func:`stitchkern.bootstrap`
    asks for it (biased only: what the unbiased form adds is not in covariances); from several bandwidths a tensor with
    a value for each; otherwise a float.

    Where x or y requires a gradient (and gradients are on), the value is a float64 tensor with its graph: CKA as a
    penalty. It can be differentiated once; bandwidths that follow the median count as constants.

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
    xy, xx, yy = _triple(x, y, kernel, bandwidth, unbiased=unbiased or debiased, space=space)
    for name, value in (("x", xx), ("y", yy)):
        if not bool((value > 0).all()):
            least = value.min().item()
            why = "does not vary" if least == 0 else f"has no positive unbiased HSIC with itself ({least:.3g})"
            raise StatisticsError(f"CKA is undefined: {name} {why}")
    return _answer(xy / (xx.sqrt() * yy.sqrt()), bandwidth)


def hsic(
    x: Moments | Features,
    y: Features | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Bandwidth = None,
    unbiased: bool = False,
    debiased: bool = False,
    space: str = "auto",
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
        space: the linear kernel has two ways to one value: ``"features"``, the covariances (one pass, about
            n (p + q)²/2 multiply-adds), and ``"samples"``, the kernel matrices in tiles (n² (p + q)/2). ``"auto"``:
            the cheaper one, n < p + q deciding. Other kernels know samples only.

    Raises: as :func:`cka`, except that constant features give 0 (with a number as bandwidth: their median is 0).
    """
    return _answer(_triple(x, y, kernel, bandwidth, unbiased=unbiased or debiased, space=space)[0], bandwidth)


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


def _triple(
    x: Moments | Features, y: Features | None, kernel: str, bandwidth: Bandwidth, *, unbiased: bool, space: str
) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC(x, y), HSIC(x, x) and HSIC(y, y), each (b,)."""
    if isinstance(x, Moments):
        _check_linear(kernel, bandwidth)
        if y is not None:
            raise ValueError("y must not be given with moments: they hold both sides")
        if space == "samples":
            raise ValueError("moments hold no samples; space must be auto or features")
    check_kernel(kernel, bandwidth, space)
    if not isinstance(x, Moments):
        if y is None:
            raise ValueError("y is missing: give features x and y, or moments of both")
        sides = sides_of((x, y), "xy")
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in sides)
        if graph or not in_features(sides, kernel, space):
            values = hsic_of_sides(sides, "xy", kernel=kernel, bandwidth=bandwidth, unbiased=unbiased, space=space)
            return values[:, 0, 1], values[:, 0, 0], values[:, 1, 1]
        x = Moments(sides[0].shape[1], sides[1].shape[1]).update(*sides)
        if unbiased and cancels(*(torch.tensor(_from_moments(x, how)[1:]) for how in (False, True))):
            x = Moments(x.p, x.q, precision="float64").update(*sides)
    found = torch.tensor(_from_moments(x, unbiased), dtype=torch.float64)
    if not bool(found.isfinite().all()):
        raise StatisticsError("HSIC overflows float64; scale the features down")
    xy, xx, yy = found[:, None]
    return xy, xx, yy


def _answer(values: Tensor, bandwidth: Bandwidth) -> Any:
    """(b,): as it is for several bandwidths, otherwise a number; a tensor wherever there is a graph."""
    if is_several(bandwidth):
        return values
    return values[0] if values.requires_grad else values[0].item()


def _check_linear(kernel: str, bandwidth: Bandwidth) -> None:
    if kernel != "linear":
        raise ValueError(f"moments and statistics know the linear kernel only, not {kernel!r}; give features")
    if bandwidth is not None:
        raise ValueError("bandwidth is given, but the linear kernel has none")


def _from_moments(m: Moments, unbiased: bool) -> tuple[float, ...]:
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
