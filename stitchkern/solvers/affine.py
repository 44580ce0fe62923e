"""The result of every direct solver: an affine map and how well it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

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
        rank: of M: at most the directions of x that carried information, q, and the rank asked for.
        dropped: directions of x whose variance the moments cannot tell from rounding; the map ignores them.
        residual: E‖M x + b − y‖², in squared units of y, summed over its features.
        residual_error: what rounding of the moments may have added to or taken from ``residual`` (a first-order bound):
            where it is not small beside ``residual``, the fit is known no better than that.
        r2: 1 − residual / E‖y − ȳ‖²; 1 where y is constant and fitted exactly.
        method: the road taken, for example ``"cholesky"`` or ``"eigh"``.
    """

    weight: Tensor
    bias: Tensor
    rank: int
    dropped: int
    residual: float
    residual_error: float
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

    @overload
    def to_module(self, *, spatial: None = None, dtype: torch.dtype = ..., **options: Any) -> Stitch: ...

    @overload
    def to_module(self, *, spatial: bool, dtype: torch.dtype = ...) -> torch.nn.Module: ...

    def to_module(
        self, *, spatial: bool | None = None, dtype: torch.dtype = torch.float32, **options: Any
    ) -> torch.nn.Module:
        """The map as a trainable layer with the same weights.

        Args:
            spatial: None gives a :class:`stitchkern.nn.Stitch`, which serves (n, p), (n, t, p) and (n, p, h, w) alike
                and takes the ``options``; True a plain ``torch.nn.Conv2d(p, q, 1)``; False a ``torch.nn.Linear(p, q)``.
            dtype: of the parameters.
        """
        from stitchkern.nn import Stitch

        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        if spatial is None:
            return Stitch.from_affine(weight, bias, **options)
        (q, p), device = weight.shape, weight.device
        plain = (
            torch.nn.Conv2d(p, q, 1, device=device, dtype=dtype)
            if spatial
            else torch.nn.Linear(p, q, device=device, dtype=dtype)
        )
        with torch.no_grad():
            plain.weight.copy_(weight[:, :, None, None] if spatial else weight)
            plain.bias.copy_(bias)  # type: ignore[union-attr]
        return plain
