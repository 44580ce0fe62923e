"""Distance correlation, tile by tile over the pairs of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.distances import points, squared, tiles
from stitchkern.similarity.features import pair

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features


def distance_correlation(x: Features, y: Features, *, unbiased: bool = False) -> float:
    r"""The distance correlation of x (n, p) and y (n, q) (Székely et al. 2007), in 0 … 1.

    .. math:: \mathrm{dCor} = \sqrt{\frac{\mathrm{dCov}^2(x, y)}{\mathrm{dCov}(x, x)\,\mathrm{dCov}(y, y)}},\qquad
              \mathrm{dCov}^2(x, y) = \frac1{n^2} \sum_{ij} A_{ij} B_{ij}

    with A and B the Euclidean distance matrices, centred by rows and columns: HSIC with the kernel −‖a − b‖, so that
    dCor² is CKA with it. ``unbiased``: the bias-corrected squared distance correlation (Székely and Rizzo 2013, 2014),
    dCov² from U-centred matrices and no root, since it may be negative; about 0 for unrelated sides at any p, where the
    first form tends to 1 as p grows beyond n. The first is a root and the second is not, as in the R package energy
    (``dcor``, ``bcdcor``).

    Symmetric; invariant to offsets, rotations and a scale of each side; 1 for equal sides. In the limit of many samples
    0 only where x and y are independent. Tiles of 512 × 512 pairs in float64: nothing of size n².

    Raises:
        StatisticsError: all samples of one side alike; fewer than two samples; ``unbiased`` with fewer than four, or
            where distances are the sums of a number for each sample (equally far apart, say), which centring takes out.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    tx, ty = pair(x, y, at_least=4 if unbiased else 2)
    sides = [points(name, t, "euclidean") for name, t in (("x", tx), ("y", ty))]
    sums, shift, products = _sums(sides)
    n = len(tx)
    if unbiased:
        least, pairs, count = n - 2, n * (n - 3), n * (n - 1)
    else:  # with what the shift leaves on the diagonal, where distances are 0
        sums = sums - shift[:, None]
        products = products + n * torch.outer(shift, shift)
        least, pairs, count = n, n * n, n * n
    totals = sums.sum(1)
    spread = sums - sums.mean(1, keepdim=True)
    cov = (products - torch.outer(totals, totals) / count - 2 / least * spread @ spread.T) / pairs
    for i, name in enumerate("xy"):
        if not float(cov[i, i]) > float(2.0**-40 * shift[i]) ** 2:  # what rounding leaves of it
            raise StatisticsError(
                f"distance correlation is undefined: the distances of {name} are sums of a number for each sample"
            )
    squared_value = (cov[0, 1] / (cov[0, 0].sqrt() * cov[1, 1].sqrt())).item()
    return squared_value if unbiased else max(squared_value, 0.0) ** 0.5


def _sums(sides: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of distances less a shift, which centring does not see, so that little cancels in it: the sums of each row
    (2, n), the shifts (2,), and the sums of products (2, 2); all without the diagonal."""
    n = len(sides[0])
    sums = torch.zeros(2, n, dtype=torch.float64, device=sides[0].device)
    products = sums.new_zeros(2, 2)
    shift = sums.new_zeros(2)
    for step, (i, j) in enumerate(tiles(n)):
        d = torch.stack([squared(rows[i], rows[j]).sqrt_() for rows in sides])
        if step == 0:  # the first tile stands for all
            shift = d.sum((1, 2)) / (d.shape[1] * (d.shape[1] - 1))
        d -= shift[:, None, None]
        if i == j:
            d.diagonal(dim1=1, dim2=2).zero_()
        else:
            sums[:, j] += d.sum(1)
        sums[:, i] += d.sum(2)
        flat = d.flatten(1)
        products += (1 if i == j else 2) * flat @ flat.T
    return sums, shift, products
