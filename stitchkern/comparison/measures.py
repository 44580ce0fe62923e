"""What can be measured between two layers: indices by name, and functions of the caller's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from stitchkern import similarity
from stitchkern.similarity import CanonicalCorrelations
from stitchkern.statistics import Statistics

#: Indices that take the statistics of both sides; all others need the features of all samples.
_OF_STATISTICS = {
    "bures",
    "bures_distance",
    "cca",
    "correlation_match",
    "eigenspace_overlap",
    "gulp",
    "linear_r2",
    "procrustes_distance",
    "procrustes_similarity",
    "pwcca",
    "shape_distance",
    "soft_matching_distance",
    "svcca",
}
#: Of these value(x, y) = value(y, x), so that one model with itself takes half of the work.
_SYMMETRIC = (_OF_STATISTICS - {"linear_r2", "pwcca"}) | {
    "cknna",
    "distance_correlation",
    "hsic",
    "jaccard",
    "mutual_knn",
    "rank_similarity",
    "rsa",
    "rsm_norm",
    "second_order_cosine",
}


@dataclass(frozen=True)
class Measure:
    """An index other than CKA. `name` is what the result calls it."""

    name: str
    of_features: Callable[[Tensor, Tensor], float]
    of_statistics: Callable[[Statistics], Tensor] | None = None
    is_symmetric: bool = False


def find_measure(measure: str | Callable[..., Any], options: dict[str, Any]) -> Measure | None:
    """The index that `measure` names or is, with these options; None for CKA.

    Raises:
        ValueError: no index has this name. TypeError: no name and no function, or an option that it does not take.
    """
    known = indices()
    if callable(measure):
        name = next((name for name, function in known.items() if function is measure), None)
        if name is None:
            inner = getattr(measure, "func", measure)  # of a functools.partial
            label = str(getattr(inner, "__name__", type(inner).__name__))
            _check_options(label, measure, options)
            return Measure(label, partial(_number, label, measure, options))
        measure = name
    if not isinstance(measure, str):
        raise TypeError(f"measure must be the name of an index or a function of (x, y); got {type(measure).__name__}")
    if measure not in known:
        raise ValueError(f"measure must be one of {', '.join(sorted(known))}, or a function; got {measure!r}")
    if measure == "cka":
        return None
    function = known[measure]
    _check_options(measure, function, options)
    return Measure(
        measure,
        partial(_number, measure, function, options),
        partial(_of_statistics, measure, function, options) if measure in _OF_STATISTICS else None,
        measure in _SYMMETRIC,
    )


def indices() -> dict[str, Callable[..., Any]]:
    """Every index of two representations, by name."""
    found = {name: getattr(similarity, name) for name in similarity.__all__}
    return {name: function for name, function in found.items() if inspect.isfunction(function) and _takes_two(function)}


def _takes_two(function: Callable[..., Any]) -> bool:
    return list(inspect.signature(function).parameters)[:2] == ["x", "y"]


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    try:
        inspect.signature(function).bind(None, None, **options)
    except TypeError as e:
        raise TypeError(f"measure {name!r}: {e}") from None
    except ValueError:  # a function without a signature
        return


def _number(name: str, function: Callable[..., Any], options: dict[str, Any], x: Tensor, y: Tensor) -> float:
    value = function(x, y, **options)
    if isinstance(value, CanonicalCorrelations):
        value = value.mean
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"measure {name!r} must give one number for two layers; got {value!r}") from None


def _of_statistics(name: str, function: Callable[..., Any], options: dict[str, Any], stats: Statistics) -> Tensor:
    value = function(stats, **options)
    if isinstance(value, CanonicalCorrelations):
        value = value.mean
    if not isinstance(value, Tensor):
        raise TypeError(f"measure {name!r} must give one number for two layers; got {value!r}")
    return value
