"""Weights for :func:`stitchkern.reweighted_least_squares`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

    def __repr__(self) -> str:
        return self.name


def power(n: float) -> Weighting:
    """|y|ⁿ for each entry of the target, n ≥ 0: large activations count more (Csiszárik et al. 2021, appendix B)."""
    return Weighting(f"power({_number('n', n, 0):g})", partial(_power, n), needs_fit=False)


def threshold(at: float = 0.0, *, below: float = 0.0) -> Weighting:
    """1 where y > ``at``, otherwise ``below`` ≥ 0, entry by entry: what a ReLU after the layer lets through."""
    name = f"threshold({_number('at', at, -math.inf):g}, below={_number('below', below, 0):g})"
    return Weighting(name, partial(_threshold, at, below), needs_fit=False)


def huber(width: float) -> Weighting:
    """min(1, width / ‖residual‖) per row: quadratic for small ones, linear beyond ``width`` > 0, in units of y."""
    return Weighting(f"huber({_number('width', width, 1e-300):g})", partial(_huber, width), needs_fit=True)


def cauchy(width: float) -> Weighting:
    """1 / (1 + ‖residual‖² / width²) per row, ``width`` > 0: far residuals hardly count."""
    return Weighting(f"cauchy({_number('width', width, 1e-300):g})", partial(_cauchy, width), needs_fit=True)


#: the functions that make rules, which are no rules themselves
RULES = (power, threshold, huber, cauchy)


def _power(n: float, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
    return y.abs().pow(n)


def _threshold(at: float, below: float, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
    return torch.where(y > at, 1.0, float(below)).double()


def _huber(width: float, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
    size = residual.square().sum(1).sqrt()
    return torch.where(size > width, width / size, 1.0)


def _cauchy(width: float, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
    return 1 / (1 + residual.square().sum(1) / width**2)


def _number(name: str, value: float, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least {least:g}; got {value!r}")
    return value
