"""CKA and HSIC of all pairs of two lists of representations: each one's kernel matrix is made once, in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.kernel_sums import check_kernel, hsic_of_sides, is_several, sides_of

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features
    from stitchkern.similarity.kernel_sums import Bandwidth


class HsicMatrix(NamedTuple):
    """HSIC of every x with every y (L, M), of every x with itself (L,), of every y with itself (M,); float64.

    With several bandwidths each has them as a leading dimension.
    """

    xy: Tensor
    xx: Tensor
    yy: Tensor


def cka_matrix(
    list_x: Sequence[Features],
    list_y: Sequence[Features] | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Bandwidth = None,
    unbiased: bool = False,
    debiased: bool = False,
    space: str = "auto",
) -> Tensor:
    """CKA of every representation of one list with every one of another (or of its own): (L, M) float64.

    Equal to :func:`stitchkern.cka` of each pair, at the cost of L + M kernel matrices instead of one for each pair and
    side, none of which is stored: tiles of all of them are made and multiplied with each other. Arguments beside the
    lists, and gradients, as there; several bandwidths give (b, L, M).

    Args:
        list_x: L features (n, p_i) of the same n samples, torch or numpy; widths and types may differ.
        list_y: M features (n, q_j). By default ``list_x``: then the matrix is symmetric with ones on its diagonal.

    Raises: as :func:`stitchkern.cka`, naming the representation by its list and index.
    """
    found = hsic_matrix(list_x, list_y, kernel=kernel, bandwidth=bandwidth, unbiased=unbiased or debiased, space=space)
    for name, own in (("list_x", found.xx), ("list_y", found.yy)):
        for index in ((~(own > 0)).nonzero()[:, -1]).tolist():
            values = own[..., index].detach()
            why = "does not vary" if bool((values == 0).any()) else "has no positive unbiased HSIC with itself"
            raise StatisticsError(f"CKA is undefined: {name}[{index}] {why}")
    return found.xy / (found.xx.sqrt()[..., :, None] * found.yy.sqrt()[..., None, :])


def hsic_matrix(
    list_x: Sequence[Features],
    list_y: Sequence[Features] | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Bandwidth = None,
    unbiased: bool = False,
    space: str = "auto",
) -> HsicMatrix:
    """HSIC (:func:`stitchkern.hsic`) of all pairs, and of each with itself; constant features give 0."""
    check_kernel(kernel, bandwidth, space)
    lists = [list_x] if list_y is None else [list_x, list_y]
    for name, found in zip(("list_x", "list_y"), lists, strict=False):
        if not isinstance(found, Sequence) or not len(found):
            got = "an empty one" if isinstance(found, Sequence) else type(found).__name__
            raise ValueError(f"{name} must be a list of features (n, p); got {got}")
    names = [
        f"{name}[{i}]" for name, found in zip(("list_x", "list_y"), lists, strict=False) for i in range(len(found))
    ]
    sides = sides_of([t for found in lists for t in found], names)
    values = hsic_of_sides(sides, names, kernel=kernel, bandwidth=bandwidth, unbiased=unbiased, space=space)
    if not is_several(bandwidth):
        values = values[0]
    own, split = values.diagonal(dim1=-2, dim2=-1), len(list_x)
    if list_y is None:
        return HsicMatrix(values, own, own)
    return HsicMatrix(values[..., :split, split:], own[..., :split], own[..., split:])
