"""What the stitched network should say, and how far from it it is: one number for each of several stitches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stitchkern.matching.task.config import TaskConfig


def wanted_outputs(config: TaskConfig, fields: Mapping[str, Tensor]) -> Tensor:
    r"""The targets of one batch: (n,) labels, or probabilities (n, classes).

    Soft targets are :math:`\sigma(z/T)` of the logits z of the end, of the front, of both averaged, or of the mean of
    both logits, with σ the softmax (the logistic function for several labels per sample).
    """
    if config.target == "hard":
        return fields["labels"]
    squash = torch.sigmoid if config.loss == "binary" else _softmax
    if config.target == "soft_mean":
        ours, theirs = (squash(_wide(fields[side]) / config.temperature) for side in ("end", "front"))
        return (ours + theirs) / 2
    logits = {
        "soft": lambda: _wide(fields["end"]),
        "soft_front": lambda: _wide(fields["front"]),
        "soft_mean_logits": lambda: (_wide(fields["end"]) + _wide(fields["front"])) / 2,
    }[config.target]()
    return squash(logits / config.temperature)


def output_losses(config: TaskConfig, logits: Tensor, wanted: Tensor) -> Tensor:
    r"""(k,) mean losses of logits z (n, k, classes) beside ``wanted``.

    .. math::
        -\sum_c t_c \log\mathrm{softmax}(z/T)_c\ \text{(cross-entropy)},\quad
        \sum_c t_c \log\frac{t_c}{\mathrm{softmax}(z/T)_c}\ \text{(KL)},\quad
        -\tfrac1C \sum_c t_c\log\sigma(z_c/T) + (1-t_c)\log\sigma(-z_c/T)\ \text{(binary)}

    each times T².
    """
    z = _wide(logits) / config.temperature
    square = config.temperature**2
    if config.loss == "binary":
        each = F.binary_cross_entropy_with_logits(z, wanted.to(z)[:, None].expand_as(z), reduction="none")
        return each.mean((0, 2)) * square
    log_p = z.log_softmax(-1)
    if config.target == "hard":
        return -log_p.gather(-1, wanted[:, None, None].expand(-1, log_p.shape[1], 1))[..., 0].mean(0)
    target = wanted.to(z)
    loss = -torch.einsum("nc,nkc->k", target, log_p) / len(z)
    if config.loss == "kl":
        loss = loss + torch.xlogy(target, target).sum(-1).mean()
    return loss * square


def latent_losses(stitched: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    r"""Functional latent alignment: (k,) means over layers of :math:`\|a - b\|_F / \|b\|_F`, norms over the batch.

    Args:
        stitched: of each layer a (n, k, …), what the stitched networks have there.
        own: of each layer b (n, …), what the end itself has. Layers where b is all zero do not count.
    """
    total = torch.zeros(stitched[0].shape[1], device=stitched[0].device)
    counted = torch.zeros((), device=total.device)
    for a, b in zip(stitched, own, strict=True):
        far = _norm(_wide(a) - _wide(b)[:, None], 1)
        size = _wide(b).square().sum().sqrt()
        alive = size > 0
        total = total + torch.where(alive, far / torch.where(alive, size, 1.0), torch.zeros_like(far))
        counted = counted + alive
    return total / counted.clamp(min=1)


def hint_losses(stitched: Tensor, own: Tensor) -> Tensor:
    """(k,) mean squares of a − b at the stitched layer alone: a (n, k, …), b (n, …)."""
    apart = (_wide(stitched) - _wide(own)[:, None]).square()
    return apart.transpose(0, 1).flatten(1).mean(1)


def hits(config: TaskConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """(k,) share of what logits (n, k, classes) get right; of single labels where a sample has several."""
    if config.loss == "binary":
        return ((logits > 0) == (labels > 0.5)[:, None]).float().mean((0, 2))
    return (logits.argmax(-1) == labels[:, None]).float().mean(0)


def chance(config: TaskConfig, classes: int) -> float:
    """The loss of knowing nothing; 1 for targets that are no outputs (relative distances)."""
    if not config.of_classes:
        return 1.0
    return config.temperature**2 * (math.log(2) if config.loss == "binary" else math.log(max(classes, 2)))


def _softmax(z: Tensor) -> Tensor:
    return z.softmax(-1)


def _wide(t: Tensor) -> Tensor:
    """float32 at least: losses are sums."""
    return t if t.dtype == torch.float64 else t.float()


def _norm(t: Tensor, keep: int) -> Tensor:
    """Over all dimensions but one; its gradient at 0 is 0."""
    square = t.transpose(0, keep).flatten(1).square().sum(1)
    alive = square > 0
    return torch.where(alive, torch.where(alive, square, 1.0).sqrt(), torch.zeros_like(square))
