"""Lasso problems as the native op takes them: in ranges that cannot overflow, a block of targets at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.errors import NotFiniteError, ShapeError
from stitchkern.statistics import Statistics

#: coefficients of one call at most
_NUMBERS = 1 << 23
#: penalties on the way to one, at most
_HALVINGS = 10
_SWEEPS = ops.LASSO_SCORES.index("sweeps")


@dataclass(frozen=True)
class Penalty:
    """What is the same for every α of a path."""

    l1_ratio: float
    positive: bool
    grouped: bool
    tol: float
    max_sweeps: int


@dataclass(frozen=True)
class Block:
    """Of some targets and some α: coefficients (a, b, p) in the units of x and y, and scores (a, b, 7)."""

    alphas: slice
    targets: slice
    coefficients: Tensor
    score: Tensor


class LassoProblem:
    """All targets of one problem, x and y divided by powers of two: x by one, each target by its own (grouped: one)."""

    def __init__(self, stats: Statistics, penalty: Penalty) -> None:
        if stats.batch:
            raise ShapeError(
                f"a Lasso path is of one problem; these statistics have the batch dimensions {tuple(stats.batch)}: "
                "take one of them, statistics[i]"
            )
        for name in ("cov_xx", "cov_xy", "cov_yy", "mean_x", "mean_y"):
            if not bool(getattr(stats, name).isfinite().all()):
                raise NotFiniteError(f"{name} holds NaN or Inf")
        self.penalty = penalty
        energy = stats.cov_yy.diagonal()
        self.unit_x = _unit(stats.cov_xx.diagonal().amax().reshape(1))
        self.unit_y = _unit(energy.amax().expand(stats.q) if penalty.grouped else energy)
        self.gram = (stats.cov_xx / self.unit_x / self.unit_x).contiguous()
        self.cross = stats.cov_xy / self.unit_x / self.unit_y
        self.energy = energy / self.unit_y / self.unit_y

    def largest(self) -> Tensor:
        """(q,) the smallest α from which on each target's coefficients (grouped: all of them) are 0."""
        cross = self.cross.clamp(min=0.0) if self.penalty.positive else self.cross.abs()
        most = _lengths(cross).amax().expand(cross.shape[1]) if self.penalty.grouped else cross.amax(0)
        return most * self.unit_x * self.unit_y / self.penalty.l1_ratio

    def approach(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """Where to start for α (q,): the optima (q, p) of about 2 α, found by way of 4 α and so on; steps (q,) of each.

        Few features come and go between one and the next, where thousands may on the way from 0 at once.
        """
        found, steps = self.cross.new_zeros(self.cross.shape[::-1]), self.cross.new_zeros(len(alphas))
        if self.penalty.l1_ratio == 0:  # nothing comes or goes
            return found, steps
        high = self.largest().maximum(alphas)
        ratio = torch.where(high > 0, alphas.maximum(high * 2.0**-_HALVINGS) / high, 1.0)
        count = int((-ratio.amin().log2()).ceil())
        if count < 2:
            return found, steps
        share = torch.arange(1, count, dtype=torch.float64, device=ratio.device)[:, None] / count
        for block in self.solve(high * ratio**share):
            found[block.targets] = block.coefficients[-1]
            steps[block.targets] += block.score[..., _SWEEPS].sum(0)
        return found, steps

    def solve(self, alphas: Tensor, start: Tensor | None = None) -> Iterator[Block]:
        """The optima for α (a, q), each target's from large to small, block by block.

        Grouped, a block has all targets and some α; otherwise all α and some targets. ``start`` (q, p).
        """
        (p, q), a, options = self.cross.shape, len(alphas), self.penalty
        l1 = alphas * options.l1_ratio / self.unit_x / self.unit_y
        l2 = alphas * (1 - options.l1_ratio) / self.unit_x / self.unit_x
        first = self.cross.new_zeros(q, p) if start is None else start * self.unit_x / self.unit_y[:, None]
        if options.grouped:
            step = max(1, _NUMBERS // (p * q))
            parts = [(slice(i, i + step), slice(0, q)) for i in range(0, a, step)]
        else:
            step = max(32, _NUMBERS // (max(a, 1) * p))
            parts = [(slice(0, a), slice(k, k + step)) for k in range(0, q, step)]
        for rows, targets in parts:
            found, score = ops.lasso_path(
                self.gram,
                self.cross[:, targets].contiguous(),
                self.energy[targets].contiguous(),
                l1[rows, targets].contiguous(),
                l2[rows, targets].contiguous(),
                first[targets].contiguous(),
                options.positive,
                options.grouped,
                options.tol,
                options.max_sweeps,
            )
            if options.grouped:
                first = found[-1]
            yield Block(rows, targets, found * (self.unit_y[targets, None] / self.unit_x), score)


def numbers(name: str, given: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """As float64 without a graph. Raises TypeError for what is no numbers."""
    try:
        if not isinstance(given, Tensor):
            given = torch.from_numpy(np.array(given, order="C"))
        if given.is_complex():
            raise TypeError("they are complex")
        return given.detach().to(device, torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers; got {given!r}: {error}") from None


def _lengths(rows: Tensor) -> Tensor:
    return rows.square().sum(1).sqrt()


def _unit(variance: Tensor) -> Tensor:
    """The power of two next to the deviation; 1 where there is none."""
    exponent = torch.frexp(variance)[1].clamp(-2000, 2000)
    return torch.where(
        variance > 0, torch.ldexp(torch.ones_like(variance), torch.div(exponent, 2, rounding_mode="floor")), 1.0
    )
