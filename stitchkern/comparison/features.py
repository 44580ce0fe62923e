"""Activations of one model as features: (rows, features) for every layer, from one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stitchkern.comparison.matrices import Held, takes_matrices
from stitchkern.errors import LayerError, ShapeError
from stitchkern.models.taps import Inputs, Taps, device_of

FEATURES = ("flatten", "positions", "pool")


class Reader:
    """The layers of one model as features.

    "flatten": a sample is a row, and everything that the layer gives for it are its features. "positions": every
    position of an image, every token of a sequence is a row of channels. "pool": a sample is a row, the mean over its
    positions. Images are (n, c, h, w), tokens (n, t, c).

    Args:
        model: in eval mode, without gradients (see `frozen`).
        layers: their names.
        asked: those of them that must fit; others that do not give one entry for each sample are left out.
        side: what errors call the model.
        mask: the key of (n, t) masks in batches that are mappings: tokens where it is 0 are left out of "positions" and
            "pool". None: there are none.
        keep: what to keep of the features of a layer, made as soon as it has run; None: the features.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        asked: Iterable[str],
        features: str,
        side: str,
        mask: str | None,
        keep: Callable[[Tensor], Held] | None = None,
    ) -> None:
        self.side, self.features = side, features
        self._keep = keep
        self._model, self._mask, self._asked = model, mask, set(asked)
        self.layers = list(dict.fromkeys(layers))
        if not self.layers:
            raise LayerError(f"{side} has no layer that runs once and gives a tensor of two to four dimensions")
        self._taps = Taps(model, self.layers, reuse=True)
        self.notes: list[str] = []  # what the caller should warn of
        self.token_mask: Tensor | None = None  # (n, t) bool of the last batch, where tokens are masked at all

    def label(self, layer: str) -> str:
        return f"layer {layer!r} of {self.side}"

    def __call__(self, inputs: Inputs, count: int) -> list[Held]:
        """(rows, features) of each layer, of ``count`` samples, or what is to be kept of them; they may be views of
        what the model holds.

        Raises:
            LayerError: as `Taps`.
            ShapeError: a layer that does not give one entry for each sample, or (n, c), (n, t, c), (n, c, h, w).
            TypeError: a layer that gives no floating-point numbers.
        """
        self.token_mask = mask = self._find_mask(inputs)
        at_once = self._keep is not None and takes_matrices(count, device_of(self._model))
        misfits: list[str] = []
        found: dict[str, Held] = {}

        def take(name: str, x: Tensor) -> None:
            if x.ndim == 0 or x.shape[0] != count:
                if name in self._asked:
                    raise ShapeError(
                        f"{self.label(name)} gives {tuple(x.shape)} for {count} samples; they must come first"
                    )
                misfits.append(name)
                return
            if not x.is_floating_point() or x.dtype.itemsize < 2:
                raise TypeError(f"{self.label(name)} must give real floating-point numbers; got {x.dtype}")
            rows = self._rows(name, x, mask)
            kept = rows if self._keep is None else self._keep(rows)
            # a layer on another device than the model's first parameter; it is valid only now
            found[name] = rows.clone() if at_once and kept is rows and self.features == "flatten" else kept

        if self.features == "flatten" and not at_once:
            for name, x in self._taps(inputs).items():  # held as they are: nothing is copied
                take(name, x)
        else:
            self._taps.visit(inputs, take)
        if misfits:
            self.notes.append(
                f"left out, as they do not give one entry for each sample: layers {', '.join(misfits)} of {self.side}"
            )
            self.layers = [name for name in self.layers if name not in misfits]
            if not self.layers:
                raise LayerError(f"{self.side} has no layer that gives one entry for each sample")
            self._taps = Taps(self._model, self.layers, reuse=True)
        self._asked = set(self.layers)  # what is left must fit from now on
        return [found[name] for name in self.layers]

    def _rows(self, name: str, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.features == "flatten":
            if x.ndim < 2:
                raise ShapeError(f"{self.label(name)} must give at least (n, features); got {tuple(x.shape)}")
            return x.flatten(1)
        if x.ndim not in (2, 3, 4):
            raise ShapeError(f"{self.label(name)} must give (n, c), (n, t, c) or (n, c, h, w); got {tuple(x.shape)}")
        dtype = torch.promote_types(x.dtype, torch.float32)  # a mean in half precision is rounded to it
        keep = mask if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape else None
        if self.features == "positions":
            if keep is not None:
                return x[keep]
            last = x.movedim(1, -1) if x.ndim == 4 else x
            return last.clone(memory_format=torch.contiguous_format).flatten(0, -2)
        if keep is not None:
            total = keep.sum(1, keepdim=True)
            if not bool(total.all()):
                raise ShapeError(f"{self.label(name)} has a sample whose tokens are all masked: it has no mean")
            return torch.where(keep[..., None], x, 0).sum(1, dtype=dtype) / total
        dims = {2: (), 3: (1,), 4: (2, 3)}[x.ndim]
        return x.mean(dims, dtype=dtype) if dims else x.to(dtype, copy=True)

    def _find_mask(self, inputs: Inputs) -> Tensor | None:
        if self._mask is None or not isinstance(inputs, Mapping) or not isinstance(inputs.get(self._mask), Tensor):
            return None
        mask = inputs[self._mask] != 0
        if mask.ndim != 2 or bool(mask.all()):
            return None
        note = (
            f"features='flatten' takes the tokens that {self._mask!r} masks as they are; "
            f"'pool' and 'positions' leave them out"
        )
        if self.features == "flatten" and note not in self.notes:
            self.notes.append(note)
        return mask
