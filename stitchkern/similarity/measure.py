"""What counts as an index of two sides, and what is known about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.canonical import CanonicalCorrelations

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features

    Index: TypeAlias = "str | Callable[[Any, Any], Any]"

#: distances whose name does not say so; the name of all others ends in it
_DISTANCES = {"gulp", "rsm_norm"}
#: similarities whose value for equal sides is not 1
_NOT_ONE = {"cycle_knn", "hsic"}


@dataclass(frozen=True)
class Measure:
    """An index with its options: what the caller gave, and which function of this package it is, if one.

    Attributes:
        call: (x, y) -> value.
        name: of the function, None for a callable of the caller's own.
        options: all of the function's arguments beside x and y.
        changed: those that are not its defaults.
    """

    call: Callable[[Any, Any], Any]
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, index: Index) -> Measure:
        """From a public name, a public function, a `functools.partial` of one, or any other callable."""
        indices = two_sided()
        if isinstance(index, str):
            if index not in indices:
                raise ValueError(f"index must be one of {', '.join(indices)}, or a callable; got {index!r}")
            index = indices[index]
        if not callable(index):
            raise TypeError(f"index must be a name or a callable (x, y) -> number; got {type(index).__name__}")
        function: Any = index
        given: dict[str, Any] = {}
        while isinstance(function, partial) and not function.args:
            given = {**function.keywords, **given}
            function = function.func
        for name, known in indices.items():
            if function is known:
                parameters = list(inspect.signature(known).parameters.values())[2:]
                options = {p.name: given.get(p.name, p.default) for p in parameters}
                changed = frozenset(p.name for p in parameters if not _same(options[p.name], p.default))
                return cls(index, name, options, changed)
        return cls(index)

    @property
    def is_distance(self) -> bool:
        """Less is more alike."""
        return self.name is not None and (self.name.endswith("_distance") or self.name in _DISTANCES)

    @property
    def best(self) -> float | None:
        """The value for equal sides, where it is known."""
        if self.name is None or self.name in _NOT_ONE:
            return None
        return 0.0 if self.is_distance else 1.0

    def __call__(self, x: Features, y: Features) -> Tensor:
        """The value, float64 on the CPU; of canonical correlations their mean."""
        value = self.call(x, y)
        if isinstance(value, CanonicalCorrelations):
            value = value.mean
        if not isinstance(value, Tensor | np.ndarray | np.generic | float | int):
            raise TypeError(f"index must give a number, or a tensor of numbers; got {type(value).__name__}")
        value = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        if not bool(value.isfinite().all()):
            raise StatisticsError(f"the index is not finite: {value.tolist()}")
        return value


def two_sided() -> dict[str, Callable[..., Any]]:
    """The public indices of two sides, by name."""
    from stitchkern import similarity

    found: dict[str, Callable[..., Any]] = {}
    for name in similarity.__all__:
        function = getattr(similarity, name)
        if inspect.isfunction(function) and list(inspect.signature(function).parameters)[:2] == ["x", "y"]:
            found[name] = function
    return found


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, str | int | float) and bool(value == default))
