"""Weights for :func:`stitchkern.reweighted_least_squares`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (n, p), y (n, q), residual (n, q)), float64 -> weights (n,), or (n, q) with one for each target of each row."""


def power(n: float) -> Weighting:
    """|y|ⁿ for each entry of the target: large activations count more (Csiszárik et al. 2021, appendix B: Bⁿ)."""
    return lambda x, y, residual: y.abs().pow(n)


def threshold(at: float = 0.0, *, below: float = 0.0) -> Weighting:
    """1 where y > ``at``, otherwise ``below``, entry by entry: what a ReLU after the layer lets through."""
    return lambda x, y, residual: torch.where(y > at, 1.0, float(below))


def huber(width: float) -> Weighting:
    """min(1, width / ‖residual‖) per row: quadratic for small residuals, linear beyond ``width`` (in units of y)."""
    return lambda x, y, residual: (width / residual.norm(dim=1).clamp(min=1e-300)).clamp(max=1.0)


def cauchy(width: float) -> Weighting:
    """1 / (1 + ‖residual‖² / width²) per row."""
    return lambda x, y, residual: 1 / (1 + residual.square().sum(1) / width**2)
