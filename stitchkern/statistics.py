"""Second-order statistics of one problem or of many: what every solver reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.moments import Moments

if TYPE_CHECKING:
    from stitchkern.qr import StreamingQR

    Source: TypeAlias = "Moments | Statistics | StreamingQR | Sequence[Moments] | Sequence[Statistics]"

#: of statistics that the caller computed: products and sums were rounded in that type, more than once each
_GIVEN = {torch.float64: 2.0**-50, torch.float32: 2.0**-21}


@dataclass(frozen=True)
class Statistics:
    r"""Means and population covariances of x and y, with any leading batch dimensions (layer pairs, folds, resamples).

    .. math:: S_{xx} = E[(x-\bar x)(x-\bar x)^\top],\quad S_{xy} = E[(x-\bar x)(y-\bar y)^\top],\quad S_{yy}

    Every field is a float64 tensor on one device. Solvers take :class:`Moments`, a list of them, or this.

    Attributes:
        cov_xx, cov_xy, cov_yy: (…, p, p), (…, p, q), (…, q, q).
        mean_x, mean_y: (…, p), (…, q).
        count: (…), the total weight W; NaN where it is not known.
        epsilon: (…), unit roundoff of the products that went in: what solvers take as noise.
    """

    cov_xx: Tensor
    cov_xy: Tensor
    cov_yy: Tensor
    mean_x: Tensor
    mean_y: Tensor
    count: Tensor
    epsilon: Tensor

    @classmethod
    def given(
        cls,
        cov_xx: Tensor,
        cov_xy: Tensor,
        cov_yy: Tensor,
        *,
        mean_x: Tensor | None = None,
        mean_y: Tensor | None = None,
        count: Tensor | float | None = None,
        epsilon: Tensor | float | None = None,
    ) -> Statistics:
        """Statistics from tensors of your own; leading dimensions broadcast, means default to 0.

        Args:
            epsilon: unit roundoff behind the covariances; by default 2^-50 for float64 tensors, 2^-21 for float32.

        Raises:
            ShapeError: shapes that do not fit or whose leading dimensions do not broadcast.
            NotFiniteError: NaN or Inf.
            StatisticsError: not symmetric, a negative variance, or a covariance larger than its variances allow.
        """
        named: dict[str, Tensor] = {"cov_xx": cov_xx, "cov_xy": cov_xy, "cov_yy": cov_yy}
        for name, t in named.items():
            if not isinstance(t, Tensor) or t.dtype not in _GIVEN:
                raise TypeError(f"{name} must be a float64 or float32 tensor; got {getattr(t, 'dtype', type(t))}")
            if t.ndim < 2:
                raise ShapeError(f"{name} must be a matrix or a batch of matrices; got {tuple(t.shape)}")
        p, q = cov_xy.shape[-2:]
        for name, shape in (("cov_xx", (p, p)), ("cov_yy", (q, q))):
            if named[name].shape[-2:] != shape:
                raise ShapeError(
                    f"{name} must be (…, {shape[0]}, {shape[1]}) beside cov_xy (…, {p}, {q}); "
                    f"got {tuple(named[name].shape)}"
                )
        if p < 1 or q < 1:
            raise ShapeError(f"there must be at least one feature on each side; got p={p}, q={q}")
        if epsilon is None:
            epsilon = max(_GIVEN[t.dtype] for t in named.values())
        scalars = {"count": float("nan") if count is None else count, "epsilon": epsilon}
        named |= {k: torch.as_tensor(v, dtype=torch.float64, device=cov_xx.device) for k, v in scalars.items()}
        for name, mean, size in (("mean_x", mean_x, p), ("mean_y", mean_y, q)):
            named[name] = cov_xy.new_zeros(size) if mean is None else mean
            if named[name].shape[-1:] != (size,):
                raise ShapeError(f"{name} must be (…, {size}); got {tuple(named[name].shape)}")
        batches = [t.shape[: t.ndim - _DIMS[name]] for name, t in named.items()]
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError:
            raise ShapeError(
                f"leading dimensions do not broadcast: {', '.join(map(str, map(tuple, batches)))}"
            ) from None
        full = {
            name: t.detach().double().expand((*batch, *t.shape[t.ndim - _DIMS[name] :])) for name, t in named.items()
        }
        stats = cls(**full)
        stats._check()
        return stats

    @classmethod
    def of(cls, source: Source) -> Statistics:
        """From moments (two-sided, at least two samples), a streaming QR, or a list of these: then stacked."""
        if isinstance(source, Statistics):
            return source
        if isinstance(source, Moments):
            device = source.device
            epsilon = source.relative_roundoff()
            return cls(
                source.cov_xx,
                source.cov_xy,
                source.cov_yy,
                source.mean_x,
                source.mean_y,
                torch.tensor(source.count, dtype=torch.float64, device=device),
                torch.tensor(epsilon, dtype=torch.float64, device=device),
            )
        if isinstance(source, Sequence) and not isinstance(source, str):
            return cls.stack([cls.of(s) for s in source])
        if hasattr(source, "statistics"):
            return source.statistics()
        raise TypeError(f"expected Moments, Statistics or a list of them; got {type(source).__name__}")

    @classmethod
    def stack(cls, parts: Sequence[Statistics]) -> Statistics:
        """A new leading dimension over statistics of one shape."""
        if not parts:
            raise ValueError("there are no statistics to stack")
        if len({(s.batch, s.p, s.q) for s in parts}) > 1:
            sizes = ", ".join(sorted({f"{s.p}×{s.q}" for s in parts}))
            raise ShapeError(f"statistics must have one shape to be stacked; got {sizes}")
        return cls(*(torch.stack([getattr(s, f.name) for s in parts]) for f in fields(cls)))

    @property
    def p(self) -> int:
        return self.cov_xy.shape[-2]

    @property
    def q(self) -> int:
        return self.cov_xy.shape[-1]

    @property
    def batch(self) -> torch.Size:
        """The leading dimensions."""
        return self.cov_xy.shape[:-2]

    @property
    def device(self) -> torch.device:
        return self.cov_xy.device

    def __getitem__(self, index: object) -> Statistics:
        """A part of the batch."""
        if not self.batch:
            raise IndexError("these statistics have no batch dimension")
        take = pick(self.batch, index)
        return Statistics(*(take(getattr(self, f.name)) for f in fields(self)))

    def reshape(self, *batch: int) -> Statistics:
        """The same problems under other leading dimensions."""
        return Statistics(
            *((t := getattr(self, f.name)).reshape(*batch, *t.shape[len(self.batch) :]) for f in fields(self))
        )

    def expand(self, *batch: int) -> Statistics:
        """The same problems, repeated without a copy along new or unit leading dimensions."""
        return Statistics(
            *((t := getattr(self, f.name)).expand(*batch, *t.shape[len(self.batch) :]) for f in fields(self))
        )

    def swapped(self) -> Statistics:
        """The same problems with x and y exchanged."""
        return Statistics(self.cov_yy, self.cov_xy.mT, self.cov_xx, self.mean_y, self.mean_x, self.count, self.epsilon)

    def combine(self, weights: Tensor) -> Statistics:
        r"""The statistics of the last batch dimension's b blocks put together, each counted ``weights`` times.

        .. math:: W = \sum_b c_b W_b,\quad \bar x = \tfrac1W\sum_b c_b W_b \bar x_b,\quad
                  S = \tfrac1W\sum_b c_b W_b\,(S_b + \bar x_b\bar x_b^\top) - \bar x\bar x^\top

        about the mean of all blocks, or, where their means differ by far more than they spread, of each combination.
        For merging, folds, bootstrap, jackknife.

        Args:
            weights: (r, b) non-negative multiplicities c; blocks (…, b) give statistics (…, r).

        Raises:
            ValueError: a negative weight. ShapeError: another number of blocks.
            StatisticsError: the blocks' counts are not known, or a combination has no weight.
        """
        weights = torch.as_tensor(weights, dtype=torch.float64, device=self.device)
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError("weights must be non-negative and finite")
        if not self.batch or weights.ndim != 2 or weights.shape[1] != self.batch[-1]:
            raise ShapeError(
                f"weights must be (r, {self.batch[-1] if self.batch else 'b'}); got {tuple(weights.shape)}"
            )
        if not bool(self.count.isfinite().all()):
            raise StatisticsError("blocks can only be combined where their counts are known")
        share = weights * self.count[..., None, :]  # (…, r, b)
        total = share.sum(-1, keepdim=True)
        if not bool((total > 0).all()):
            raise StatisticsError("a combination of blocks has no weight")
        share = share / total
        everything = self.count / self.count.sum(-1, keepdim=True)
        means, sums = {}, {}
        for side, mean in (("x", self.mean_x), ("y", self.mean_y)):
            origin = (everything[..., None] * mean).sum(-2, keepdim=True)
            means[side] = origin, mean - origin, share @ (mean - origin)  # origin, of blocks, of combinations
        apart = any(
            bool((means[i][1].square() > 256 * cov.diagonal(dim1=-2, dim2=-1)).any())
            for i, cov in (("x", self.cov_xx), ("y", self.cov_yy))
        )
        for i, j, cov in (("x", "x", self.cov_xx), ("x", "y", self.cov_xy), ("y", "y", self.cov_yy)):
            if apart:  # Σ_b share_b (x̄_b − x̄)(ȳ_b − ȳ)ᵀ: as many products again, but nothing cancels
                u, v = (means[k][1][..., None, :, :] - means[k][2][..., :, None, :] for k in (i, j))
                mixed = (share @ cov.flatten(-2)).unflatten(-1, cov.shape[-2:])
                sums[i + j] = mixed.add_((u * share[..., None]).mT @ v)
                continue
            second = cov + means[i][1][..., :, None] * means[j][1][..., None, :]
            mixed = (share @ second.flatten(-2)).unflatten(-1, cov.shape[-2:])
            sums[i + j] = mixed.sub_(means[i][2][..., :, None] * means[j][2][..., None, :])
        return Statistics(
            sums["xx"],
            sums["xy"],
            sums["yy"],
            means["x"][0] + means["x"][2],
            means["y"][0] + means["y"][2],
            total[..., 0],
            self.epsilon.amax(-1, keepdim=True).expand(total.shape[:-1]),
        )

    def about_zero(self) -> Statistics:
        """The raw second moments E[xxᵀ], E[xyᵀ], E[yyᵀ] in place of the covariances, with means of zero."""

        def outer(a: Tensor, b: Tensor) -> Tensor:
            return a[..., :, None] * b[..., None, :]

        x, y = self.mean_x, self.mean_y
        return Statistics(
            self.cov_xx + outer(x, x),
            self.cov_xy + outer(x, y),
            self.cov_yy + outer(y, y),
            torch.zeros_like(x),
            torch.zeros_like(y),
            self.count,
            self.epsilon,
        )

    def _check(self) -> None:
        for f in fields(self):
            if f.name != "count" and not bool(getattr(self, f.name).isfinite().all()):
                raise NotFiniteError(f"{f.name} holds NaN or Inf")
        reach = {}
        slack = 1 + 64 * self.epsilon[..., None, None]
        for name in ("cov_xx", "cov_yy"):
            cov = getattr(self, name)
            variance = cov.diagonal(dim1=-2, dim2=-1)
            if bool((variance < 0).any()):
                raise StatisticsError(f"{name} has a negative variance on its diagonal")
            reach[name] = variance.sqrt()
            both = reach[name][..., :, None] * reach[name][..., None, :]
            if bool(((cov - cov.mT).abs() > 64 * self.epsilon[..., None, None] * both).any()):
                raise StatisticsError(f"{name} is not symmetric")
            if bool((cov.abs() > slack * both).any()):
                raise StatisticsError(f"{name} is indefinite: a covariance exceeds the root of its two variances")
        both = reach["cov_xx"][..., :, None] * reach["cov_yy"][..., None, :]
        if bool((self.cov_xy.abs() > slack * both).any()):
            raise StatisticsError("cov_xy does not fit cov_xx and cov_yy: a correlation exceeds 1")


def pick(batch: torch.Size, index: Any) -> Callable[[Tensor], Tensor]:
    """What indexing the batch dimensions alone takes from a tensor that has more after them."""
    where = torch.arange(batch.numel()).view(batch)[index]

    def take(t: Tensor) -> Tensor:
        rest = t.shape[len(batch) :] if t.shape[: len(batch)] == batch else t.shape[1:]
        return t.reshape(batch.numel(), *rest)[where.to(t.device)]

    return take


_DIMS = {"cov_xx": 2, "cov_xy": 2, "cov_yy": 2, "mean_x": 1, "mean_y": 1, "count": 0, "epsilon": 0}
