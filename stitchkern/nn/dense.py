"""The stitch: an affine map over the channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.errors import ShapeError
from stitchkern.nn.channel_map import ChannelMap, map_densely


class Stitch(ChannelMap):
    r"""Affine map over channels, :math:`y = W x + b`, the same at every position or token.

    A 4-D input (n, p, h, w) goes through a 1×1 convolution and becomes (n, q, h, w); (n, p) and
    (n, t, p) go through a linear layer over the last dimension.

    Args:
        p: channels that come in.
        q: channels that go out.
        bias: whether there is a :math:`b`.
        size: the spatial size (h, w) that the next layer expects. None takes any size.
        resize: ``"bilinear"`` or ``"nearest"`` resamples an input of another spatial size to ``size``
            before the map; None makes another size an error. Needs ``size``.

    Attributes:
        weight: (q, p).
        bias: (q,) or None.

    Raises:
        ShapeError: from ``forward``, for another channel count, rank or spatial size than expected.

    Source: Lenc and Vedaldi 2015; Csiszárik et al. 2021 (arXiv 2110.14633), section 3.
    """

    def __init__(
        self,
        p: int,
        q: int,
        *,
        bias: bool = True,
        size: tuple[int, int] | None = None,
        resize: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(size, resize)
        self.weight = nn.Parameter(torch.empty(q, p, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(q, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1/√p, as ``torch.nn.Linear`` does."""
        bound = 1 / math.sqrt(self.p) if self.p else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def from_affine(cls, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Stitch:
        """The stitch with a copy of ``weight`` (q, p) and ``bias`` (q,), in the dtype of ``weight``."""
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ShapeError(
                "weight must be (q, p) and bias (q,); "
                f"got {tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            )
        q, p = weight.shape
        stitch = cls(p, q, bias=bias is not None, device=weight.device, dtype=weight.dtype, **options)
        with torch.no_grad():
            stitch.weight.copy_(weight)
            if stitch.bias is not None and bias is not None:
                stitch.bias.copy_(bias)
        return stitch

    @classmethod
    def identity(cls, p: int, **options: Any) -> Stitch:
        """The stitch that changes nothing: weight I (p, p), bias 0."""
        return cls.from_affine(torch.eye(p), torch.zeros(p), **options)

    @property
    def p(self) -> int:  # type: ignore[override]
        return self.weight.shape[1]

    @property
    def q(self) -> int:  # type: ignore[override]
        return self.weight.shape[0]

    def map_channels(self, x: Tensor) -> Tensor:
        return map_densely(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}"
