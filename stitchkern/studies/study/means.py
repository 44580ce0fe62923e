"""Means over pairs of networks, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

_Z95 = 1.96


def mean(values: Iterable[float]) -> float:
    """NaN where one of them is, or there is none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def half(values: Iterable[float], errors: Iterable[float] = ()) -> float:
    """Half of the 95 % interval of the mean.

    From the spread of the values; of a single one from its own standard error, NaN where that is not known.
    """
    found, own = list(values), list(errors)
    if len(found) == 1:
        return _Z95 * own[0] if own else math.nan
    return _Z95 * statistics.stdev(found) / math.sqrt(len(found)) if found else math.nan
