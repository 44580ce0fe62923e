"""Cutting a model after a layer: its tail, and two models stitched together.

torch.fx traces the model with the layer, and everything that does not contain it, as single nodes. What
depends on the layer is kept and becomes a function of the activation; what came before is left behind.
The cut is taken only when nothing else of the upstream is needed (a skip connection around the layer
needs it), apart from shapes of the inputs. Tracing can go wrong silently (control flow that looks at
types or data), so the first call compares the tail with the whole model on two samples and on three. Where
there is no cut, the whole model runs and a hook on the layer swaps its output: slower, always right.

Tracing and comparing happen on a shadow of the model. The cut itself is one compiled function that owns
nothing: it looks modules, parameters and buffers up in the model at each call, so that training, moving or
replacing them is seen. Whatever else the forwards around the layer read (plain Python attributes such as
``self.scale = 2.0``, the way that their control flow went) is as it was when the `Tail` was made.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from stitchkern.errors import LayerError
from stitchkern.models.taps import (
    Inputs,
    Taps,
    as_arguments,
    call,
    few,
    first_tensor,
    frozen,
    leaves,
    read,
    rehearse,
    resolve_layer,
    said,
    shadow,
)

_SHAPE_METHODS = {"size", "dim", "numel"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}


def tail(model: nn.Module, layer: str) -> Tail:
    """What of ``model`` follows ``layer``: see `Tail`."""
    return Tail(model, layer)


class Tail:
    """``Tail(model, layer)(activation, inputs)``: the outputs of ``model`` had ``layer`` returned
    ``activation``.

    ``inputs`` are what the model itself takes; a cut tail reads nothing but their shapes. The activation
    is left as it is, gradients flow through it, and the parameters are the model's own. Call it with the
    model in eval mode (`frozen`): that is how the cut was traced. Make a new `Tail` after changing plain Python
    attributes of the model or of what contains the layer: the cut keeps those that it was traced with. A layer
    with a tuple output has its first element replaced.

    Attributes:
        is_cut: whether only what follows the layer runs. The first call may find the traced graph wrong and
            turn this to False.
        reason: why there is no cut; None when there is one.

    Raises:
        LayerError: the layer is unknown; or, from the first call without a cut, it ran not once but never or
            several times, or the outputs do not depend on the tensor that is replaced.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.layer = model, layer
        self._around = _around(model, resolve_layer(model, layer))
        self._cut: Callable[..., Any] | None = None
        self._writes = False
        self._checked = False
        self._warned = False
        self.reason: str | None = None
        try:
            self._cut = _cut_graph(shadow(model), layer)
        except _NoCut as error:
            self.reason = str(error)
        except Exception as error:  # fx raises whatever the model's own code makes of a proxy
            self.reason = f"it cannot be traced ({said(error)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Tail, (self.model, self.layer)

    @property
    def is_cut(self) -> bool:
        return self._cut is not None and not self._hooked()

    def __call__(self, activation: Tensor, inputs: Inputs) -> Any:
        if not self._checked:
            self._check(inputs)
        if self._cut is not None and not self._hooked():
            args, kwargs = as_arguments(inputs)
            return self._cut(self.model, activation.clone() if self._writes else activation, *args, **kwargs)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self.model).__name__} is not cut after {self.layer!r}: "
                f"{self.reason or 'a module around it carries hooks'}. The whole model runs for every batch "
                f"instead, which is slower",
                stacklevel=2,
            )
        # a copy, since the layers that follow may write into it
        return _replace(self.model, self.layer, lambda _: activation.clone(), inputs)

    def _hooked(self) -> bool:
        """Hooks on the modules around the layer would not run in the cut graph, so they rule it out."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._around)

    def _check(self, inputs: Inputs) -> None:
        """Keep the cut only if it does on two and three samples what the whole model does."""
        if self._cut is not None:
            try:
                # the two sizes tell a batch size that tracing took for a constant
                self.reason = self._disagreement(few(inputs, 2)) or self._disagreement(few(inputs, 3))
            except Exception as error:
                self.reason = f"the traced graph does not run ({said(error)})"
            if self.reason is not None:
                self._cut = None
        if self._cut is None:
            rehearse(self._check_used, self.model, inputs)
        self._checked = True

    def _check_used(self, model: nn.Module, inputs: Inputs) -> None:
        """`LayerError` where NaN for the activation, which nothing computed from it survives, changes no output."""
        with frozen(model), torch.no_grad():
            expected = call(model, inputs)
            try:
                got = _replace(model, self.layer, lambda own: torch.full_like(own, math.nan), inputs)
            except LayerError:
                raise
            except Exception:  # the model itself refuses NaN, so it does look at the activation
                return
        finite = [bool(leaf.isfinite().all()) for leaf in leaves(expected)]
        if finite and all(finite) and _agree(got, expected):
            raise LayerError(
                f"the outputs of {type(model).__name__} do not depend on what {self.layer!r} returns (of a tuple, "
                f"its first element), so there is nothing to stitch into"
            )

    def _disagreement(self, inputs: Inputs) -> str | None:
        assert self._cut is not None
        args, kwargs = as_arguments(inputs)
        parameters = inspect.signature(self.model.forward).parameters
        given = inspect.signature(self.model.forward).bind(*args, **kwargs).arguments
        if optional := [name for name in given if not _is_required(parameters[name])]:
            return f"its optional input {optional[0]!r} is given"
        twin = shadow(self.model)
        layer = twin.get_submodule(self.layer)
        returns: list[type] = []
        with layer.register_forward_hook(lambda module, args, output: returns.append(type(output))):
            held, expected, _ = read(twin, {self.layer: layer}, inputs, {self.layer}, whole=True)
        if not issubclass(returns[0], Tensor):
            return f"{self.layer!r} returns a {returns[0].__name__}"
        activation, version = held[self.layer], held[self.layer]._version
        args, kwargs = as_arguments(inputs)
        with torch.no_grad():
            got = self._cut(twin, activation, *args, **kwargs)
        self._writes |= activation._version != version
        if not _agree(got, expected):
            return "the traced graph gives other outputs than the model (control flow that tracing cannot see)"
        return None


class StitchedModel(nn.Module):
    """front up to ``front_layer`` ▷ ``stitch`` ▷ end from after ``end_layer``.

    Both models are frozen and in eval mode during ``forward`` and as they were found outside (`frozen`).
    The front runs without gradients and stops after its layer; gradients flow through the end's tail to the
    stitch.

    The models belong to whoever made them, so they are held, not registered: ``parameters()``,
    ``state_dict()`` and ``train()`` are the stitch's alone, and any optimiser over ``parameters()`` trains
    the stitch only. ``to()`` and its like move both models too, and copies and pickles hold copies of them.
    Front and end may be the same object.

    Raises:
        LayerError: an unknown layer, with the nearest names; from ``forward``, a layer that does not run
            exactly once.
    """

    def __init__(self, front: nn.Module, end: nn.Module, front_layer: str, end_layer: str, stitch: nn.Module) -> None:
        super().__init__()
        self.stitch = stitch
        self._models = (front, end)
        self._tap = Taps(front, [front_layer])
        self._tail = Tail(end, end_layer)
        self.front_layer, self.end_layer = front_layer, end_layer

    @property
    def front(self) -> nn.Module:
        return self._models[0]

    @property
    def end(self) -> nn.Module:
        return self._models[1]

    @property
    def is_cut(self) -> bool:
        """Whether the end runs only what follows its layer: see `Tail`."""
        return self._tail.is_cut

    def forward(self, inputs: Inputs) -> Any:
        """The end's outputs on the stitched activation. Several inputs: a tuple, or a mapping by keyword."""
        with frozen(*self._models):
            activation = self._tap(inputs)[self.front_layer]
            # in the stitch's type, which the front may differ from
            dtype = next((p.dtype for p in self.stitch.parameters() if p.is_floating_point()), activation.dtype)
            return self._tail(self.stitch(activation.to(dtype)), inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StitchedModel:
        for model in dict.fromkeys(self._models):
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        front, end = self._models
        return (
            f"{type(front).__name__} up to {self.front_layer!r} ▷ stitch ▷ "
            f"{type(end).__name__} after {self.end_layer!r}"
        )


def _replace(model: nn.Module, layer: str, new: Callable[[Tensor], Tensor], inputs: Inputs) -> Any:
    """The outputs of the whole model when ``layer`` returns ``new`` of the tensor that it would return."""
    fired = 0

    def swap(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal fired
        fired += 1
        if fired > 1:
            raise LayerError(f"layer {layer!r} runs more than once in a forward (a shared module)")
        own = first_tensor(output, layer)
        if own is output:
            return new(own)
        return getattr(output, "_make", type(output))([new(own), *output[1:]])

    with resolve_layer(model, layer).register_forward_hook(swap):
        outputs = call(model, inputs)
    if not fired:
        raise LayerError(f"layer {layer!r} of {type(model).__name__} did not run in the forward")
    return outputs


class _NoCut(Exception):
    """The graph cannot be cut; the message says why."""


class _Tracer(fx.Tracer):
    """Traces ``layer`` and all that does not contain it as single nodes; optional inputs are left out."""

    proxy_buffer_attributes = True  # buffers are looked up when the cut runs, not baked into it

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.around = {id(module) for module in _around(model, layer)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self.around

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, Any]:
        """The forward with its defaults, so that ``if mask is not None`` goes as it does without a mask."""
        parameters = inspect.signature(root_fn).parameters
        required = [p for p in list(parameters.values())[1:] if _is_required(p)]
        proxies = {p.name: self.create_proxy("placeholder", p.name, (), {}) for p in required}
        named = {p.name: proxies.pop(p.name) for p in required if p.kind is inspect.Parameter.KEYWORD_ONLY}

        @functools.wraps(root_fn)
        def forward(*args: Any) -> Any:
            return root_fn(*args, **named)

        return forward, [self.root, *proxies.values()]


def _cut_graph(model: nn.Module, layer: str) -> Callable[..., Any]:
    """The function (model, activation, *inputs) → outputs that runs what follows ``layer``, or `_NoCut`."""
    module = model.get_submodule(layer)
    tracer = _Tracer(model, module)
    own = set(dir(model))
    nodes = list(tracer.trace(model).nodes)
    calls = [node for node in nodes if node.op == "call_module" and model.get_submodule(str(node.target)) is module]
    if len(calls) != 1:
        raise _NoCut(f"{layer!r} runs {len(calls)} times in a forward")
    downstream = _downstream(calls[0], nodes)
    if nodes[-1] not in downstream:
        raise _NoCut(f"its outputs do not depend on {layer!r}")

    graph = fx.Graph()
    new = {calls[0]: graph.placeholder("_activation")}
    for node in nodes:
        if node.op == "placeholder":
            new[node] = graph.node_copy(node)

    def keep(node: fx.Node) -> fx.Node:
        if node in new:
            return new[node]
        if node not in downstream and not _needs_no_data(node):
            raise _NoCut(f"what follows {layer!r} also needs {str(node)!r} from before it")
        if node.op == "get_attr" and str(node.target).split(".")[0] not in own:
            raise _NoCut("its forward builds tensors that tracing turns into constants")
        for used in node.all_input_nodes:
            if used.op == "placeholder" and node in downstream:
                raise _NoCut(f"what follows {layer!r} also needs the input {str(used)!r}")
            keep(used)
        new[node] = graph.node_copy(node, new.__getitem__)
        return new[node]

    # in the model's order, unused nodes too: in-place operations are often called for their effect alone
    for node in nodes:
        if node in downstream:
            keep(node)
    return type(fx.GraphModule(model, graph)).forward


def _downstream(source: fx.Node, nodes: list[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in nodes:
        if any(used is source or used in found for used in node.all_input_nodes):
            found.add(node)
    return found


def _needs_no_data(node: fx.Node) -> bool:
    """Whether a node is made of parameters and the inputs' shapes alone: no upstream need run for it."""
    if node.op == "placeholder":
        return False
    is_shape = (node.op == "call_method" and node.target in _SHAPE_METHODS) or (
        node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES
    )
    return all(_needs_no_data(used) or (is_shape and used.op == "placeholder") for used in node.all_input_nodes)


def _around(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The modules that contain ``layer``, the model itself among them."""
    return [
        module
        for module in model.modules()
        if module is not layer and any(inner is layer for inner in module.modules())
    ]


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _agree(a: Any, b: Any) -> bool:
    """The same tensors up to rounding; the structure around them does not matter."""
    left, right = list(leaves(a)), list(leaves(b))
    return len(left) == len(right) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-5 * _scale(y), equal_nan=True)
        for x, y in zip(left, right, strict=True)
    )


def _scale(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
