"""How a number comes from batches of features: the estimators, by what they keep of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from stitchkern.comparison.blocks import Estimate, HsicBlocks, defined, hsic_of_live
from stitchkern.comparison.joint import JointMoments
from stitchkern.comparison.measures import Measure
from stitchkern.comparison.pairwise import from_features, from_statistics
from stitchkern.comparison.processes import gathered
from stitchkern.errors import NotFiniteError, StatisticsError
from stitchkern.similarity.pairs import HsicMatrix
from stitchkern.store import FeatureStore

#: Features of all layers together up to which moments of all are kept (128 MiB for each block), and no samples.
MOST_FEATURES = 4096
#: Blocks of the jackknife where nobody says how many.
JACKKNIFE_BLOCKS = 8


@dataclass(frozen=True)
class Plan:
    """What is asked for. `measure` None: CKA, with the options of `hsic_matrix` in `kernel`."""

    measure: Measure | None
    estimator: str
    unbiased: bool = False
    kernel: dict[str, Any] = field(default_factory=dict)
    blocks: int | None = None
    precision: str = "highest"
    memory: int | None = None
    folder: str | os.PathLike[str] | None = None
    group: Any = None

    @property
    def is_linear(self) -> bool:
        return self.kernel.get("kernel", "linear") == "linear"


class Estimator(Protocol):
    """Takes the features of all layers, batch by batch; of one model alone `ys` is None."""

    def add(self, xs: Sequence[Any], ys: Sequence[Any] | None) -> None: ...

    def finish(self, pairs: Sequence[tuple[int, int]]) -> Estimate:
        """(X, Y) for the pairs of layers that count; may leave others undefined."""

    def close(self) -> None: ...


def estimator_for(plan: Plan, labels_x: list[str], labels_y: list[str] | None, sizes: Sequence[int]) -> Estimator:
    """The cheapest way to what is asked for. `sizes`: features of all layers, those of x first.

    Raises:
        ValueError: processes are to share what only one can hold.
    """
    labels = _Labels(labels_x, labels_y)
    if plan.estimator == "minibatch":
        return _Minibatch(plan, labels)
    of_moments = plan.is_linear if plan.measure is None else plan.measure.of_statistics is not None
    if of_moments and sum(sizes) <= MOST_FEATURES:
        return _CkaOfMoments(plan, labels, sizes) if plan.measure is None else _IndexOfMoments(plan, labels, sizes)
    if plan.group is not None:
        what = "CKA" if plan.measure is None else plan.measure.name
        raise ValueError(
            f"the exact estimator of {what} needs the features of all samples ({sum(sizes)} for each) in one process; "
            f"leave out group, or take estimator='minibatch' or features='pool' where they do"
        )
    return _CkaOfFeatures(plan, labels) if plan.measure is None else _IndexOfFeatures(plan, labels)


@dataclass(frozen=True)
class _Labels:
    x: list[str]
    y: list[str] | None

    @property
    def all(self) -> list[str]:
        return self.x + (self.y or [])

    def between(self, joint: Tensor) -> Tensor:
        """The part of x and y of a matrix of all layers with all."""
        return joint if self.y is None else joint[: len(self.x), len(self.x) :]

    def pairs(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Pairs (i of x, j of y), counted over both."""
        shift = 0 if self.y is None else len(self.x)
        return [(i, j + shift) for i, j in pairs]


class _Minibatch:
    def __init__(self, plan: Plan, labels: _Labels) -> None:
        self._blocks = _hsic_blocks(plan, labels)
        self._group = plan.group

    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None) -> None:
        self._blocks.add(xs, ys)

    def finish(self, pairs: Sequence[tuple[int, int]]) -> Estimate:
        found = self._blocks.estimate(_chained(gathered(self._blocks.sums, self._group)))
        skipped = sum(gathered(self._blocks.skipped, self._group))
        if skipped:
            found.notes.append(f"{skipped} batches of fewer than 4 samples were skipped: unbiased HSIC needs as many")
        return found

    def close(self) -> None:
        pass


class _Exact:
    """CKA over all samples; standard errors are those of the minibatch estimator.

    The first-order (Hájek) terms of the U-statistic of all samples and of the mean over blocks are the same, so that
    the spread over blocks holds for both; what blocks add in second order makes it slightly too large.
    """

    def __init__(self, plan: Plan, labels: _Labels) -> None:
        self._plan, self._labels = plan, labels
        self._blocks = None if plan.blocks == 0 else _hsic_blocks(plan, labels)

    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None) -> None:
        if self._blocks is not None:
            self._blocks.add(xs, ys)
        self._keep([*xs, *(ys or [])])

    def finish(self, pairs: Sequence[tuple[int, int]]) -> Estimate:
        sums, undefined = defined(self._hsic(), self._labels.x, self._labels.y)
        values = sums.xy / torch.outer(sums.xx.sqrt(), sums.yy.sqrt())
        errors, blocks = torch.full_like(values, torch.nan), 0
        if self._blocks is not None:
            of_all = _chained(gathered(self._blocks.sums, self._plan.group))
            if len(of_all) > 1:
                errors, blocks = self._blocks.estimate(of_all).standard_error, len(of_all)
        return Estimate(values, errors, blocks, undefined)

    def _keep(self, features: list[Tensor]) -> None:
        raise NotImplementedError

    def _hsic(self) -> HsicMatrix:
        raise NotImplementedError

    def close(self) -> None:
        pass


