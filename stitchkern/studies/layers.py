"""What layers a model has, and which of them to stitch when nobody chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from stitchkern.errors import ShapeError
from stitchkern.matching import common_layers
from stitchkern.models import frozen, layer_names, resolve_layer
from stitchkern.models.taps import call, layer_shapes, leaves, rehearse, said

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_MAPS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Layer:
    """A layer of a model. `shape` is that of one sample of its output.

    It is None where nothing was run, and for layers that cannot be stitched: that do not run exactly once,
    give no tensor of two to four dimensions, or hand on what a layer inside them gave.
    """

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...] | None


def describe(model: nn.Module, inputs: Any = None) -> list[Layer]:
    """Every layer of the model, in the order of `named_modules()`; with inputs (n, …), also their shapes.

    Raises ShapeError where the model does not take the inputs.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if inputs is not None:
        check_takes(model, inputs, type(model).__name__)
        with frozen(model):
            shapes = layer_shapes(model, inputs)
    modules = {name: resolve_layer(model, name) for name in layer_names(model)}
    return [
        Layer(name, type(module).__name__, count_parameters(module), shapes.get(name))
        for name, module in modules.items()
    ]


def check_takes(model: nn.Module, inputs: Any, name: str) -> None:
    """Run two samples of the inputs through the model, which errors call `name`.

    Raises ShapeError with the inputs' shape, and with what the model said, where it does not take them.
    """
    try:
        with frozen(model), torch.no_grad():
            rehearse(call, model, inputs)
    except Exception as error:  # whatever the model's own code makes of them
        got = " and ".join(str(tuple(tensor.shape)) for tensor in leaves(inputs)) or type(inputs).__name__
        raise ShapeError(f"{name} does not take inputs {got}: {said(error)}") from error


def count_parameters(model: nn.Module) -> int:
    """How many numbers; those of lazy modules that have not run yet are not counted."""
    return sum(p.numel() for p in model.parameters() if not isinstance(p, UninitializedParameter))


def default_layers(front: nn.Module, end: nn.Module, inputs: Any, *, resize: str | None = None) -> list[str]:
    """The normalisation layers that both models have under one name and that fit.

    So did Csiszárik et al. 2021: after BatchNorm, before ReLU. Where there is none, the convolutions and
    linear layers but the last; or else all that fit.

    Raises LayerError where the models have no layer in common.
    """
    names = common_layers(front, end, inputs, resize=resize)

    def of(kinds: tuple[type, ...]) -> list[str]:
        return [name for name in names if all(isinstance(resolve_layer(m, name), kinds) for m in (front, end))]

    return of(_NORMS) or of(_MAPS)[:-1] or names
