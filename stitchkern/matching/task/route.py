"""Between which layers of which networks a stitch goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stitchkern.matching.stream import Pair
from stitchkern.matching.task.config import TaskConfig


@dataclass(frozen=True)
class Route:
    """From a layer of one of several fronts into a layer of one of several ends, both by number."""

    front: int
    front_layer: str
    end: int
    end_layer: str

    @property
    def pair(self) -> Pair:
        return self.front_layer, self.end_layer

    @property
    def entry(self) -> tuple[int, str]:
        """Where it enters: stitches that enter at one place run as one batch through what follows."""
        return self.end, self.end_layer

    @property
    def exit(self) -> tuple[int, str]:
        """Where it leaves: stitches that leave at one place share an activation."""
        return self.front, self.front_layer


def routes_of(configs: Sequence[TaskConfig], layer: Any, fronts: int, ends: int) -> list[Route]:
    """Of each config; ``layer`` for those that name none.

    Raises:
        TypeError: a layer that is neither a name nor two of them, or none at all.
        ValueError: a front or an end that there is not.
    """
    found = []
    for config in configs:
        a, b = as_pair(layer if config.layer is None else config.layer)
        for what, number, count in (("front", config.front, fronts), ("end", config.end, ends)):
            if not 0 <= number < count:
                raise ValueError(f"{what} must be the number of one of {count} {what}s, from 0 on; got {number}")
        found.append(Route(config.front, a, config.end, b))
    return found


def as_pair(layer: Any) -> Pair:
    """(front layer, end layer) from that or from one name for both."""
    if isinstance(layer, str):
        return layer, layer
    if isinstance(layer, (tuple, list)) and len(layer) == 2 and all(isinstance(name, str) for name in layer):
        return layer[0], layer[1]
    raise TypeError(f"layer must be a name or (front layer, end layer); got {layer!r}")
