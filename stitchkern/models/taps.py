"""Reading layers of a model while it runs: one forward serves any number of layers.

A tapped tensor is held by reference, not copied: most layers are followed by nothing that writes into
their output. Where something does (`nn.ReLU(inplace=True)`, `x += residual`), the tensor's version
counter shows it, and that layer alone is cloned inside its hook.

The first call of a `Taps` rehearses: it runs a few samples to the end of a shadow of the model (same
tensors, no hooks, modules of its own, so the user's model sees nothing of it) to learn which layers run
exactly once and which need the clone. Real forwards can then stop as soon as the last layer has fired.
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from stitchkern.errors import LayerError

Inputs = Any  # a tensor, a tuple of positional inputs, or a mapping of keyword inputs
Visit = Callable[[str, Tensor], None]


def layer_names(model: nn.Module) -> list[str]:
    """The names of ``model.named_modules()`` that can be tapped: those with a forward, but the root."""
    return [name for name, module in model.named_modules() if name and _has_forward(module)]


def resolve_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``; `LayerError` with the nearest names when there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if name and name in modules:
        if not _has_forward(modules[name]):
            raise LayerError(
                f"layer {name!r} of {_kind(model)} is a {_kind(modules[name])}, which never runs itself; "
                f"choose one of the layers inside it"
            )
        return modules[name]
    raise LayerError(f"{_kind(model)} has no layer {name!r}; {nearest(str(name), layer_names(model))}")


def nearest(name: str, names: Iterable[str]) -> str:
    """``"nearest: a, b"``, or the first few names when nothing is near."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return f"nearest: {', '.join(close)}"
    return f"there are: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "there are none"


def call(model: nn.Module, inputs: Inputs) -> Any:
    """``model(inputs)``; a tuple is passed as positional and a mapping as keyword inputs.

    The model gets a copy: some write into their inputs (``x.sub_(mean)``), which others have yet to read.
    """
    args, kwargs = as_arguments(inputs)
    return model(*map_tensors(args, Tensor.clone), **map_tensors(kwargs, Tensor.clone))


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``inputs`` as (args, kwargs)."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """``inputs`` with ``function`` applied to each tensor in it."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_tensors(value, function) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        values = [map_tensors(value, function) for value in inputs]
        return values if isinstance(inputs, list) else tuple(values)
    return inputs


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``, whatever mappings, tuples, lists and plain objects hold it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from leaves(inner)
    elif hasattr(value, "__dict__"):  # outputs in an object with .logits and the like
        yield from leaves([inner for inner in vars(value).values() if isinstance(inner, (Tensor, tuple, list))])


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model without any."""
    return next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Inside: every submodule in eval mode, no parameter requires a gradient. Outside: all as it was found.

    Flags are kept for every submodule and parameter by itself and come back after an exception too.
    BatchNorm's running statistics are not touched. Parameters made in inference mode, and those of lazy
    modules that have not run yet, let no one change their flag and keep it.
    """
    with ExitStack() as stack:  # which restores everything even where a part of it fails
        for module in chain.from_iterable(model.modules() for model in models):
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        for parameter in chain.from_iterable(model.parameters() for model in models):
            if not isinstance(parameter, UninitializedParameter) and not parameter.is_inference():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
        yield


def activations(model: nn.Module, layers: Iterable[str], inputs: Inputs) -> dict[str, Tensor]:
    """The outputs of ``layers`` in one forward of ``model``, which stops once the last of them has run.

    The model runs without gradients and in the mode it is in (see `frozen`). Raises `LayerError` as
    `Taps` does.
    """
    return Taps(model, layers)(inputs)


def layer_shapes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """The layers that can be stitched, with the shape of one sample: (c,), (t, c) or (c, h, w).

    These are the layers that run once and return a tensor of two to four dimensions. A container that only
    hands on what a layer inside it returned is left out, because the inner layer stands for both. Two samples
    of ``inputs`` run through the model to find out.
    """
    runs: Counter[str] = Counter()
    returned: dict[str, Tensor] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            runs[name] += 1
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            inner = [key for key in returned if key.startswith(f"{name}.") and runs[key] == 1]
            handed_on = any(first is returned[key] for key in inner)
            if isinstance(first, Tensor) and 2 <= first.ndim <= 4 and not handed_on:
                returned[name] = first

        return hook

    def look(model: nn.Module, inputs: Inputs) -> None:
        runs.clear()
        returned.clear()
        with ExitStack() as stack, torch.no_grad():
            for name in layer_names(model):
                module = model.get_submodule(name)
                stack.callback(module.register_forward_hook(hook_for(name)).remove)
            call(model, inputs)

    rehearse(look, model, inputs)
    return {name: tuple(tensor.shape[1:]) for name, tensor in returned.items() if runs[name] == 1}