class _CkaOfMoments(_Exact):
    def __init__(self, plan: Plan, labels: _Labels, sizes: Sequence[int]) -> None:
        super().__init__(plan, labels)
        self._moments = JointMoments(sizes, precision=plan.precision, norms=plan.unbiased)

    def _keep(self, features: list[Tensor]) -> None:
        self._moments.add(features, self._labels.all)

    def _hsic(self) -> HsicMatrix:
        joint = self._moments.hsic(self._plan.group)
        x = len(self._labels.x)
        own = joint.xx.cpu()
        return HsicMatrix(self._labels.between(joint.xy.cpu()), own[:x], own if self._labels.y is None else own[x:])


class _CkaOfFeatures(_Exact):
    def __init__(self, plan: Plan, labels: _Labels) -> None:
        super().__init__(plan, labels)
        self._store = FeatureStore(plan.memory, plan.folder)

    def _keep(self, features: list[Tensor]) -> None:
        if self._blocks is None:
            _check_finite(features, self._labels.all)
        self._store.add(features, self._labels.all)

    def _hsic(self) -> HsicMatrix:
        least = 4 if self._plan.unbiased else 2
        if self._store.rows < least:
            raise StatisticsError(f"HSIC needs at least {least} samples; got {self._store.rows}")
        found, x = self._store.matrices(), len(self._labels.x)
        ys = None if self._labels.y is None else found[x:]
        sums = hsic_of_live(found[:x], ys, unbiased=self._plan.unbiased, **self._plan.kernel)
        if not all(bool(part.isfinite().all()) for part in sums):
            raise StatisticsError("HSIC overflows float64; scale the features down")
        return sums

    def close(self) -> None:
        self._store.close()


class _IndexOfMoments:
    def __init__(self, plan: Plan, labels: _Labels, sizes: Sequence[int]) -> None:
        assert plan.measure is not None
        self._measure, self._labels, self._group = plan.measure, labels, plan.group
        blocks = JACKKNIFE_BLOCKS if plan.blocks is None else max(plan.blocks, 1)
        # these indices take roots and quotients of products, so that the products are float64
        self._moments = JointMoments(sizes, precision="float64", blocks=blocks)

    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None) -> None:
        self._moments.add([*xs, *(ys or [])], self._labels.all)

    def finish(self, pairs: Sequence[tuple[int, int]]) -> Estimate:
        stats = self._moments.statistics(self._group)
        return _sliced(from_statistics(self._measure, stats, self._labels.pairs(pairs), self._labels.all), self._labels)

    def close(self) -> None:
        pass


class _IndexOfFeatures:
    def __init__(self, plan: Plan, labels: _Labels) -> None:
        assert plan.measure is not None
        self._measure, self._labels, self._count = plan.measure, labels, plan.blocks or 0
        self._store = FeatureStore(plan.memory, plan.folder)

    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None) -> None:
        features = [*xs, *(ys or [])]
        _check_finite(features, self._labels.all)
        self._store.add(features, self._labels.all)

    def finish(self, pairs: Sequence[tuple[int, int]]) -> Estimate:
        found = self._store.matrices()
        if self._store.rows < 2:
            raise StatisticsError(f"similarity needs at least two samples; got {self._store.rows}")
        pairs = self._labels.pairs(pairs)
        return _sliced(from_features(self._measure, found, pairs, self._labels.all, self._count), self._labels)

    def close(self) -> None:
        self._store.close()


def _hsic_blocks(plan: Plan, labels: _Labels) -> HsicBlocks:
    blocks = None if plan.blocks is None else max(plan.blocks, 1)
    return HsicBlocks(labels.x, labels.y, blocks=blocks, **plan.kernel)


def _chained(of_processes: list[list[HsicMatrix]]) -> list[HsicMatrix]:
    return [block for blocks in of_processes for block in blocks]


def _sliced(joint: Estimate, labels: _Labels) -> Estimate:
    values, errors = labels.between(joint.values), labels.between(joint.standard_error)
    return Estimate(values, errors, joint.blocks, joint.undefined, joint.notes)


def _check_finite(features: Sequence[Tensor], labels: Sequence[str]) -> None:
    for t, label in zip(features, labels, strict=True):
        if not bool(t.isfinite().all()):
            raise NotFiniteError(f"{label} holds NaN or Inf")
