"""The losses of one step: stitches side by side, the end once, and for each stitch its own target."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.losses import hint_losses, hits, latent_losses, output_losses, wanted_outputs
from stitchkern.matching.task.source import Part, Source, repeated, stand_in
from stitchkern.matching.task.stack import Forward, listening, side_by_side, stitched
from stitchkern.matching.task.structure import Trainee


@dataclass(frozen=True)
class Objective:
    """``objective(part, which)``: losses and hits of the stitches of these numbers.

    Attributes:
        amp: runs stitch and end under autocast; None as the models are.
        separately: one stitch after the other: BatchNorm in train mode has no samples of others in its batch.
    """

    source: Source
    trainees: Sequence[Trainee]
    configs: Sequence[TaskConfig]
    forward: Forward
    amp: torch.dtype | None = None
    separately: bool = False

    def __call__(self, part: Part, which: list[int]) -> tuple[Tensor, Tensor]:
        """(k,) losses without penalties and (k,) shares of hits (NaN where unknown), of the stitches ``which``."""
        if self.separately and len(which) > 1:
            # every stitched network has the statistics of its own batch
            pairs = [self(part, [i]) for i in which]
            return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
        with torch.autocast(self.source.device.type, self.amp) if self.amp is not None else nullcontext():
            return self._together(part, which)

    def _together(self, part: Part, which: list[int]) -> tuple[Tensor, Tensor]:
        fields, count, n = part.fields, len(which), len(part)
        configs = [self.configs[i] for i in which]
        weight, bias = side_by_side([self.trainees[i] for i in which])
        loss: list[Tensor | None] = [None] * count
        right = torch.full((count,), math.nan, device=self.source.device)
        hints = [at for at, config in enumerate(configs) if config.target == "hint"]
        latents = [at for at, config in enumerate(configs) if config.target == "latent"]
        if hints or latents:
            z = stitched(fields["x"], weight, bias, count)
            by_stitch = z.unflatten(0, (n, count))
            for at, value in zip(hints, hint_losses(by_stitch[:, hints], fields["y"]), strict=True) if hints else ():
                loss[at] = value
            if len(hints) == count:  # nothing that follows the layer need run
                return torch.stack([value for value in loss if value is not None]), right
            with listening(self.source.end, self.source.later or ()) as heard:
                logits = self.forward.end(z, self._inputs(part, count))
            for at in latents:
                config = configs[at]
                names = self.source.later if config.target_layers is None else config.target_layers
                stitched_there = [by_stitch[:, at : at + 1]]
                stitched_there += [heard[name].unflatten(0, (n, count))[:, at : at + 1] for name in names or ()]
                own = [fields["y"], *(fields[f"later.{name}"] for name in names or ())]
                loss[at] = latent_losses(stitched_there, own)[0]
        else:
            logits = self.forward(fields["x"], weight, bias, count, self._inputs(part, count))
        logits = logits.unflatten(0, (n, count))
        alike: dict[Any, list[int]] = defaultdict(list)
        for at, config in enumerate(configs):
            if config.of_classes:
                alike[config.target, config.loss, config.temperature].append(at)
        for group in alike.values():
            some = logits if len(group) == count else logits[:, group]
            config = configs[group[0]]
            for at, value in zip(group, output_losses(config, some, wanted_outputs(config, fields)), strict=True):
                loss[at] = value
        if "labels" in fields:
            several = next((config for config in self.configs if config.loss == "binary"), configs[0])
            right = hits(several, logits.detach(), fields["labels"])
        return torch.stack([value for value in loss if value is not None]), right

    def _inputs(self, part: Part, count: int) -> Any:
        """What the tail is called with: only shapes matter where it is cut."""
        if self.source.tail.is_cut:
            return stand_in(part.inputs, len(part) * count)
        return repeated(part.inputs, count)
