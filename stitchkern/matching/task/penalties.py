"""L1 penalties by proximal steps, in the optimiser's own metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.structure import Trainee
from stitchkern.solvers.proximal import group_soft_threshold, soft_threshold


@torch.no_grad()
def decay_to_zero(optimizer: torch.optim.Optimizer, group: int, one: Trainee, config: TaskConfig) -> None:
    """The proximal step of λ Σ|W| or λ Σ‖W_:j‖₂ that follows the gradient step of ``one``, parameter group ``group``.

    Its length is that of the gradient step, weight by weight: lr/(√v̂ + ε) of Adam, lr/(1 − momentum) of SGD. Only then
    does the run settle where loss plus penalty is least; with lr alone, Adam's steps would outweigh the penalty where
    gradients are small.
    """
    strength = config.l1 or config.group_l1
    if not strength:
        return
    weight: Any = one.module.weight
    if config.l1 and config.l1_mean:
        strength /= weight.numel()
    threshold = strength * _step_length(optimizer, optimizer.param_groups[group], weight)
    weight.copy_((soft_threshold if config.l1 else group_soft_threshold)(weight, threshold))


def _step_length(optimizer: torch.optim.Optimizer, group: dict[str, Any], weight: Tensor) -> Tensor:
    lr = group["lr"]
    state = optimizer.state[weight]
    if "exp_avg_sq" not in state:
        return torch.as_tensor(lr / (1 - group.get("momentum", 0.0)), dtype=weight.dtype, device=weight.device)
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return lr / (corrected.sqrt() + group["eps"])
