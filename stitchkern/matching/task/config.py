"""What is asked of one stitch: its start, target, penalties and structure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from stitchkern.solvers import AffineMap

INITS = ("least_squares", "random", "identity", "random_permutation", "procrustes", "permutation")
TARGETS = ("soft", "soft_front", "soft_mean", "soft_mean_logits", "hard", "latent", "hint")
LOSSES = ("cross_entropy", "kl", "binary")
MASKS = ("correlation", "absolute", "permutation")


@dataclass(frozen=True)
class TaskConfig:
    r"""One stitch to be trained; see :func:`stitchkern.match_task` for what the words mean.

    Attributes:
        init: the start: a name of `INITS`, or a map: an :class:`stitchkern.AffineMap`, a stitch, or (weight, bias).
        target: what the stitched network should say: `TARGETS`.
        loss: for targets over classes: ``"cross_entropy"``, ``"kl"``, or ``"binary"`` (several labels per sample).
        temperature: T of soft targets; the loss is multiplied by T², which keeps the gradients' size (Hinton et al.
            2015).
        target_layers: for ``"latent"``, the layers of the end beside the stitched one; None: all that follow it.
        l1, l1_mean: weight λ of the penalty λ Σ|W_ij|; of λ mean|W_ij| where ``l1_mean``. By a proximal step: what it
            sets to zero is exactly zero. The bias is not penalised.
        group_l1: weight of Σ_j ‖W_:j‖₂, which drops whole channels of the front.
        cka: weight c of the penalty c·CKA(W x, y), linear, over all samples and positions; negative to raise CKA.
        weight_decay: as torch.optim takes it.
        rank: train through a bottleneck of so many channels.
        orthogonal: keep W orthogonal (semi-orthogonal where p ≠ q), by torch's parametrization.
        mask: (q, p) bool, the weights that there are; or for each channel of the end the one of the front that
            correlates most with it (``"correlation"``), with either sign (``"absolute"``), or one to one
            (``"permutation"``).
        learning_rate: of this stitch; None: the run's.
        seed: of random starts.
        layer: a name that both networks have, or (front layer, end layer); None: that of the run.
        front, end: by number, which of the run's fronts and ends.
        name: what to call it.
    """

    init: str | AffineMap | nn.Module | tuple[Tensor, Tensor | None] = "least_squares"
    target: str = "soft"
    loss: str = "cross_entropy"
    temperature: float = 1.0
    target_layers: tuple[str, ...] | None = None
    l1: float = 0.0
    l1_mean: bool = False
    group_l1: float = 0.0
    cka: float = 0.0
    weight_decay: float = 0.0
    rank: int | None = None
    orthogonal: bool = False
    mask: str | Tensor | None = None
    learning_rate: float | None = None
    seed: int = 0
    layer: str | tuple[str, str] | None = None
    front: int = 0
    end: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.init, str):
            _among("init", self.init, INITS)
        if isinstance(self.mask, str):
            _among("mask", self.mask, MASKS)
        elif self.mask is not None and not isinstance(self.mask, Tensor):
            raise TypeError(f"mask must be a name or a (q, p) bool tensor; got {type(self.mask).__name__}")
        _among("target", self.target, TARGETS)
        _among("loss", self.loss, LOSSES)
        for what in ("l1", "group_l1", "weight_decay"):
            _number(what, getattr(self, what), 0.0, "at least 0")
        _number("cka", self.cka, -math.inf, "finite")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be positive; got {self.temperature}")
        if self.learning_rate is not None:
            _number("learning_rate", self.learning_rate, 0.0, "at least 0")
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"rank must be a positive integer, or None; got {self.rank!r}")
        for what in ("front", "end"):
            if isinstance(getattr(self, what), bool) or not isinstance(getattr(self, what), int):
                raise TypeError(f"{what} must be a number of one of the run's {what}s; got {getattr(self, what)!r}")
        if self.target_layers is not None:
            if self.target != "latent":
                raise ValueError(f"target_layers are for target='latent'; got target={self.target!r}")
            if isinstance(self.target_layers, str) or not isinstance(self.target_layers, Iterable):
                raise TypeError(f"target_layers must be a list of names; got {self.target_layers!r}")
            object.__setattr__(self, "target_layers", tuple(self.target_layers))
        if self.target in ("hard", "latent", "hint"):
            if self.temperature != 1:
                raise ValueError(f"temperature is for soft targets; target={self.target!r} takes none")
            if self.loss != "cross_entropy" and not (self.target == "hard" and self.loss == "binary"):
                raise ValueError(f"loss={self.loss!r} is for soft targets; got target={self.target!r}")
        if self.loss == "binary" and self.target == "soft_mean_logits" and self.temperature != 1:
            raise ValueError("temperature with loss='binary' is for target='soft', 'soft_front' and 'soft_mean'")
        asked = {"rank": self.rank is not None, "orthogonal": self.orthogonal, "mask": self.mask is not None}
        shapes = [name for name, there in asked.items() if there]
        if len(shapes) > 1:
            raise ValueError(f"a stitch has one structure; got {' and '.join(shapes)}")
        if shapes and shapes[0] != "mask" and (self.l1 or self.group_l1):
            raise ValueError(f"l1 and group_l1 are for single weights, which {shapes[0]} does not leave free")
        if self.l1 and self.group_l1:
            raise ValueError("give l1 or group_l1, not both")

    @property
    def of_classes(self) -> bool:
        """Whether the loss looks at the outputs."""
        return self.target not in ("latent", "hint")


def as_config(config: TaskConfig | Mapping[str, Any]) -> TaskConfig:
    """A config, or one from a mapping of its attributes; TypeError names an attribute that it does not have."""
    if isinstance(config, TaskConfig):
        return replace(config)
    if not isinstance(config, Mapping):
        raise TypeError(f"a stitch takes a TaskConfig or a mapping of its attributes; got {config!r}")
    known = [f.name for f in fields(TaskConfig)]
    if unknown := [name for name in config if name not in known]:
        raise TypeError(f"a stitch takes {', '.join(known)}; got {unknown[0]!r}")
    return TaskConfig(**config)


def _among(what: str, given: str, names: tuple[str, ...]) -> None:
    if given not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}; got {given!r}")


def _number(what: str, value: float, least: float, said: str) -> None:
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{what} must be {said}; got {value}")
