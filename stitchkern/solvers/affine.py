"""The result of every direct solver: an affine map and how well it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError

if TYPE_CHECKING:
    from stitchkern.nn import Stitch


@dataclass(frozen=True)
class AffineMap:
    r"""ŷ = M x + b, fitted to moments.

    Attributes:
        weight: M (q, p), float64.
        bias: b (q,), float64.
        rank: rank of M that the data supports (directions of x that carried information; at most the rank asked for).
        residual: E‖M x + b − y‖², in squared units of y, summed over its features.
        r2: 1 − residual / E‖y − ȳ‖²; 1 where y is constant and fitted exactly.
        method: the road taken, for example ``"cholesky"`` or ``"eigh"``.
    """

    weight: Tensor
    bias: Tensor
    rank: int
    residual: float
    r2: float
    method: str

    def __call__(self, x: Tensor, channel_dim: int | None = None) -> Tensor:
        """M x + b over the channel dimension (1 for 4-D, the last one otherwise), in x's dtype.

        Raises:
            ShapeError: x does not have p channels there.
        """
        dim = (1 if x.ndim == 4 else -1) if channel_dim is None else channel_dim
        p = self.weight.shape[1]
        if x.ndim == 0 or x.shape[dim] != p:
            raise ShapeError(f"x must have {p} channels in dimension {dim}; got {tuple(x.shape)}")
        weight, bias = self.weight.to(x), self.bias.to(x)
        return torch.nn.functional.linear(x.movedim(dim, -1), weight, bias).movedim(-1, dim)

    def to_module(self, *, dtype: torch.dtype = torch.float32, **options: Any) -> Stitch:
        """The map as a trainable layer; options go to :class:`stitchkern.nn.Stitch`."""
        from stitchkern.nn import Stitch

        return Stitch.from_affine(self.weight.to(dtype), self.bias.to(dtype), **options)
