"""Moments of all layers side by side: exact CKA of every pair, and statistics for every other index of moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError, StatisticsError
from stitchkern.moments import Moments
from stitchkern.similarity.pairs import HsicMatrix
from stitchkern.statistics import Statistics


class JointMoments:
    r"""One-sided :class:`Moments` over the features of all layers side by side, P in all: O(P²) memory.

    Args:
        sizes: features of each layer.
        precision: of `Moments`.
        norms: also keep what unbiased HSIC needs, the joint moments of the squared norms of samples in each layer.
        blocks: how many moments, filled in turn.
    """

    def __init__(self, sizes: Sequence[int], *, precision: str, norms: bool = False, blocks: int = 1) -> None:
        self.sizes, self.p = list(sizes), sum(sizes)
        self.norms, self._precision = norms, precision
        width = self.p + (len(self.sizes) if norms else 0)
        self.blocks = [Moments(width, precision=precision) for _ in range(blocks)]
        self._turn = 0
        self._origin: Tensor | None = None  # what norms are taken about
        self._scale: Tensor  # their units, and which of them are not known yet
        self._unscaled: Tensor
        self._rounding = [2.0**-53] * len(self.sizes)  # of each layer's own numbers

    def add(self, parts: Sequence[Tensor], labels: Sequence[str]) -> None:
        """(rows, features) of every layer. Raises NotFiniteError, naming the layer, for NaN or Inf."""
        if not len(parts[0]):  # which has no mean to be an origin
            self._turn += 1
            return
        z = torch.cat(list(parts), 1)
        if self.norms:
            z = torch.cat([z.to(self._type(z)), self._norms(z)], 1)
        try:
            self.blocks[self._turn % len(self.blocks)].update(z)
            _ = self.blocks[self._turn % len(self.blocks)].rows if z.is_cuda else 0  # there, errors come late
        except NotFiniteError:
            bad = [label for t, label in zip(parts, labels, strict=True) if not bool(t.isfinite().all())]
            raise NotFiniteError(f"{bad[0] if bad else 'a layer'} holds NaN or Inf (batch {self._turn})") from None
        for i, t in enumerate(parts):
            self._rounding[i] = max(self._rounding[i], torch.finfo(t.dtype).eps / 2)
        self._turn += 1

    def _norms(self, z: Tensor) -> Tensor:
        """Squared norms about a fixed point, of each layer, in units of their first mean above 0: (rows, layers)."""
        if self._origin is None:
            self._origin = z.double().mean(0)
            self._scale = z.new_ones(len(self.sizes), dtype=torch.float64)
            self._unscaled = torch.ones_like(self._scale, dtype=torch.bool)
        t = (z.double() - self._origin).square() @ self._indicator(z.device)
        mean = t.mean(0)
        known = self._unscaled & (mean > 0) & mean.isfinite()  # so far all norms of these were zero, in any unit
        self._scale = torch.where(known, mean, self._scale)
        self._unscaled = self._unscaled & ~known
        return (t / self._scale).to(self._type(z))

    def _type(self, z: Tensor) -> torch.dtype:
        """Of features with norms, which unbiased HSIC subtracts: rounded no more than the products."""
        return torch.promote_types(z.dtype, torch.float64 if self._precision == "float64" else torch.float32)

    def _indicator(self, device: torch.device) -> Tensor:
        """(P, layers): which feature is whose."""
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        return torch.nn.functional.one_hot(owner, len(self.sizes)).double().to(device)

    # ------------------------------------------------------------------------------------------ reading

    def hsic(self, group: Any = None) -> HsicMatrix:
        """Exact linear HSIC of all pairs of layers, unbiased where `norms` are kept; of all processes of the group.

        Raises:
            StatisticsError: fewer than two samples (unbiased: four).
        """
        (m,) = self.blocks
        local = _Local.of(m) if self.norms else None
        if group is not None:
            m.all_reduce(group)
        mean, cov = m.mean_x[: self.p], m.cov_xx[: self.p, : self.p]
        e = self._indicator(cov.device)
        biased = e.T @ cov.square() @ e
        if local is None:
            return _matrix(biased)
        n = m.count
        if n < 4:
            raise StatisticsError(f"unbiased HSIC needs at least 4 samples; got {n:g}")
        joint = self._joint_norms(local, mean) if local.count else torch.zeros_like(biased)
        if group is not None:
            torch.distributed.all_reduce(joint, group=group)
        traces = e.T @ cov.diagonal() * n
        square = biased * n**2 + torch.outer(traces, traces) / ((n - 1) * (n - 2)) - joint * (n / (n - 2))
        return _matrix(square / (n * (n - 3)))

    def _joint_norms(self, local: _Local, mean: Tensor) -> Tensor:
        """Σ a aᵀ of the squared norms a of each layer about `mean`, from moments of [z, t], t about the origin.

        ‖z − m‖² = ‖z − o‖² − 2 (m − o)·(z − o) + ‖m − o‖², which is linear in z and t.
        """
        assert self._origin is not None
        e, d = self._indicator(mean.device), mean - self._origin
        linear = torch.cat([-2 * d[:, None] * e, torch.diag(self._scale)])
        about = torch.cat([local.mean[: self.p] - self._origin, local.mean[self.p :]])
        average = about @ linear + d.square() @ e
        return local.count * (linear.T @ local.cov @ linear + torch.outer(average, average))

    def statistics(self, group: Any = None) -> PairStatistics:
        """The blocks that hold anything, to take pairs of layers from."""
        filled = []
        while self.blocks:
            m = self.blocks.pop(0)  # so that no block is there twice
            if group is not None:
                m.all_reduce(group)
            if m.rows:
                filled.append(_Local.of(m))
        if sum(block.count for block in filled) < 2:
            raise StatisticsError("similarity needs at least two samples")
        return PairStatistics(self.sizes, filled, self._rounding)


class PairStatistics:
    """Statistics of pairs of layers in every block."""

    def __init__(self, sizes: list[int], blocks: list[_Local], rounding: list[float]) -> None:
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self._at = [slice(a, b) for a, b in pairwise(ends)]
        self._cov = [block.cov for block in blocks]
        self._mean = torch.stack([block.mean for block in blocks])
        self._variance = torch.stack([cov.diagonal() for cov in self._cov])
        self.count = self._mean.new_tensor([block.count for block in blocks])
        # the means of a constant feature differ by rounding at most; combined, that would be a variance
        about, variance = self._about(slice(None))
        self._live = variance > 2.0**-96 * about.square()
        self._epsilon = [self._noise(i, u) for i, u in zip(self._at, rounding, strict=True)]

    def varies(self, i: int) -> bool:
        return bool(self._live[self._at[i]].any())

    def pair(self, i: int, j: int, weights: Tensor) -> Statistics:
        """Layer i as x and layer j as y, with the blocks combined by `weights` (r, blocks): a batch of r."""
        x, y = self._at[i], self._at[j]
        epsilon = torch.full_like(self.count, max(self._epsilon[i], self._epsilon[j]))
        xx, xy, yy = (torch.stack([cov[of, with_] for cov in self._cov]) for of, with_ in ((x, x), (x, y), (y, y)))
        blocks = Statistics(xx, xy, yy, self._mean[:, x], self._mean[:, y], self.count, epsilon)
        together = blocks.combine(weights)
        live_x, live_y = self._live[x].double(), self._live[y].double()
        return replace(
            together,
            cov_xx=together.cov_xx * torch.outer(live_x, live_x),
            cov_xy=together.cov_xy * torch.outer(live_x, live_y),
            cov_yy=together.cov_yy * torch.outer(live_y, live_y),
        )

    def _about(self, at: slice) -> tuple[Tensor, Tensor]:
        """Mean and variance of features over all blocks."""
        share = self.count / self.count.sum()
        mean = share @ self._mean[:, at]
        return mean, share @ (self._variance[:, at] + (self._mean[:, at] - mean).square())

    def _noise(self, at: slice, u: float) -> float:
        """As `stitchkern.similarity.features.epsilon_of`: what rounding to u added to the variance of the features."""
        if u <= 2.0**-53:
            return 2.0**-53
        mean, variance = self._about(at)
        live = self._live[at]
        far = float((1 + mean[live].square() / variance[live]).max()) if bool(live.any()) else 1.0
        return min(max(u * u * far, u * u), max(u * u, 2.0**-24))


@dataclass
class _Local:
    """Count, mean and covariance of one block, or of one process before its moments become those of all."""

    count: float
    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, m: Moments) -> _Local:
        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=m.device)

        mean = m.mean_x if m.rows else zero(m.p)
        return cls(m.count, mean, m.cov_xx if m.rows > 1 else zero(m.p, m.p))  # of one sample it is zero


def _matrix(square: Tensor) -> HsicMatrix:
    own = square.diagonal().clone()
    return HsicMatrix(square, own, own)
