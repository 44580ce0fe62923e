"""The small convolutional networks whose layers the benchmarks compare, and a clock that knows their own time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import SMALL

WIDTHS = (32, 64, 64, 64, 128, 128, 128, 256, 256, 256)
SMALLER = (1, 4, 7)  # where a layer halves height and width
IMAGES, BATCH = (64, 16) if SMALL else (2048, 256)
#: name -> has batch norm, ReLU works in place on what is tapped
KINDS = {"with BatchNorm": (True, False), "activations far from zero": (False, False), "in-place ReLU": (True, True)}


def images() -> Tensor:
    """(IMAGES, 3, 32, 32), in 0 … 1."""
    return torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pair(kind: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Two networks of ten layers that differ by their seed."""
    norm, inplace = KINDS[kind]
    return _network(norm, inplace, 1), _network(norm, inplace, 2)


def taps(kind: str) -> list[str]:
    """The layers to compare: what an in-place ReLU overwrites afterwards, otherwise what ReLU gives."""
    return [f"norm{i}" if KINDS[kind][1] else f"relu{i}" for i in range(len(WIDTHS))]


def _network(norm: bool, inplace: bool, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for i, width in enumerate(WIDTHS):
            conv = nn.Conv2d(channels, width, 3, padding=1, stride=2 if i in SMALLER else 1)
            if not norm:  # the mean grows from layer to layer, the variation about it does not
                nn.init.constant_(conv.bias, 0.2)
            layers[f"conv{i}"] = conv
            if norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(width, momentum=1.0)
            layers[f"relu{i}"] = nn.ReLU(inplace)
            channels = width
        network = nn.Sequential(layers)
        if norm:  # running statistics of real activations
            with torch.no_grad():
                network.train()(images()[:BATCH])
        return network.eval()


class Clock:
    """Counts the time that layers spend in their own forward, hooks not included.

    What a comparison costs beyond the forward passes is its time less that: the difference to forward passes measured
    by themselves is as small as the noise of these.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.start, self.within = time.perf_counter(), 0.0
        for module in (m for network in networks for m in network if not list(m.children())):
            module.forward = self._timed(module.forward)  # type: ignore[method-assign]

    def _timed(self, forward: Any) -> Any:
        def timed(x: Tensor) -> Tensor:
            start = time.perf_counter()
            y = forward(x)
            self.within += time.perf_counter() - start
            return y

        return timed

    def beyond(self) -> float:
        """Seconds since the clock was made, outside of the layers."""
        return time.perf_counter() - self.start - self.within


def between_layers(kind: str) -> float:
    """Seconds that plain forward passes of both networks over all images spend outside of layers: giving back what the
    layer before has made, above all. They belong to the forward passes."""
    found = []
    for _ in range(2):
        models = pair(kind)
        clock = Clock(*models)
        with torch.no_grad():
            for x in images().split(BATCH):
                for model in models:
                    model(x)
        found.append(clock.beyond())
    return min(found)


def features(network: nn.Sequential, names: list[str], batches: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """For each batch what the named layers give, flattened, each a copy."""
    for x in batches:
        found = []
        with torch.no_grad():
            for name, layer in network.named_children():
                x = layer(x)
                if name in names:
                    found.append(x.flatten(1).clone())
        yield found
