"""The stitch: an affine map over the channels, dense or through a bottleneck, as a module between two networks."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stitchkern.errors import ShapeError

RESIZE_MODES = ("bilinear", "nearest")


def resize_to(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resample ``x`` (n, c, h, w) to ``size`` positions; ``x`` itself where it already has that size.

    ``mode`` is ``"bilinear"`` (corners not aligned, no antialiasing) or ``"nearest"``, as in
    ``torch.nn.functional.interpolate``.
    """
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode=mode)


def check_resize(resize: str | None) -> None:
    """Raise ``ValueError`` unless ``resize`` is None or one of `RESIZE_MODES`."""
    if resize is not None and resize not in RESIZE_MODES:
        raise ValueError(f"resize must be None or one of {', '.join(RESIZE_MODES)}; got {resize!r}")


class ChannelMap(nn.Module):
    """What all stitches share: a map over channels, the same at every position or token, that only reads its input.

    A 4-D input (n, p, h, w) becomes (n, q, h, w); (n, p) and (n, t, p) are mapped over the last dimension. ``size`` is
    the spatial size (h, w) that the next layer expects, ``resize`` how to get there; see :class:`Stitch`.
    """

    p: int
    q: int

    def __init__(self, size: tuple[int, int] | None, resize: str | None) -> None:
        super().__init__()
        check_resize(resize)
        if resize is not None and size is None:
            raise ValueError(f"resize={resize!r} needs size=(h, w), the spatial size to resample to")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.resize = resize

    def map_channels(self, x: Tensor) -> Tensor:
        """x (n, p, h, w), (n, t, p) or (n, p) -> the same with q channels."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in (2, 3, 4):
            raise ShapeError(f"x must be (n, c), (n, t, c) or (n, c, h, w); got {tuple(x.shape)}")
        dim = 1 if x.ndim == 4 else -1
        if x.shape[dim] != self.p:
            raise ShapeError(
                f"the stitch expects {self.p} channels in dimension {dim}; got {x.shape[dim]} in {tuple(x.shape)}"
            )
        if self.size is not None:
            x = self._fit(x, self.size)
        return self.map_channels(x)

    def _fit(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.ndim != 4:
            raise ShapeError(f"the stitch expects (n, {self.p}, {size[0]}, {size[1]}); got {tuple(x.shape)}")
        if self.resize is not None:
            return resize_to(x, size, self.resize)
        if x.shape[-2:] != size:
            raise ShapeError(
                f"the stitch expects spatial size {size[0]}×{size[1]}; x has {x.shape[-2]}×{x.shape[-1]}. "
                f"Pass resize='bilinear' or resize='nearest' to resample x first"
            )
        return x

    def extra_repr(self) -> str:
        resize = f", size={self.size}, resize={self.resize!r}" if self.size else ""
        return f"{self.p}, {self.q}{resize}"


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias) if x.ndim == 4 else F.linear(x, weight, bias)


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
        return _apply(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}"


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
        return _apply(_apply(x, self.down, None), self.up, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, bias={self.bias is not None}"
