"""Proximal steps: what a penalty that is not smooth does to weights after a gradient step, with exact zeros."""

from __future__ import annotations

import torch
from torch import Tensor

#: steps for the norm of a group; where its thresholds differ by less than a hundredfold, six give all digits
_NEWTON = 10


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    r"""The proximal step of the L1 norm: what is within the threshold becomes exactly zero.

    .. math:: \arg\min_v \sum_i \frac{(v_i-w_i)^2}{2 t_i} + |v_i| = \operatorname{sign}(w_i)\max(|w_i|-t_i, 0)

    Args:
        weight: any shape.
        threshold: t ≥ 0, a number or a tensor that broadcasts: the step length times the penalty's weight. Where each
            weight has a step length of its own (Adam), so has its threshold.
    """
    return weight.sign() * (weight.abs() - threshold).clamp(min=0)


def group_soft_threshold(weight: Tensor, threshold: Tensor | float, dim: int = 0) -> Tensor:
    r"""The proximal step of Σ_g ‖w_g‖₂: groups, which run along ``dim``, shrink together or become exactly zero.

    .. math:: \arg\min_v \sum_i \frac{(v_i-w_i)^2}{2 t_i} + \|v\|_2, \qquad
              v_i = \frac{w_i}{1+t_i/r},\quad r = \|v\|_2:\ \sum_i \frac{w_i^2}{(r+t_i)^2} = 1

    and v = 0 where Σ (wᵢ/tᵢ)² ≤ 1. With one t for the group this is w · max(1 − t/‖w‖, 0).

    Args:
        weight: any shape; for maps (q, p), dim=0 takes the weights of one input channel as a group.
        threshold: as for `soft_threshold`.
    """
    t = torch.as_tensor(threshold, dtype=weight.dtype, device=weight.device).expand_as(weight)
    size = weight.abs().amax(dim, keepdim=True)
    unit = torch.where(size > 0, size, 1.0)
    w = weight / unit  # so that no square leaves the range
    t = (t / unit).clamp(min=torch.finfo(weight.dtype).tiny)
    alive = (w / t).square().sum(dim, keepdim=True) > 1
    # r starts below the root, ‖w‖ less the largest threshold, and rises to it
    r = (w.square().sum(dim, keepdim=True).sqrt() - t.amax(dim, keepdim=True)).clamp(min=0.0)
    for _ in range(_NEWTON):  # on 1/√f = 1, f = Σ w²/(r + t)²: nearly linear in r
        below = r + t
        terms = (w / below).square()
        f = terms.sum(dim, keepdim=True)
        r = torch.where(alive, r + (f.sqrt() - 1) * f / (terms / below).sum(dim, keepdim=True), 0.0)
    return torch.where(alive, weight * (r / (r + t)), 0.0)