class Taps:
    """Reads ``layers`` of ``model``; one object per model and set of layers, used for all batches.

    A layer whose output is a tuple or list is read as its first element, which transformers and
    recurrent layers use for the features; other outputs that are not one tensor raise `LayerError`.
    Always runs without gradients; hooks never outlive a call.

    Args:
        reuse: what has to be copied is written over the copies of the call before, whose tensors are then no longer
            valid: fresh memory for every batch takes longer than the copying.

    Raises:
        LayerError: a layer is unknown, did not run, ran more than once, or returned no tensor.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], *, reuse: bool = False) -> None:
        self.model = model
        self._copies: dict[str, Tensor] | None = {} if reuse else None
        self.modules = {name: resolve_layer(model, name) for name in layers}
        self._overwritten: set[str] = set()
        self._rehearsed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Taps, reuse=self._copies is not None), (self.model, list(self.modules))

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        """The tapped tensors; the forward stops after the last of them."""
        return self._read(inputs, whole=False)[0]

    def run(self, inputs: Inputs) -> tuple[dict[str, Tensor], Any]:
        """The tapped tensors and the model's outputs: the forward goes to its end."""
        return self._read(inputs, whole=True)

    def visit(self, inputs: Inputs, visit: Visit) -> None:
        """Call ``visit(name, tensor)`` as each layer runs; the tensor is valid only during that call."""
        self._rehearse(inputs)
        _forward(self.model, self.modules, inputs, visit, whole=False)

    def _read(self, inputs: Inputs, whole: bool) -> tuple[dict[str, Tensor], Any]:
        self._rehearse(inputs)
        held, outputs, overwritten = read(self.model, self.modules, inputs, self._overwritten, whole, self._copies)
        if overwritten:
            self._overwritten |= overwritten
            held, outputs, _ = read(self.model, self.modules, inputs, self._overwritten, whole, self._copies)
        return {name: held[name] for name in self.modules}, outputs

    def _rehearse(self, inputs: Inputs) -> None:
        if self._rehearsed:
            return

        def learn(model: nn.Module, inputs: Inputs) -> None:
            modules = {name: model.get_submodule(name) for name in self.modules}
            self._overwritten = read(model, modules, inputs, set(), whole=True)[2]

        rehearse(learn, self.model, inputs)
        self._rehearsed = True


class _Stop(BaseException):
    """All tapped layers have run. Not an Exception, so that no handler inside a model swallows it."""


def read(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    inputs: Inputs,
    clone: set[str],
    whole: bool,
    copies: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Any, set[str]]:
    """One forward: (what the modules returned, the model's outputs, the names overwritten since).

    What is in ``clone`` is copied, into the tensors of ``copies`` where these are given and fit.
    """
    held: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def hold(name: str, tensor: Tensor) -> None:
        held[name] = _copy(name, tensor, copies) if name in clone or tensor.is_inference() else tensor
        versions[name] = held[name]._version

    outputs = _forward(model, modules, inputs, hold, whole)
    return held, outputs, {name for name, tensor in held.items() if tensor._version != versions[name]}


def _copy(name: str, tensor: Tensor, copies: dict[str, Tensor] | None) -> Tensor:
    old = None if copies is None else copies.get(name)
    if old is None or any(getattr(old, what) != getattr(tensor, what) for what in ("shape", "dtype", "device")):
        old = tensor.clone()
    else:
        old.copy_(tensor)
    if copies is not None:
        copies[name] = old
    return old


def _forward(model: nn.Module, modules: Mapping[str, nn.Module], inputs: Inputs, visit: Visit, whole: bool) -> Any:
    fired: set[str] = set()
    outputs: Any = None

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if name in fired:
                raise LayerError(
                    f"layer {name!r} of {_kind(model)} runs more than once in a forward (a shared module), "
                    f"so there is no one activation to take"
                )
            fired.add(name)
            visit(name, first_tensor(output, name))
            if not whole and len(fired) == len(modules):
                raise _Stop

        return hook

    # no_grad, and out of any inference_mode around: inference tensors have no version counter
    with ExitStack() as stack, torch.inference_mode(False), torch.no_grad():
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook_for(name)).remove)
        with suppress(_Stop):
            outputs = call(model, inputs)
    if missing := [name for name in modules if name not in fired]:
        raise LayerError(f"layer {missing[0]!r} of {_kind(model)} did not run in the forward")
    return outputs


def first_tensor(output: Any, name: str) -> Tensor:
    """``output``, or its first element when it is a tuple or list; `LayerError` when that is no tensor."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise LayerError(
            f"layer {name!r} returns a {_kind(output)}, not a tensor or a tuple that starts with one; "
            f"choose a layer inside it"
        )
    return first


def rehearse(look: Callable[[nn.Module, Inputs], None], model: nn.Module, inputs: Inputs) -> None:
    """``look`` at a shadow of the model with a few samples; at the model itself where that does not work."""
    try:
        look(shadow(model), few(inputs))
    except Exception:  # a model that cannot be copied, lives by its hooks, or needs its whole batch
        look(model, inputs)


def shadow(model: nn.Module) -> nn.Module:
    """A copy of the module tree in eval mode, without hooks, that shares every parameter; buffers are its own."""
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for module in twin.modules():
        module.training = False
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


def few(inputs: Inputs, count: int = 2) -> Inputs:
    """A copy of the first ``count`` samples of ``inputs``."""
    return map_tensors(inputs, lambda tensor: (tensor[:count] if tensor.ndim else tensor).clone())


def said(error: BaseException) -> str:
    """``"ValueError: what it said first"``; the type alone where it said nothing."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return chain(model.parameters(), model.buffers())


def _has_forward(module: nn.Module) -> bool:
    return getattr(getattr(module, "forward", None), "__func__", None) is not nn.Module.forward


def _kind(value: object) -> str:
    return type(value).__name__
