"""What task-loss matching reads off the two models, batch by batch: each runs no further than it has to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.errors import LayerError, NotFiniteError, ShapeError
from stitchkern.matching.direct import side_by_side
from stitchkern.matching.evaluate import check_labels, logits_of
from stitchkern.matching.stream import Pair, Progress, stream
from stitchkern.matching.task.config import TaskConfig
from stitchkern.models.cut import Tail
from stitchkern.models.taps import Inputs, Taps, device_of, layer_shapes, leaves, map_tensors, resolve_layer
from stitchkern.moments import Moments


@dataclass
class Part:
    """Some samples.

    Attributes:
        fields: by name: ``"x"`` (what the stitch gets, resized where that was asked for), and where there are such
            ``"labels"``, ``"end"`` and ``"front"`` (the models' own logits), ``"y"`` (the end's own activation),
            ``"later.NAME"`` (of the end's layers that follow).
        inputs: what the models took; where only its shapes are needed, something of that shape.
    """

    fields: dict[str, Tensor]
    inputs: Inputs

    def __len__(self) -> int:
        return len(self.fields["x"])


@dataclass
class Source:
    """Front, end and the layers between them; reads what ``configs`` need.

    Attributes:
        tail: what of the end follows its layer.
        later: layers that targets look at, in the order they run; known from the first batch on.
        size: (h, w) that x was resized to, or None; known from the first batch on.
        classes: of the end; known from the first batch on.
        moments: of (x, y) over all that was read while they were wanted.
    """

    front: nn.Module
    end: nn.Module
    pair: Pair
    configs: list[TaskConfig]
    resize: str | None = None
    precision: str = "highest"
    later: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    classes: int = 0
    moments: Moments | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        resolve_layer(self.front, self.pair[0])
        self.tail = Tail(self.end, self.pair[1])
        targets = {config.target for config in self.configs}
        self.asks_front = bool(targets & {"soft_front", "soft_mean", "soft_mean_logits"})
        self.asks_end = bool(targets & {"soft", "soft_mean", "soft_mean_logits"})
        self.asks_y = bool(targets & {"latent", "hint"})
        self.needs_labels = "hard" in targets
        self._front_taps = Taps(self.front, [self.pair[0]])
        self._end_taps: Taps | None = None

    @property
    def device(self) -> torch.device:
        return device_of(self.front)

    def parts(
        self, batches: Iterable[Any], progress: Progress | None = None, *, moments: bool = False
    ) -> Iterator[Part]:
        """One part for each batch; with ``moments``, those of (x, y) are kept in the passing."""
        for inputs, labels in stream(batches, self.device, progress):
            yield self.read(inputs, labels, moments=moments)

    def read(self, inputs: Inputs, labels: Tensor | None = None, *, moments: bool = False) -> Part:
        """What the models make of one batch.

        Raises:
            LayerError, ShapeError, NotFiniteError: as :func:`stitchkern.match_task`.
        """
        first = next((t for t in leaves(inputs) if t.ndim), None)
        if first is not None and not len(first):
            raise ShapeError("a batch holds no samples: leave it out")
        if self._end_taps is None:
            self._prepare(inputs)
        assert self._end_taps is not None and self.later is not None
        a, b = self.pair
        fields: dict[str, Tensor] = {}
        if self.asks_front:
            held, outputs = self._front_taps.run(inputs)
            fields["front"] = self._checked_logits("front", outputs)
        else:
            held = self._front_taps(inputs)
        x = held[a]
        # labels are checked against the end's classes, which the first batch has told
        found, outputs = self._end_taps.run(inputs) if self.asks_end else (self._end_taps(inputs), None)
        if outputs is not None:
            fields["end"] = self._checked_logits("end", outputs)
        y = found[b]
        fields["x"] = side_by_side(self.pair, x, y, self.resize)
        if self.size is None and x.ndim == 4 and fields["x"] is not x:
            self.size = (y.shape[2], y.shape[3])
        if moments:
            self._add(fields["x"], y)
        if self.asks_y:
            fields["y"] = y
            fields |= {f"later.{name}": found[name] for name in self.later}
        if labels is not None:
            fields["labels"] = self._checked_labels(labels, len(x))
        elif self.needs_labels:
            raise ValueError("target='hard' needs labels: batches must yield (inputs, labels)")
        return Part(fields, inputs)

    def _prepare(self, inputs: Inputs) -> None:
        """The first batch: later layers, classes, and whether the end can be cut."""
        if self.later is None:
            self.later = self._later_layers(inputs)
        taps = Taps(self.end, [self.pair[1], *self.later])
        with torch.no_grad():
            held, outputs = taps.run(inputs)
            logits = self._logits("end", outputs)
            self.classes = logits.shape[1]
            self.tail(held[self.pair[1]], inputs)  # which raises, or finds out whether there is a cut
        if (
            self.asks_front
            and (theirs := self._logits("front", self._front_taps.run(inputs)[1]).shape[1]) != self.classes
        ):
            raise ShapeError(
                f"front and end must have the same classes where the target is made of both outputs; "
                f"{type(self.front).__name__} gives {theirs}, {type(self.end).__name__} gives {self.classes}"
            )
        self._end_taps = taps

    def _later_layers(self, inputs: Inputs) -> tuple[str, ...]:
        wanted = [config for config in self.configs if config.target == "latent"]
        if not wanted:
            return ()
        order = list(layer_shapes(self.end, inputs))
        named = {name for config in wanted for name in config.target_layers or ()}
        for name in named:
            resolve_layer(self.end, name)
        layer = self.pair[1]
        if layer not in order:
            raise LayerError(
                f"layer {layer!r} of the end only hands on what a layer inside it returns; stitch into that one"
            )
        around = [name for name in order if layer.startswith(f"{name}.")]
        follow = [name for name in order[order.index(layer) + 1 :] if name not in around]
        if early := sorted(named - set(follow)):
            raise LayerError(
                f"target_layers must follow {layer!r} in {type(self.end).__name__}, run once and give a tensor; "
                f"{early[0]!r} does not"
            )
        if any(config.target_layers is None for config in wanted):
            return tuple(follow)
        return tuple(name for name in follow if name in named)

    def _add(self, x: Tensor, y: Tensor) -> None:
        if self.moments is None:
            p, q = (t.shape[1 if t.ndim == 4 else -1] for t in (x, y))
            self.moments = Moments(p, q, precision=self.precision)
        try:
            self.moments.update(x, y)
        except NotFiniteError as error:
            a, b = self.pair
            raise NotFiniteError(f"front layer {a!r} → end layer {b!r}: {error}") from None

    def _logits(self, side: str, outputs: Any) -> Tensor:
        logits = logits_of(outputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(f"outputs of the {side} must be logits (n, classes); got {got}")
        return logits

    def _checked_logits(self, side: str, outputs: Any) -> Tensor:
        logits = self._logits(side, outputs)
        if not bool(logits.isfinite().all()):
            raise NotFiniteError(f"the {side}'s own outputs hold NaN or Inf, so they are no target")
        return logits

    def _checked_labels(self, labels: Any, count: int) -> Tensor:
        several = any(config.loss == "binary" for config in self.configs)
        if not isinstance(labels, Tensor) or tuple(labels.shape) != ((count, self.classes) if several else (count,)):
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            shape = f"({count}, {self.classes}), several per sample" if several else f"({count},)"
            raise ShapeError(f"labels must be {shape} beside {count} inputs; got {got}")
        if several:
            if not bool(((labels == 0) | (labels == 1)).all()):
                raise ShapeError("labels must be 0 or 1 with loss='binary'")
            return labels.to(torch.float32)
        if labels.is_floating_point():
            raise ShapeError(f"labels must be integers; got {labels.dtype}")
        check_labels(labels, self.classes)
        return labels.long()


def stand_in(inputs: Inputs, count: int) -> Inputs:
    """Inputs of ``count`` samples for a tail that reads nothing but their shapes."""
    return map_tensors(inputs, lambda t: t[:1].expand(count, *t.shape[1:]) if t.ndim else t)


def repeated(inputs: Inputs, times: int) -> Inputs:
    """Every sample ``times`` times, one beside the other."""
    return map_tensors(inputs, lambda t: t.repeat_interleave(times, 0) if t.ndim else t)
