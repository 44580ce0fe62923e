"""What all stitches share: which inputs they take, which channels they map, how they resample."""

from __future__ import annotations

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
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor; got {type(x).__name__}")
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


def map_densely(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight (q, p) x + bias over dimension 1 of x (n, p, h, w), or over the last one of (n, p) and (n, t, p)."""
    if x.ndim != 4:
        return F.linear(x, weight, bias)
    if 0 in weight.shape or 0 in x.shape[2:]:  # convolutions refuse these, or forget the channels
        return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    return F.conv2d(x, weight[:, :, None, None], bias)
