"""The rank and the condition of a stitch: how much of the front's representation it lets through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError
from stitchkern.nn import ChannelMap, LowRankStitch
from stitchkern.solvers import AffineMap


@dataclass(frozen=True)
class Spectrum:
    """Of the weight W (q, p) of a stitch.

    Attributes:
        singular_values: (min(p, q),) descending, float64.
        rank: how many of them are above max(p, q)·ε of the largest, ε of the type that W is kept in.
        condition: largest / smallest; infinite where the rank is below min(p, q).
        effective_rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 where W = 0.
    """

    singular_values: Tensor
    rank: int
    condition: float
    effective_rank: float


def spectrum(stitch: ChannelMap | AffineMap) -> Spectrum:
    """Rank, condition and singular values of a stitch or of an affine map.

    Raises:
        TypeError: something without a weight (q, p). NotFiniteError: the weight holds NaN or Inf.
    """
    found: Any = stitch.up @ stitch.down if isinstance(stitch, LowRankStitch) else getattr(stitch, "weight", None)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise TypeError(f"stitch must be a stitch or one affine map, with a weight (q, p); got {type(stitch).__name__}")
    weight = found.detach()
    if not bool(weight.isfinite().all()):
        raise NotFiniteError("the weight of the stitch holds NaN or Inf")
    s = torch.linalg.svdvals(weight.double())
    largest = float(s[0]) if len(s) else 0.0
    rank = int((s > max(weight.shape) * torch.finfo(weight.dtype).eps * largest).sum())
    share = s[s > 0] / s.sum() if largest > 0 else s[:0]
    return Spectrum(
        singular_values=s,
        rank=rank,
        condition=largest / float(s[-1]) if len(s) and rank == len(s) else math.inf,
        effective_rank=math.exp(-float((share * share.log()).sum())) if len(share) else 0.0,
    )
