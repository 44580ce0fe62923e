"""How a run goes: optimiser, epochs, batches, and when it stops. The defaults are the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True)
class Schedule:
    """What all stitches of a run share.

    Attributes:
        epochs, batch_size: passes over the data, and samples per step.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"`` (with ``momentum``).
        learning_rate: of the first epoch; times ``decay`` from each of ``milestones``, shares of the epochs, on.
        patience: stop a stitch after so many epochs without a lower loss (on the validation data where there are any);
            None: never.
        shuffle, seed: a new order for every epoch, drawn from the seed and the epoch.
        amp: torch.bfloat16 runs stitch and end under autocast; None as the models are.
        batch_norm: ``"eval"``; ``"train"`` lets the end's BatchNorm take the statistics of each batch. Its running
            statistics come back after the run.
        record_every: steps between entries of the history; None: every epoch.

    Source of the defaults: Csiszárik et al. 2021 (arXiv 2110.14633), section 4 and appendix.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    decay: float = 0.1
    momentum: float = 0.9
    patience: int | None = None
    shuffle: bool = True
    seed: int = 0
    amp: torch.dtype | None = None
    batch_norm: str = "eval"
    record_every: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        if self.batch_norm not in ("eval", "train"):
            raise ValueError(f"batch_norm must be 'eval' or 'train'; got {self.batch_norm!r}")
        if self.amp not in (None, torch.bfloat16):
            raise ValueError(f"amp must be torch.bfloat16, or None; got {self.amp}")
        for name, least in (("epochs", 0), ("batch_size", 1), ("patience", 1), ("record_every", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ValueError(f"learning_rate must be at least 0; got {self.learning_rate}")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"decay must be at least 0; got {self.decay}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {self.momentum}")

    def rate_at(self, epoch: int) -> float:
        """The factor of the learning rate in this epoch, counted from 0."""
        return float(self.decay ** sum(epoch >= max(round(m * self.epochs), 1) for m in self.milestones))

    def order(self, count: int, epoch: int, rank: int = 0) -> Iterator[Tensor]:
        """Which samples each step of this epoch takes."""
        if not self.shuffle:
            return iter(torch.arange(count).split(self.batch_size))
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 4099 + rank) % 2**63)
        return iter(torch.randperm(count, generator=generator).split(self.batch_size))

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of these parameter groups."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.learning_rate)
