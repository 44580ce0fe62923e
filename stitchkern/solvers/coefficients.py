"""The coefficients of a path of sparse maps, without their zeros where that is less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: numbers of a path that is kept as it is
_LONG = 1 << 23


@dataclass(frozen=True)
class _Rows:
    """Compressed rows: those of one map after the other."""

    starts: Tensor
    columns: Tensor
    values: Tensor


class Coefficients:
    """Maps (a, q, p), stored by blocks of α and targets as they are found.

    Of a long path, a block that is more than half zeros keeps the values and columns of the others, 12 bytes each.
    """

    def __init__(self, a: int, q: int, p: int) -> None:
        self.q, self.p, self._long = q, p, a * q * p > _LONG
        self._blocks: list[tuple[slice, slice, Tensor | _Rows]] = []

    def add(self, alphas: slice, targets: slice, block: Tensor) -> None:
        """Maps (a, b, p) of these α and targets."""
        at = block.nonzero() if self._long else None
        if at is None or 2 * len(at) >= block.numel():
            self._blocks.append((alphas, targets, block))
            return
        counts = (block != 0).sum(-1).flatten()
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._blocks.append((alphas, targets, _Rows(starts, at[:, 2].int(), block[at[:, 0], at[:, 1], at[:, 2]])))

    def __getitem__(self, index: int) -> Tensor:
        """The map (q, p) of one α."""
        parts = []
        for alphas, targets, block in self._blocks:
            if not alphas.start <= index < alphas.stop:
                continue
            i, count = index - alphas.start, min(targets.stop, self.q) - targets.start
            if isinstance(block, Tensor):
                parts.append(block[i])
                continue
            starts = block.starts[i * count : (i + 1) * count + 1]
            rows = torch.repeat_interleave(torch.arange(count, device=starts.device), starts.diff())
            part = block.values.new_zeros(count, self.p)
            kept = slice(int(starts[0]), int(starts[-1]))
            part[rows, block.columns[kept].long()] = block.values[kept]
            parts.append(part)
        return torch.cat(parts)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(
            b.nbytes if isinstance(b, Tensor) else b.starts.nbytes + b.columns.nbytes + b.values.nbytes
            for *_, b in self._blocks
        )
