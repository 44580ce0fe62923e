"""Sums of unbiased HSIC over batches: the minibatch estimator of CKA, and what standard errors come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stitchkern.comparison.matrices import Held, KernelMatrix, hsic_between
from stitchkern.errors import NotFiniteError, StatisticsError
from stitchkern.similarity.pairs import HsicMatrix, hsic_matrix

#: Blocks that are kept apart at most; where there are more batches, neighbours are put together.
MOST_BLOCKS = 512


@dataclass
class Estimate:
    """What was found: (X, Y) values and standard errors, from how many blocks, and where there is none."""

    values: Tensor
    standard_error: Tensor
    blocks: int
    undefined: dict[str, str]  # a label -> why its row or column is NaN
    notes: list[str] = field(default_factory=list)  # what the caller should warn of


class HsicBlocks:
    r"""HSIC₁ of all pairs of layers for each batch, summed in blocks.

    .. math:: \mathrm{CKA} = \frac{\sum_k \mathrm{HSIC}_1(x_k, y_k)}
              {\sqrt{\sum_k \mathrm{HSIC}_1(x_k, x_k) \sum_k \mathrm{HSIC}_1(y_k, y_k)}}

    (Nguyen et al. 2021), with the unbiased HSIC₁ of Song et al. 2012 of batch k. With A, B, C these sums and a, b, c
    those of a block, the delta method on r = A/√(BC) gives

    .. math:: \mathrm{se}^2 = \frac{K}{K-1} \sum_k d_k^2, \qquad
              d_k = \frac{a_k}{\sqrt{BC}} - \frac r2 \left(\frac{b_k}{B} + \frac{c_k}{C}\right)

    Args:
        labels_x, labels_y: what errors call the layers; no labels_y: one model with itself.
        blocks: how many blocks, filled in turn; None: each batch is one.
    """

    def __init__(
        self, labels_x: Sequence[str], labels_y: Sequence[str] | None, *, blocks: int | None, **kernel: Any
    ) -> None:
        self._labels = list(labels_x), None if labels_y is None else list(labels_y)
        self._kernel, self._blocks = kernel, blocks
        self._sums: list[HsicMatrix] = []
        self._batches, self._per_block, self._turn = 0, 1, 0
        self.skipped = 0

    def add(self, xs: Sequence[Held], ys: Sequence[Held] | None) -> None:
        """A batch of (rows, features), or of linear kernel matrices. One of fewer than four rows, where HSIC₁ is
        undefined, is skipped.

        Raises:
            NotFiniteError: a layer holds NaN or Inf. StatisticsError: its HSIC overflows float64.
        """
        if len(xs[0]) < 4:
            self.skipped += 1
            return
        found = self._hsic(xs, ys)
        self._batches += 1
        if self._blocks is not None:
            if len(self._sums) < self._blocks:
                self._sums.append(found)
            else:
                self._sums[self._turn] = _plus(self._sums[self._turn], found)
            self._turn = (self._turn + 1) % self._blocks
            return
        if self._turn == 0:
            if len(self._sums) == 2 * MOST_BLOCKS:
                self._sums = [_plus(a, b) for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._per_block *= 2
            self._sums.append(found)
        else:
            self._sums[-1] = _plus(self._sums[-1], found)
        self._turn = (self._turn + 1) % self._per_block

    @property
    def sums(self) -> list[HsicMatrix]:
        """Of each block."""
        return self._sums

    def _hsic(self, xs: Sequence[Held], ys: Sequence[Held] | None) -> HsicMatrix:
        features_x, features_y = _features(xs), None if ys is None else _features(ys)
        try:
            if features_x is None or (ys is not None and features_y is None):
                found = hsic_between(xs, ys)
            else:
                found = hsic_of_live(features_x, features_y, unbiased=True, **self._kernel)
        except NotFiniteError:
            self._name_the_culprit(xs, ys)
            raise
        if not all(bool(part.isfinite().all()) for part in found):
            self._name_the_culprit(xs, ys)
            raise StatisticsError("HSIC overflows float64; scale the features down")
        return found

    def _name_the_culprit(self, xs: Sequence[Held], ys: Sequence[Held] | None) -> None:
        for side, labels in ((xs, self._labels[0]), (ys or [], self._labels[1] or [])):
            for t, label in zip(side, labels, strict=True):
                if not (t.finite if isinstance(t, KernelMatrix) else bool(t.isfinite().all())):
                    raise NotFiniteError(f"{label} holds NaN or Inf (batch {self._batches + self.skipped})")

    # ------------------------------------------------------------------------------------------ reading

    def estimate(self, sums: Sequence[HsicMatrix]) -> Estimate:
        """CKA and its standard errors from blocks of sums (those of this process, or of all).

        Raises:
            StatisticsError: there are none.
        """
        if not sums:
            raise StatisticsError("no batch holds the four samples that unbiased HSIC needs")
        a, b, c = (torch.stack(parts) for parts in zip(*sums, strict=True))  # (k, X, Y), (k, X), (k, Y)
        total, undefined = defined(HsicMatrix(a.sum(0), b.sum(0), c.sum(0)), *self._labels)
        xy, xx, yy = total
        size = torch.outer(xx.sqrt(), yy.sqrt())
        values = xy / size
        d = a / size - values / 2 * ((b / xx)[:, :, None] + (c / yy)[:, None, :])
        return Estimate(values, spread_of_sum(d), len(sums) if len(sums) > 1 else 0, undefined)


def _features(side: Sequence[Held]) -> list[Tensor] | None:
    """None where some are kernel matrices."""
    found = [t for t in side if isinstance(t, Tensor)]
    return found if len(found) == len(side) else None


def hsic_of_live(xs: Sequence[Tensor], ys: Sequence[Tensor] | None, *, unbiased: bool, **kernel: Any) -> HsicMatrix:
    """`hsic_matrix` on the CPU, with exactly zero for layers that do not vary, whatever the kernel makes of them."""
    live_x = vary(xs)
    live_y = live_x if ys is None else vary(ys)

    def own(some: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> HsicMatrix:
        return HsicMatrix(*(part.detach().cpu() for part in hsic_matrix(some, others, unbiased=unbiased, **kernel)))

    if all(live_x) and all(live_y):
        return own(xs, ys)
    here, there = torch.tensor(live_x), torch.tensor(live_y)
    some_x = [x for x, live in zip(xs, live_x, strict=True) if live]
    some_y = None if ys is None else [y for y, live in zip(ys, live_y, strict=True) if live]
    xy, xx, yy = (torch.zeros(*size, dtype=torch.float64)
                  for size in ((len(here), len(there)), (len(here),), (len(there),)))  # fmt: skip
    if some_x and (some_y or ys is None):
        found = own(some_x, some_y)
        xy[here.nonzero(), there.nonzero()[:, 0]] = found.xy
        xx[here], yy[there] = found.xx, found.yy
    elif some_x:
        xx[here] = own(some_x).xx
    elif some_y:
        yy[there] = own(some_y).xx
    return HsicMatrix(xy, xx, yy)


def defined(
    sums: HsicMatrix, labels_x: Sequence[str], labels_y: Sequence[str] | None
) -> tuple[HsicMatrix, dict[str, str]]:
    """With NaN in place of what CKA cannot be divided by, and why it cannot."""
    undefined: dict[str, str] = {}
    for own, labels in ((sums.xx, labels_x), (sums.yy, labels_y or [])):
        if labels:
            undefined |= {
                label: "does not vary" if value == 0 else f"has no positive HSIC with itself ({value:.3g})"
                for label, value in zip(labels, own.tolist(), strict=True)
                if not value > 0
            }
    xx, yy = (torch.where(own > 0, own, torch.nan) for own in (sums.xx, sums.yy))
    return HsicMatrix(sums.xy, xx, yy), undefined


def spread_of_sum(d: Tensor) -> Tensor:
    """Standard error of a sum of k independent parts (k, …) with mean 0; NaN for fewer than two."""
    k = len(d)
    return (d.square().sum(0) * (k / (k - 1))).sqrt() if k > 1 else torch.full_like(d[0], torch.nan)


def vary(features: Sequence[Tensor]) -> list[bool]:
    """Whether the rows of each layer differ at all (NaN does)."""
    firsts = torch.stack([(t[1] != t[0]).any() for t in features]).tolist()  # nearly always enough
    return [first or bool((t != t[:1]).any()) for first, t in zip(firsts, features, strict=True)]


def _plus(a: HsicMatrix, b: HsicMatrix) -> HsicMatrix:
    return HsicMatrix(*(left + right for left, right in zip(a, b, strict=True)))
