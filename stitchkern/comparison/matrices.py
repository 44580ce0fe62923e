"""Kernel matrices in place of features: what minibatch CKA keeps of a layer, made while its activations are hot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.similarity.kernel_sums import hsic_of_matrices
from stitchkern.similarity.pairs import HsicMatrix

#: Rows of a batch up to which a layer's kernel matrix takes the place of its features: 8 MiB. Larger batches are
#: compared in tiles, of features that are held.
MOST_ROWS = 1024


@dataclass(frozen=True)
class KernelMatrix:
    """The linear kernel matrix of some features: (n, n) float64, of features less their mean."""

    values: Tensor
    features: int  # p
    finite: bool  # whether the features are

    @property
    def shape(self) -> tuple[int, int]:
        """Of the features."""
        return len(self.values), self.features

    def __len__(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        return self.values.device

    def to(self, device: torch.device) -> KernelMatrix:
        return KernelMatrix(self.values.to(device), self.features, self.finite)


Held = Tensor | KernelMatrix


def matrix_of(features: Tensor) -> KernelMatrix:
    """Of features (n, p)."""
    values = ops.hsic_gram(features.cpu())
    finite = bool(values.diagonal().isfinite().all()) or bool(features.isfinite().all())
    return KernelMatrix(values, features.shape[1], finite)


def takes_matrices(rows: int, device: torch.device) -> bool:
    """Whether they are cheap to keep, and features need not leave a GPU for them."""
    return device.type == "cpu" and rows <= MOST_ROWS


def matrix_where_small(features: Tensor) -> Held:
    return matrix_of(features) if takes_matrices(len(features), features.device) else features


def hsic_between(xs: Sequence[Held], ys: Sequence[Held] | None) -> HsicMatrix:
    """Unbiased HSIC of all pairs, and of each with itself."""
    matrices = [t.values.cpu() if isinstance(t, KernelMatrix) else matrix_of(t).values for t in [*xs, *(ys or [])]]
    found = hsic_of_matrices(matrices, unbiased=True)
    own, x = found.diagonal(), len(xs)
    return HsicMatrix(found, own, own) if ys is None else HsicMatrix(found[:x, x:], own[:x], own[x:])
