"""Weights for :func:`stitchkern.reweighted_least_squares`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (n, p), y (n, q), residual (n, q)), float64 -> weights (n,), or (n, q) with one for each target of each row."""


@dataclass(frozen=True)
class Weighting:
    """A rule with a name. `needs_fit`: False where it ignores the residual, so that one pass over the data will do."""

    name: str
    rule: Rule
    needs_fit: bool

    def __call__(self, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        return self.rule(x, y, residual)


def power(n: float) -> Weighting:
    """|y|ⁿ for each entry of the target: large activations count more (Csiszárik et al. 2021, appendix B: Bⁿ)."""
    return Weighting(f"power({n:g})", lambda x, y, residual: y.abs().pow(n), needs_fit=False)


def threshold(at: float = 0.0, *, below: float = 0.0) -> Weighting:
    """1 where y > ``at``, otherwise ``below``, entry by entry: what a ReLU after the layer lets through."""
    return Weighting(
        f"threshold({at:g})", lambda x, y, residual: torch.where(y > at, 1.0, float(below)).double(), needs_fit=False
    )


def huber(width: float) -> Weighting:
    """min(1, width / ‖residual‖) per row: quadratic for small residuals, linear beyond ``width`` (in units of y)."""

    def rule(x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        size = residual.square().sum(1).sqrt()
        return torch.where(size > width, width / size, 1.0)

    return Weighting(f"huber({width:g})", rule, needs_fit=True)


def cauchy(width: float) -> Weighting:
    """1 / (1 + ‖residual‖² / width²) per row: far residuals hardly count."""
    return Weighting(
        f"cauchy({width:g})", lambda x, y, residual: 1 / (1 + residual.square().sum(1) / width**2), needs_fit=True
    )
