"""Several stitches in one forward: side by side as channels of one map, then one after the other as samples of the end.

All weights (k q, p) on one activation make one 1×1 convolution, and its output (n, k q, h, w) read as (n k, q, h, w) is
a batch for the end, without a copy: one step serves all stitches. Those of other activations into the same layer join.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stitchkern.matching.evaluate import logits_of
from stitchkern.matching.task.structure import Trainee
from stitchkern.models.cut import Tail
from stitchkern.models.taps import Inputs, first_tensor

Strand = tuple[Tensor, Tensor, Tensor, int]
"""Stitches on one activation: x (n, p, …), weights (k q, p), biases (k q,), k."""


def strand(x: Tensor, trainees: Sequence[Trainee]) -> Strand:
    """``trainees`` on ``x``, with their graph; in their type, which a front may differ from."""
    pairs = [one.affine() for one in trainees]
    weight = pairs[0][0] if len(pairs) == 1 else torch.cat([w for w, _ in pairs])
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in pairs]
    return x.to(weight.dtype), weight, biases[0] if len(biases) == 1 else torch.cat(biases), len(pairs)


def stitched(strands: Sequence[Strand]) -> Tensor:
    """(n k, q, …), k of all strands together: sample by sample, and of each sample stitch by stitch."""
    if len(strands) == 1:
        return _apply(*strands[0])
    parts = [_apply(*one).unflatten(0, (len(one[0]), one[3])) for one in strands]
    return torch.cat(parts, 1).flatten(0, 1)


def _apply(x: Tensor, weight: Tensor, bias: Tensor, count: int) -> Tensor:
    n = len(x)
    if x.ndim == 4:
        z = F.conv2d(x, weight[:, :, None, None], bias)
        return z.reshape(n * count, -1, *z.shape[2:])
    z = F.linear(x, weight, bias)
    if x.ndim == 2:
        return z.reshape(n * count, -1)
    return z.unflatten(-1, (count, -1)).transpose(1, 2).flatten(0, 1)


class Forward:
    """Logits (n k, classes) of one end from the strands of x: stitches and tail, compiled where that is asked for."""

    def __init__(self, tail: Tail, compile: bool | dict[str, Any] = False) -> None:
        self.tail = tail
        self._run: Callable[..., Tensor] = self._plain
        if compile is not False:
            options = {} if compile is True else dict(compile)
            if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # not in every torch
                # or all share one count of graphs, beyond which the rest runs uncompiled
                options.setdefault("isolate_recompiles", True)
            self._run = torch.compile(self._plain, **options)

    def __call__(self, strands: Sequence[Strand], inputs: Inputs) -> Tensor:
        return self._run(strands, inputs)

    def end(self, activation: Tensor, inputs: Inputs) -> Tensor:
        """Logits from the end's activation."""
        logits: Tensor = logits_of(self.tail(activation, inputs))
        return logits

    def _plain(self, strands: Sequence[Strand], inputs: Inputs) -> Tensor:
        return self.end(stitched(strands), inputs)


@contextmanager
def listening(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, what ``layers`` return, with its graph: copies, since what follows may write into it."""
    heard: dict[str, Tensor] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            heard[name] = first_tensor(output, name).clone()

        return hook

    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_hook(hook_for(name)).remove)
        yield heard
