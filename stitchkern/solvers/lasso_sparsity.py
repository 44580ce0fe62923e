"""Penalties for wanted shares of zeros, by bisection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stitchkern.solvers.lasso_problem import LassoProblem, numbers

_ROUNDS = 40
#: α that differ by less are one
_CLOSE = 1e-9


def alphas_of(problem: LassoProblem, grid: Tensor, sparsity: Sequence[float]) -> Tensor:
    """α (s,), descending, whose maps have these shares of zeros, or the nearest met; ``grid`` (a, q) brackets.

    Raises:
        ValueError: no share, or one outside 0 … 1. TypeError: no numbers.
    """
    wanted = numbers("sparsity", sparsity, grid.device).reshape(-1)
    if not len(wanted) or not bool(((wanted >= 0) & (wanted <= 1)).all()):
        raise ValueError(f"sparsity must be shares of zeros in 0 … 1, at least one; got {sparsity}")
    p, q = problem.cross.shape
    wanted = wanted.sort(descending=True).values
    tried, found = grid[:, 0], _sparsity(problem, grid)
    best, low, high = tried[-1:].expand(len(wanted)).clone(), torch.zeros_like(wanted), torch.zeros_like(wanted)
    off = torch.full_like(wanted, torch.inf)
    open_ = torch.ones_like(wanted, dtype=torch.bool)
    for _ in range(_ROUNDS):
        for i in range(len(wanted)):  # the bracket, and the best so far, from all that was tried
            error = (found - wanted[i]).abs()
            nearest = int(error.argmin())
            best[i], off[i] = tried[nearest], error[nearest]
            above = tried[found >= wanted[i]]
            high[i] = above.min() if len(above) else tried.max()
            below = tried[(tried < high[i]) & (found < wanted[i])]
            low[i] = below.max() if len(below) else 0.0
        open_ = (off > 0.5 / (p * q)) & (high - low > _CLOSE * high) & (high > 1e-12 * tried.max())
        if not bool(open_.any()):
            break
        middle = torch.where(low > 0, (low * high).sqrt(), high / 16)[open_].unique().flip(0)
        tried = torch.cat([tried, middle])
        found = torch.cat([found, _sparsity(problem, middle[:, None].expand(-1, q))])
    return best


def _sparsity(problem: LassoProblem, grid: Tensor) -> Tensor:
    p, q = problem.cross.shape
    nonzero = grid.new_zeros(len(grid))
    for block in problem.solve(grid):
        nonzero[block.alphas] += block.score[..., -1].sum(1)
    return 1 - nonzero / (p * q)
