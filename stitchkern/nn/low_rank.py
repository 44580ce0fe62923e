"""The stitch through a bottleneck."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.errors import ShapeError
from stitchkern.nn.channel_map import ChannelMap, map_densely


class LowRankStitch(ChannelMap):
    r"""Affine map over channels through a bottleneck of k, :math:`y = A (B x) + b`: two 1×1 layers.

    Costs k (p + q) multiplications a position instead of p q.

    Args:
        p, q: channels that come in and go out.
        rank: k, at least 1.
        bias, size, resize, device, dtype: as for :class:`Stitch`.

    Attributes:
        down: B (k, p). up: A (q, k). bias: (q,) or None.

    Raises:
        ValueError: a rank below 1. ShapeError: as :class:`Stitch`.

    Source: Csiszárik et al. 2021 (arXiv 2110.14633), section 5.3.
    """

    def __init__(
        self,
        p: int,
        q: int,
        rank: int,
        *,
        bias: bool = True,
        size: tuple[int, int] | None = None,
        resize: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(size, resize)
        rank = operator.index(rank)
        if rank < 1:
            raise ValueError(f"rank must be at least 1; got {rank}")
        self.down = nn.Parameter(torch.empty(rank, p, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.empty(q, rank, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(q, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both layers as ``torch.nn.Linear`` does: uniformly from ±1/√(channels that come in)."""
        for parameter, width in ((self.down, self.p), (self.up, self.rank), (self.bias, self.rank)):
            if parameter is not None:
                bound = 1 / math.sqrt(width) if width else 0.0
                nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def from_factors(cls, up: Tensor, down: Tensor, bias: Tensor | None = None, **options: Any) -> LowRankStitch:
        """The stitch with copies of ``up`` (q, k), ``down`` (k, p) and ``bias`` (q,), in the dtype of ``up``."""
        shapes = tuple(up.shape), tuple(down.shape), None if bias is None else tuple(bias.shape)
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or shapes[2] not in (None, up.shape[:1]):
            raise ShapeError(f"up must be (q, k), down (k, p) and bias (q,); got {shapes[0]}, {shapes[1]}, {shapes[2]}")
        (q, k), p = up.shape, down.shape[1]
        stitch = cls(p, q, k, bias=bias is not None, device=up.device, dtype=up.dtype, **options)
        with torch.no_grad():
            stitch.up.copy_(up)
            stitch.down.copy_(down)
            if stitch.bias is not None and bias is not None:
                stitch.bias.copy_(bias)
        return stitch

    @property
    def p(self) -> int:  # type: ignore[override]
        return self.down.shape[1]

    @property
    def q(self) -> int:  # type: ignore[override]
        return self.up.shape[0]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def map_channels(self, x: Tensor) -> Tensor:
        return map_densely(map_densely(x, self.down, None), self.up, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, bias={self.bias is not None}"
