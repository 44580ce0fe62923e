"""HSIC of all pairs of representations: a plain form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError


class HsicMatrix(NamedTuple):
    """HSIC of every x with every y (L, M), of every x with itself (L,), of every y with itself (M,); float64."""

    xy: Tensor
    xx: Tensor
    yy: Tensor


def hsic_matrix(
    list_x: Sequence[Tensor],
    list_y: Sequence[Tensor] | None = None,
    *,
    kernel: str = "linear",
    bandwidth: Any = None,
    unbiased: bool = False,
    space: str = "auto",
) -> HsicMatrix:
    k = _grams(list_x, kernel, bandwidth, unbiased)
    l = k if list_y is None else _grams(list_y, kernel, bandwidth, unbiased)
    n = k.shape[1]

    def all_pairs(k: Tensor, l: Tensor) -> Tensor:
        square = k.flatten(1) @ l.flatten(1).T
        a, b = k.sum(2), l.sum(2)
        if not unbiased:
            return (square - 2 / n * a @ b.T + torch.outer(a.sum(1), b.sum(1)) / n**2) / n**2
        joint, both = a @ b.T, torch.outer(a.sum(1), b.sum(1))
        return (square + both / ((n - 1) * (n - 2)) - 2 / (n - 2) * joint) / (n * (n - 3))

    xy = all_pairs(k, l)
    return HsicMatrix(xy, all_pairs(k, k).diagonal().clone(), all_pairs(l, l).diagonal().clone())


def _grams(features: Sequence[Tensor], kernel: str, bandwidth: Any, unbiased: bool) -> Tensor:
    found = []
    for t in features:
        c = t.double()
        if not bool(c.isfinite().all()):
            raise NotFiniteError("features hold NaN or Inf")
        c = c - c[0]
        c = c - c.mean(0)
        if kernel == "linear":
            k = c @ c.T
        else:
            d = torch.cdist(c, c)
            sigma = torch.pdist(c).quantile(0.5) if bandwidth is None else float(bandwidth)
            k = torch.exp(-(d**2) / (2 * sigma**2)) if kernel == "rbf" else torch.exp(-d / sigma)
        found.append(k.fill_diagonal_(0) if unbiased else k)
    return torch.stack(found)
