"""Indices of x and permuted samples of y, from what permuting does not change.

Covariances, kernels, distances and neighbours of each side are found once. What is left for a permutation π is one of

- Σᵢⱼ K_ij L_π(i)π(j) of two symmetric n × n matrices (:class:`Pairs`): kernel indices, RSA, all that is ‖AᵀPB‖²_F
- AᵀPB (r × s) of two matrices (n, r) and (n, s) (:class:`Products`), and its norm: all that moments can express
- for each sample, how many of its neighbours in x are neighbours in y (:class:`Neighbours`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

#: bytes of permuted samples and products that exist at a time
_MEMORY = 128 << 20
#: entries of a permuted matrix that are gathered at a time
_TILE = 1 << 18
Value: TypeAlias = Callable[[Tensor], Tensor]


class Road(Protocol):
    """How the index of permuted samples is found."""

    @property
    def name(self) -> str: ...

    @property
    def step(self) -> int:
        """Permutations at a time."""

    @property
    def unit(self) -> float:
        """What errors of the index are relative to."""

    def __call__(self, order: Tensor) -> Tensor:
        """The values (k) of the index for x and y[π], π each row of ``order`` (k, n)."""


@dataclass
class Pairs:
    """Σᵢⱼ left_ij right_π(i)π(j) of symmetric matrices (n, n), and the index as a function of it."""

    left: Tensor
    right: Tensor
    value: Value
    unit: float = 1.0
    name: str = "pairs"
    step: int = 16

    def __call__(self, order: Tensor) -> Tensor:
        return self.value(torch.stack([self._inner(row) for row in order]))

    def _inner(self, order: Tensor) -> Tensor:
        n, total = len(order), self.left.new_zeros(())
        step = max(16, _TILE // n)
        for a in range(0, n, step):  # the upper triangle: rows from a on, columns from a on
            rows = order[a : a + step]
            part = self.right.index_select(0, rows).gather(1, order[a:].expand(len(rows), -1))
            part *= self.left[a : a + step, a:]
            total = total + 2 * part.sum() - part[:, : len(rows)].sum()
        return total


@dataclass
class Products:
    """leftᵀ right[π] (r, s) of left (n, r) and right (n, s), and the index as a function of it and of π."""

    left: Tensor
    right: Tensor
    value: Callable[[Tensor, Tensor], Tensor]
    unit: float = 1.0
    name: str = "products"

    @property
    def step(self) -> int:
        (n, s), r = self.right.shape, self.left.shape[1]
        return max(1, _MEMORY // (8 * (n * s + 2 * r * s)))

    def __call__(self, order: Tensor) -> Tensor:
        return self.value(self.left.T @ self.right[order], order)


@dataclass
class Neighbours:
    """For the k neighbours (n, k) of each sample of x: Σ of weights (n, n) of their pairs in y, and the index of it."""

    nearest: Tensor
    right: Tensor
    value: Value  # of (k,) sums for each sample (…, n, k)
    unit: float = 1.0
    name: str = "neighbours"

    @property
    def step(self) -> int:
        return max(1, _MEMORY // (24 * self.nearest.numel()))

    def __call__(self, order: Tensor) -> Tensor:
        others = order[:, self.nearest]  # (b, n, k): where the neighbours of x went in y
        return self.value(self.right[order[..., None], others])
