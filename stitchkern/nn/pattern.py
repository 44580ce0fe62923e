"""Where the non-zeros of a sparse matrix are, packed once for the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from stitchkern.errors import ShapeError

MOST = 2**31 - 1
#: members of a packed pattern. With its halves exchanged it is that of the transposed matrix.
NAMES = ("crow", "col", "row", "order", "crow_t", "col_t", "row_t", "order_t")


def pack(crow: Tensor, col: Tensor, p: int) -> list[Tensor]:
    """The pattern of a (q, p) matrix in compressed rows, ``crow`` (q + 1,) and ``col`` (nonzeros,), for `ops.spconv`.

    Returns int32 tensors in the order of `NAMES`: rows compressed, the column and row of each entry, the entries in the
    order of columns; then the same of the transposed matrix.

    Raises:
        ShapeError: ``crow`` does not rise from 0 to the number of non-zeros, or the columns of a row are not distinct,
            rising and 0 … p − 1.
    """
    for name, t in (("crow", crow), ("col", col)):
        if t.ndim != 1 or t.is_floating_point() or t.dtype == torch.bool:
            raise ShapeError(f"{name} must be one dimension of whole numbers; got {tuple(t.shape)} of {t.dtype}")
    q, nonzeros = len(crow) - 1, len(col)
    if q < 0 or nonzeros > MOST or p > MOST:
        raise ShapeError(
            f"crow must be (q + 1,), and at most {MOST} non-zeros and channels; got {q + 1}, {nonzeros}, {p}"
        )
    counts = crow.long().diff()
    if int(crow[0]) != 0 or int(crow[-1]) != nonzeros or bool((counts < 0).any()):
        raise ShapeError(f"crow must rise from 0 to the number of non-zeros, {nonzeros}; got {crow.tolist()[:8]} …")
    row = torch.repeat_interleave(torch.arange(q, device=crow.device), counts)
    flat = row * p + col.long()
    if nonzeros and (int(col.min()) < 0 or int(col.max()) >= p or bool((flat.diff() <= 0).any())):
        raise ShapeError(f"col must rise within each row, without repeats, and be 0 … {p - 1}")
    order = torch.sort(col.long(), stable=True).indices
    crow_t = torch.zeros(p + 1, dtype=torch.long, device=crow.device)
    crow_t[1:] = torch.bincount(col.long(), minlength=p).cumsum(0)
    order_t = torch.empty_like(order)
    order_t[order] = torch.arange(nonzeros, device=crow.device)
    members = (crow, col, row, order, crow_t, row[order], col[order], order_t)
    return [t.to(torch.int32).contiguous() for t in members]
