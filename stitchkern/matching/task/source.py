"""What task-loss matching reads off the models, batch by batch: each runs once, and no further than it has to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.errors import LayerError, NotFiniteError, ShapeError
from stitchkern.matching.direct import side_by_side
from stitchkern.matching.evaluate import check_labels, logits_of
from stitchkern.matching.stream import Progress, stream
from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.route import Route
from stitchkern.models.cut import Tail
from stitchkern.models.taps import Inputs, Taps, device_of, layer_shapes, leaves, map_tensors, resolve_layer
from stitchkern.moments import Moments

_FRONT_TARGETS = {"soft_front", "soft_mean", "soft_mean_logits"}
_END_TARGETS = {"soft", "soft_mean", "soft_mean_logits"}
_LAYER_TARGETS = {"latent", "hint"}


@dataclass
class Part:
    """Some samples.

    Attributes:
        fields: by name: what the stitches get (`Source.x_field`), and where there are such ``"labels"``, ``"end.E"``
            and ``"front.F"`` (the models' own logits), ``"y.E.LAYER"`` (an end's own activation where stitches enter),
            ``"later.E.LAYER"`` (of the layers that follow).
        inputs: what the models took; where only its shapes are needed, something of that shape.
    """

    fields: dict[str, Tensor]
    inputs: Inputs

    def __len__(self) -> int:
        return len(next(t for name, t in self.fields.items() if name.startswith("x.")))


class Source:
    """Fronts, ends and the layers between them; reads what ``configs``, one for each of ``routes``, need.

    Attributes:
        tails: what of an end follows each layer that stitches enter at.
        later: layers after that one that targets look at, in the order they run; known from the first batch on.
        sizes: (h, w) that the activation of a route was resized to; known from the first batch on.
        classes: of each end; known from the first batch on.
        moments: of (x, y) of each route, over all that was read while they were wanted.
    """

    def __init__(
        self,
        fronts: Sequence[nn.Module],
        ends: Sequence[nn.Module],
        routes: Sequence[Route],
        configs: Sequence[TaskConfig],
        resize: str | None = None,
        precision: str = "highest",
    ) -> None:
        self.fronts, self.ends, self.configs = list(fronts), list(ends), list(configs)
        self.routes, self._distinct = list(routes), list(dict.fromkeys(routes))
        self.resize, self.precision = resize, precision
        for route in self._distinct:
            resolve_layer(self.fronts[route.front], route.front_layer)
        self.tails = {route.entry: Tail(self.ends[route.end], route.end_layer) for route in self._distinct}
        self.later: dict[tuple[int, str], tuple[str, ...]] = {}
        self.sizes: dict[Route, tuple[int, int]] = {}
        self.classes: dict[int, int] = {}
        self.moments: dict[Route, Moments] = {}
        both = list(zip(self.routes, self.configs, strict=True))
        self._front_outputs = {route.front for route, config in both if config.target in _FRONT_TARGETS}
        self._end_outputs = {route.end for route, config in both if config.target in _END_TARGETS}
        self._kept = {route.entry for route, config in both if config.target in _LAYER_TARGETS}
        self._needs_labels = any(config.target == "hard" for config in self.configs)
        exits: dict[int, list[str]] = defaultdict(list)
        for front, layer in dict.fromkeys(route.exit for route in self._distinct):
            exits[front].append(layer)
        self._front_taps = {front: Taps(self.fronts[front], layers) for front, layers in exits.items()}
        self._end_taps: dict[int, Taps] = {}

    @property
    def device(self) -> torch.device:
        return device_of(self.fronts[self.routes[0].front])

    def x_field(self, route: Route) -> str:
        """The name of the field that stitches of this route get: one for all that get the same."""
        size = self.sizes.get(route)
        resized = "" if size is None else f" {size[0]}×{size[1]}"
        return f"x.{route.front}.{route.front_layer}{resized}"

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
        if begins := not self._end_taps:
            self._prepare(inputs)
        fields: dict[str, Tensor] = {}
        left: dict[tuple[int, str], Tensor] = {}
        for number, taps in self._front_taps.items():
            if number in self._front_outputs:
                held, outputs = taps.run(inputs)
                fields[f"front.{number}"] = self._checked_logits("front", number, outputs)
            else:
                held = taps(inputs)
            left |= {(number, name): t for name, t in held.items()}
        entered: dict[tuple[int, str], Tensor] = {}
        for number, taps in self._end_taps.items():
            # labels are checked against the end's classes, which the first batch has told
            found, outputs = taps.run(inputs) if number in self._end_outputs else (taps(inputs), None)
            if outputs is not None:
                fields[f"end.{number}"] = self._checked_logits("end", number, outputs)
            entered |= {(number, name): t for name, t in found.items()}
        for route in self._distinct:
            if begins:
                self._note_size(route, left[route.exit], entered[route.entry])
            self._put_x(route, left[route.exit], entered[route.entry], fields)
            if moments:
                self._add(route, fields[self.x_field(route)], entered[route.entry])
        for entry in sorted(self._kept):
            fields["y.{}.{}".format(*entry)] = entered[entry]
            fields |= {f"later.{entry[0]}.{name}": entered[entry[0], name] for name in self.later[entry]}
        part = Part(fields, inputs)
        if labels is not None:
            fields["labels"] = self._checked_labels(labels, len(part))
        elif self._needs_labels:
            raise ValueError("target='hard' needs labels: batches must yield (inputs, labels)")
        return part

    def _put_x(self, route: Route, x: Tensor, y: Tensor, fields: dict[str, Tensor]) -> None:
        """The activation of one route, at the positions of y; what routes share is made once."""
        name = self.x_field(route)
        if (known := fields.get(name)) is None:
            fields[name] = side_by_side(route.pair, x, y, self.resize)
        elif known.ndim != y.ndim or _positions(known) != _positions(y):
            # which says what does not fit; or it was made to fit another layer
            side_by_side(route.pair, x, y, self.resize)
            raise ShapeError(
                f"front layer {route.front_layer!r} → end layer {route.end_layer!r}: sizes change from batch to batch, "
                f"so that it cannot share the activation with other end layers; match it by itself"
            )

    def _prepare(self, inputs: Inputs) -> None:
        """The first batch: later layers, classes, and whether the ends can be cut."""
        if not self.later:
            self.later = {entry: self._later_layers(entry, inputs) for entry in self.tails}
        classes = {
            f: self._logits("front", f, self._front_taps[f].run(inputs)[1]).shape[1] for f in self._front_outputs
        }
        end_taps = {}
        for number in dict.fromkeys(route.end for route in self._distinct):
            entries = [entry for entry in self.tails if entry[0] == number]
            later = [name for entry in entries for name in self.later[entry]]
            end_taps[number] = Taps(self.ends[number], dict.fromkeys([*(layer for _, layer in entries), *later]))
            with torch.no_grad():
                held, outputs = end_taps[number].run(inputs)
                self.classes[number] = self._logits("end", number, outputs).shape[1]
                for entry in entries:
                    self.tails[entry](held[entry[1]], inputs)  # which raises, or finds out whether there is a cut
        for route, config in zip(self.routes, self.configs, strict=True):
            ours = self.classes[route.end]
            if config.target in _FRONT_TARGETS and (theirs := classes[route.front]) != ours:
                names = [type(model).__name__ for model in (self.fronts[route.front], self.ends[route.end])]
                raise ShapeError(
                    f"front and end must have the same classes where the target is made of both outputs; "
                    f"{names[0]} gives {theirs}, {names[1]} gives {ours}"
                )
        self._end_taps = end_taps

    def _note_size(self, route: Route, x: Tensor, y: Tensor) -> None:
        if self.resize is not None and x.ndim == y.ndim == 4 and x.shape[2:] != y.shape[2:]:
            self.sizes[route] = (y.shape[2], y.shape[3])

    def _later_layers(self, entry: tuple[int, str], inputs: Inputs) -> tuple[str, ...]:
        both = zip(self.routes, self.configs, strict=True)
        wanted = [config for route, config in both if route.entry == entry and config.target == "latent"]
        if not wanted:
            return ()
        end, layer = self.ends[entry[0]], entry[1]
        order = list(layer_shapes(end, inputs))
        named = {name for config in wanted for name in config.target_layers or ()}
        for name in named:
            resolve_layer(end, name)
        if layer not in order:
            raise LayerError(
                f"layer {layer!r} of the end only hands on what a layer inside it returns; stitch into that one"
            )
        around = [name for name in order if layer.startswith(f"{name}.")]
        follow = [name for name in order[order.index(layer) + 1 :] if name not in around]
        if early := sorted(named - set(follow)):
            raise LayerError(
                f"target_layers must follow {layer!r} in {type(end).__name__}, run once and give a tensor; "
                f"{early[0]!r} does not"
            )
        if any(config.target_layers is None for config in wanted):
            return tuple(follow)
        return tuple(name for name in follow if name in named)

    def _add(self, route: Route, x: Tensor, y: Tensor) -> None:
        if route not in self.moments:
            p, q = (t.shape[1 if t.ndim == 4 else -1] for t in (x, y))
            self.moments[route] = Moments(p, q, precision=self.precision)
        try:
            self.moments[route].update(x, y)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"front layer {route.front_layer!r} → end layer {route.end_layer!r}: {error}"
            ) from None

    def _said(self, side: str, number: int) -> str:
        return f"the {side}" if len(self.fronts if side == "front" else self.ends) == 1 else f"{side} {number}"

    def _logits(self, side: str, number: int, outputs: Any) -> Tensor:
        logits = logits_of(outputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(f"outputs of {self._said(side, number)} must be logits (n, classes); got {got}")
        return logits

    def _checked_logits(self, side: str, number: int, outputs: Any) -> Tensor:
        logits = self._logits(side, number, outputs)
        if not bool(logits.isfinite().all()):
            raise NotFiniteError(f"{self._said(side, number)}'s own outputs hold NaN or Inf, so they are no target")
        return logits

    def _checked_labels(self, labels: Any, count: int) -> Tensor:
        several = any(config.loss == "binary" for config in self.configs)
        for classes in self.classes.values():
            wanted = (count, classes) if several else (count,)
            if not isinstance(labels, Tensor) or tuple(labels.shape) != wanted:
                got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
                shape = f"({count}, {classes}), several per sample" if several else f"({count},)"
                raise ShapeError(f"labels must be {shape} beside {count} inputs; got {got}")
        if several:
            if not bool(((labels == 0) | (labels == 1)).all()):
                raise ShapeError("labels must be 0 or 1 with loss='binary'")
            return labels.to(torch.float32)
        if labels.is_floating_point():
            raise ShapeError(f"labels must be integers; got {labels.dtype}")
        check_labels(labels, min(self.classes.values()))
        return labels.long()


def _positions(t: Tensor) -> tuple[int, ...]:
    """(), (tokens,) or (h, w)."""
    return tuple(t.shape[2:] if t.ndim == 4 else t.shape[1:-1])


def stand_in(inputs: Inputs, count: int) -> Inputs:
    """Inputs of ``count`` samples for a tail that reads nothing but their shapes."""
    return map_tensors(inputs, lambda t: t[:1].expand(count, *t.shape[1:]) if t.ndim else t)


def repeated(inputs: Inputs, times: int) -> Inputs:
    """Every sample ``times`` times, one beside the other."""
    return map_tensors(inputs, lambda t: t.repeat_interleave(times, 0) if t.ndim else t)
