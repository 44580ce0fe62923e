"""Batches of activations as rows of channels: views that are never copies, with checks that name the argument."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stitchkern.errors import ShapeError


def batch_views(
    x: Tensor, y: Tensor | None, weight: Tensor | None, p: int, q: int | None, channel_dim: int | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x (n, h, w, p), y (n, h, w, q) and weight (n, h, w) float64 of one batch; see :meth:`Moments.update`."""
    x4 = rows_view("x", x, p, channel_dim)
    if (y is None) != (q is None):
        raise ValueError(
            "y is missing: these moments are two-sided (q was given)"
            if y is None
            else "y was given, but these moments are one-sided: construct Moments(p, q)"
        )
    y4 = None
    if y is not None and q is not None:
        y4 = rows_view("y", y, q, channel_dim)
        _check_same(x, y, x4, y4)
    w3 = None if weight is None else weight_view(weight, x, x4, channel_dim)
    for name, t in (("y", y4), ("weight", w3)):
        if t is not None and t.device != x4.device:
            raise ValueError(f"x and {name} must be on one device; got {x4.device} and {t.device}")
    if x4.device.type not in ("cpu", "cuda"):
        raise ValueError(f"x must be on a CPU or a CUDA device; got {x4.device}")
    return x4, y4, w3


def pieces(x4: Tensor, rows: int = 4096) -> Iterator[slice]:
    """Samples of a batch (n, h, w, c), about so many rows at a time, for work that needs a float64 copy."""
    step = max(1, rows // max(1, x4.shape[1] * x4.shape[2]))
    for start in range(0, len(x4), step):
        yield slice(start, start + step)


def rows_view(name: str, x: Tensor, channels: int, channel_dim: int | None) -> Tensor:
    """(n, …) with channels somewhere -> a (n, h, w, c) view, never a copy."""
    if not isinstance(x, Tensor):
        hint = f": torch.from_numpy({name}) shares its memory" if type(x).__name__ == "ndarray" else ""
        raise TypeError(f"{name} must be a torch tensor; got {type(x).__name__}{hint}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"{name} must be a dense tensor; got layout {'nested' if x.is_nested else x.layout}")
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16; got {x.dtype}")
    if x.ndim < 2:
        raise ShapeError(f"{name} must be (n, c), (n, t, c) or (n, c, h, w); got {tuple(x.shape)}")
    dim = (1 if x.ndim == 4 else -1) if channel_dim is None else channel_dim
    if not -x.ndim < dim < x.ndim or dim == 0:
        raise ShapeError(f"channel_dim must name a dimension of {name} {tuple(x.shape)} after the first; got {dim}")
    if x.shape[dim] != channels:
        raise ShapeError(
            f"{name} must have {channels} channels in dimension {dim}; got {x.shape[dim]} in {tuple(x.shape)}"
        )
    x = x.detach().movedim(dim, -1)
    if x.ndim > 4:
        try:
            return x.view(x.shape[0], x.shape[1:-2].numel(), *x.shape[-2:])
        except RuntimeError as e:
            raise ShapeError(
                f"{name} {tuple(x.shape)} cannot be viewed as rows of channels; use fewer dimensions"
            ) from e
    while x.ndim < 4:
        x = x.unsqueeze(1)
    return x


def _check_same(x: Tensor, y: Tensor, x4: Tensor, y4: Tensor) -> None:
    if x4.shape[0] != y4.shape[0]:
        raise ShapeError(f"x and y must hold the same samples; got {x4.shape[0]} and {y4.shape[0]}")
    # tokens may stand beside the pixels they were made of: (n, h·w, c) and (n, c, h, w)
    same = x4.shape[1:3] == y4.shape[1:3] if x.ndim == y.ndim else x4.shape[1:3].numel() == y4.shape[1:3].numel()
    if not same:
        raise ShapeError(f"x and y must have the same positions; got shapes {tuple(x.shape)} and {tuple(y.shape)}")


def weight_view(weight: Tensor, x: Tensor, x4: Tensor, channel_dim: int | None) -> Tensor:
    """(n,) or one per row, in x's layout without its channels -> (n, h, w) float64, broadcast without a copy of x."""
    if not isinstance(weight, Tensor) or weight.is_complex():
        raise TypeError("weight must be a real torch tensor")
    n = x4.shape[0]
    dim = ((1 if x.ndim == 4 else -1) if channel_dim is None else channel_dim) % x.ndim
    rows = (*x.shape[:dim], *x.shape[dim + 1 :])
    if weight.shape not in ((n,), rows):
        raise ShapeError(f"weight must be (n,) = ({n},) or one per row {rows}; got {tuple(weight.shape)}")
    weight = weight.detach().double()
    return weight.reshape(x4.shape[:3]) if weight.shape == rows else weight[:, None, None].expand(x4.shape[:3])
