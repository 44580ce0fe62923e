"""Indices of pairs of layers, one after the other: from statistics of blocks, or from features of all samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from stitchkern.comparison.blocks import Estimate, vary
from stitchkern.comparison.joint import PairStatistics
from stitchkern.comparison.measures import Measure
from stitchkern.errors import ShapeError, StatisticsError

Pairs = Iterable[tuple[int, int]]  # of layers, counted over both models together


def from_statistics(measure: Measure, stats: PairStatistics, pairs: Pairs, labels: Sequence[str]) -> Estimate:
    r"""The index of each pair, and its standard error by the jackknife over b blocks:

    .. math:: \mathrm{se}^2 = \frac{b-1}{b} \sum_k (v_{(-k)} - \bar v)^2

    with v₍₋ₖ₎ the index of everything but block k (Quenouille 1949, Tukey 1958). Where the index is undefined without
    some block the error is NaN.
    """
    assert measure.of_statistics is not None
    of, b = measure.of_statistics, len(stats.count)
    all_of_them = torch.ones(1, b, dtype=torch.float64)
    without = 1 - torch.eye(b, dtype=torch.float64)

    def value(i: int, j: int) -> tuple[float, float]:
        try:
            everything = of(stats.pair(i, j, all_of_them)).reshape(-1).tolist()[0]
        except StatisticsError as e:
            raise _Undefined(str(e)) from None
        if b < 2:
            return everything, float("nan")
        try:
            return everything, _jackknife(of(stats.pair(i, j, without)).reshape(-1).cpu())
        except StatisticsError:
            return everything, float("nan")

    live = [stats.varies(i) for i in range(len(labels))]
    return _each(value, pairs, labels, live, measure.is_symmetric, b if b > 1 else 0)


def from_features(
    measure: Measure, features: Sequence[Tensor], pairs: Pairs, labels: Sequence[str], blocks: int
) -> Estimate:
    """The index of each pair; its standard error as in `from_statistics`, over blocks of neighbouring rows."""
    n = len(features[0])
    blocks = min(blocks, n)
    edges = [n * k // blocks for k in range(blocks + 1)] if blocks else []
    where = list(pairwise(edges))

    def value(i: int, j: int) -> tuple[float, float]:
        x, y = features[i], features[j]
        try:
            everything = measure.of_features(x, y)
        except StatisticsError as e:
            raise _Undefined(str(e)) from None
        try:
            parts = [measure.of_features(*(torch.cat([t[:a], t[b:]]) for t in (x, y))) for a, b in where]
        except StatisticsError:
            parts = []
        return everything, _jackknife(torch.tensor(parts, dtype=torch.float64)) if parts else float("nan")

    return _each(value, pairs, labels, vary(features), measure.is_symmetric, blocks)


class _Undefined(Exception):
    """The index has no value for a pair."""


def _each(
    value: Callable[[int, int], tuple[float, float]],
    pairs: Pairs,
    labels: Sequence[str],
    live: Sequence[bool],
    is_symmetric: bool,
    blocks: int,
) -> Estimate:
    values = torch.full((len(labels), len(labels)), torch.nan, dtype=torch.float64)
    errors = values.clone()
    undefined = {label: "does not vary" for label, varies in zip(labels, live, strict=True) if not varies}
    done = set()
    for i, j in pairs:
        if not (live[i] and live[j]):
            continue
        if is_symmetric and (j, i) in done:
            values[i, j], errors[i, j] = values[j, i], errors[j, i]
            continue
        done.add((i, j))
        both = f"{labels[i]} with {labels[j]}"
        try:
            values[i, j], errors[i, j] = value(i, j)
        except _Undefined as e:
            undefined[both] = str(e)
        except ShapeError as e:
            raise ShapeError(f"{both}: {e}") from e
    return Estimate(values, errors, blocks, undefined)


def _jackknife(left_out: Tensor) -> float:
    b = len(left_out)
    return float(((b - 1) / b * (left_out - left_out.mean()).square().sum()).sqrt())
