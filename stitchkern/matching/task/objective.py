"""The losses of one step: stitches side by side, what follows them in the end once, and for each its own target."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.losses import hint_losses, hits, latent_losses, output_losses, wanted_outputs
from stitchkern.matching.task.route import Route
from stitchkern.matching.task.source import Part, Source, repeated, stand_in
from stitchkern.matching.task.stack import Forward, Strand, listening, stitched, strand
from stitchkern.matching.task.structure import Trainee


@dataclass(frozen=True)
class Objective:
    """``objective(part, which)``: losses and hits of the stitches of these numbers, which are one of ``groups``.

    Attributes:
        forwards: for each place that stitches enter an end at.
        amp: runs stitch and end under autocast; None as the models are.
        separately: one stitch after the other: BatchNorm in train mode has no samples of others in its batch.
    """

    source: Source
    trainees: Sequence[Trainee]
    configs: Sequence[TaskConfig]
    forwards: Mapping[tuple[int, str], Forward]
    amp: torch.dtype | None = None
    separately: bool = False

    def groups(self, which: Sequence[int]) -> list[list[int]]:
        """Those of ``which`` that run as one batch, because they enter the same end at the same layer.

        Hints are by themselves: of the end, nothing needs to run for them.
        """
        if self.separately:
            return [[i] for i in which]
        found: dict[Any, list[int]] = defaultdict(list)
        for i in which:
            found[self.source.routes[i].entry, self.configs[i].target == "hint"].append(i)
        # stitches on one activation side by side
        return [sorted(group, key=self._x_field) for group in found.values()]

    def __call__(self, part: Part, which: list[int]) -> tuple[Tensor, Tensor]:
        """(k,) losses without penalties and (k,) shares of hits (NaN where unknown)."""
        with torch.autocast(self.source.device.type, self.amp) if self.amp is not None else nullcontext():
            return self._together(part, which)

    def _together(self, part: Part, which: list[int]) -> tuple[Tensor, Tensor]:
        fields, count, n = part.fields, len(which), len(part)
        entry = self.source.routes[which[0]].entry
        configs = [self.configs[i] for i in which]
        strands, forward = self._strands(part, which), self.forwards[entry]
        right = torch.full((count,), math.nan, device=self.source.device)
        if configs[0].target == "hint":
            return hint_losses(stitched(strands).unflatten(0, (n, count)), self._own(part, entry)), right
        loss: list[Tensor | None] = [None] * count
        latents = [at for at, config in enumerate(configs) if config.target == "latent"]
        if latents:
            z = stitched(strands)
            by_stitch = z.unflatten(0, (n, count))
            later = self.source.later[entry]
            with listening(self.source.ends[entry[0]], later) as heard:
                logits = forward.end(z, self._inputs(part, forward, count))
            for at in latents:
                config = configs[at]
                names = later if config.target_layers is None else config.target_layers
                stitched_there = [by_stitch[:, at : at + 1]]
                stitched_there += [heard[name].unflatten(0, (n, count))[:, at : at + 1] for name in names]
                own = [self._own(part, entry), *(fields[f"later.{entry[0]}.{name}"] for name in names)]
                loss[at] = latent_losses(stitched_there, own)[0]
        else:
            logits = forward(strands, self._inputs(part, forward, count))
        logits = logits.unflatten(0, (n, count))
        alike: dict[Any, list[int]] = defaultdict(list)
        for at, config in enumerate(configs):
            if config.of_classes:
                alike[config.target, config.loss, config.temperature, config.front].append(at)
        for group in alike.values():
            some = logits if len(group) == count else logits[:, group]
            config = configs[group[0]]
            wanted = wanted_outputs(config, _outputs(fields, self.source.routes[which[group[0]]]))
            for at, value in zip(group, output_losses(config, some, wanted), strict=True):
                loss[at] = value
        if "labels" in fields:
            several = next((config for config in self.configs if config.loss == "binary"), configs[0])
            right = hits(several, logits.detach(), fields["labels"])
        return torch.stack([value for value in loss if value is not None]), right

    def _own(self, part: Part, entry: tuple[int, str]) -> Tensor:
        """The end's own activation."""
        return part.fields["y.{}.{}".format(*entry)]

    def _x_field(self, i: int) -> str:
        return self.source.x_field(self.source.routes[i])

    def _strands(self, part: Part, which: list[int]) -> list[Strand]:
        alike = groupby(which, key=self._x_field)
        return [strand(part.fields[name], [self.trainees[i] for i in some]) for name, some in alike]

    def _inputs(self, part: Part, forward: Forward, count: int) -> Any:
        """What the tail is called with: only shapes matter where it is cut."""
        if forward.tail.is_cut:
            return stand_in(part.inputs, len(part) * count)
        return repeated(part.inputs, count)


def _outputs(fields: Mapping[str, Tensor], route: Route) -> dict[str, Tensor]:
    """Labels and logits as `wanted_outputs` calls them."""
    names = {"labels": "labels", "end": f"end.{route.end}", "front": f"front.{route.front}"}
    return {ours: fields[name] for ours, name in names.items() if name in fields}
