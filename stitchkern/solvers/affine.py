"""The result of every direct solver: an affine map, or a batch of them, and how well it fits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError, StatisticsError
from stitchkern.statistics import Statistics, pick


@dataclass(frozen=True, repr=False)
class AffineMap:
    r"""ŷ = M x + b, fitted to moments.

    One problem has plain numbers below; a batch (…) of problems has tensors (…) in their place, and is indexed like
    one: ``maps[i]``.

    Attributes:
        weight: M (…, q, p), float64.
        bias: b (…, q), float64.
        rank: of M: at most the directions of x that carried information, q, and the rank asked for.
        dropped: directions of x whose variance the statistics cannot tell from rounding (dead and duplicated features
            among them); the map ignores them.
        residual: E‖M x + b − y‖², in squared units of y, summed over its features (weighted, where targets are).
        residual_error: what rounding of the moments may have added to or taken from ``residual`` (a first-order bound):
            where it is not small beside ``residual``, the fit is known no better than that.
        r2: 1 − residual / E‖y − ȳ‖²; 1 where y is constant and fitted exactly.
        method: the road taken: ``"cholesky"`` and ``"eigh"`` (from covariances), ``"qr"``, ``"refined"``, …; of a batch
            a tuple, in the order of its flattened problems.
        error: estimate of the relative error of ``weight`` that rounding of the statistics causes,
            ‖δM D‖_F / ‖M D‖_F with D the standard deviations of x (of what was kept, where directions were dropped).
        loss_increase: residual minus that of the unconstrained least-squares map, for maps that were moved from it.
        factors: (A (…, q, k), B (…, k, p)) with M = A B, where the solver made the map that way.
    """

    weight: Tensor
    bias: Tensor
    rank: Any
    dropped: Any
    residual: Any
    residual_error: Any
    r2: Any
    method: Any
    error: Any = float("nan")
    loss_increase: Any = 0.0
    factors: tuple[Tensor, Tensor] | None = None

    @property
    def batch(self) -> torch.Size:
        """The leading dimensions; empty for one map."""
        return self.weight.shape[:-2]

    def __len__(self) -> int:
        if not self.batch:
            raise TypeError("this is one map, not a batch: it has no len()")
        return self.batch[0]

    def __getitem__(self, index: Any) -> AffineMap:
        """A part of the batch: one map, or a smaller batch."""
        if not self.batch:
            raise IndexError("this is one map, not a batch")
        take = pick(self.batch, index)
        part: dict[str, Any] = {
            f.name: take(value) if isinstance(value := getattr(self, f.name), Tensor) else value for f in fields(self)
        }
        part["method"] = tuple(self.method[i] for i in take(torch.arange(self.batch.numel())).flatten().tolist())
        if self.factors is not None:
            part["factors"] = (take(self.factors[0]), take(self.factors[1]))
        return type(self)(**part)._settled()

    def __call__(self, x: Tensor, channel_dim: int | None = None) -> Tensor:
        """M x + b over the channel dimension (1 for 4-D, the last one otherwise), in x's dtype.

        A batch of maps takes x (…, n, p), or (n, p) for all of them.

        Raises:
            ShapeError: x does not have p channels there. TypeError: x is not of a floating-point type.
        """
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor; got {x.dtype}")
        dim = -1 if self.batch else (1 if x.ndim == 4 else -1) if channel_dim is None else channel_dim
        p = self.weight.shape[-1]
        if x.ndim == 0 or x.shape[dim] != p:
            raise ShapeError(f"x must have {p} channels in dimension {dim}; got {tuple(x.shape)}")
        weight, bias = self.weight.to(x), self.bias.to(x)
        if self.batch:
            return x @ weight.mT + bias[..., None, :]
        return torch.nn.functional.linear(x.movedim(dim, -1), weight, bias).movedim(-1, dim)

    def to_module(
        self,
        *,
        spatial: bool | None = None,
        low_rank: bool = False,
        sparse: float | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Any:
        """The map as a trainable layer with the same weights.

        Args:
            spatial: None gives a :class:`stitchkern.nn.Stitch`, which serves (n, p), (n, t, p) and (n, p, h, w) alike
                and takes the ``options``; True a plain ``torch.nn.Conv2d(p, q, 1)``; False a ``torch.nn.Linear(p, q)``.
            low_rank: a bottleneck of ``rank`` channels instead (two layers): a :class:`stitchkern.nn.LowRankStitch`, or
                a ``torch.nn.Sequential`` of two plain layers.
            sparse: a :class:`stitchkern.nn.SparseStitch` of the entries whose magnitude is above this number instead; 0
                keeps every non-zero.
            dtype: of the parameters.

        Raises:
            ValueError: this is a batch of maps, or ``sparse`` beside ``low_rank`` or ``spatial``.
        """
        from stitchkern.nn import LowRankStitch, SparseStitch, Stitch

        if self.batch:
            raise ValueError("a batch of maps has no one layer; take one of them, maps[i]")
        if sparse is not None:
            if low_rank or spatial is not None:
                raise ValueError("sparse goes with neither low_rank nor spatial: a sparse stitch takes all layouts")
            return SparseStitch.from_dense(self, threshold=sparse, dtype=dtype, **options)
        bias = self.bias.to(dtype)
        if not low_rank:
            if spatial is None:
                return Stitch.from_affine(self.weight.to(dtype), bias, **options)
            return _plain(self.weight.to(dtype), bias, spatial)
        up, down = (t.to(dtype) for t in self.balanced_factors())
        if spatial is None:
            return LowRankStitch.from_factors(up, down, bias, **options)
        return torch.nn.Sequential(_plain(down, None, spatial), _plain(up, bias, spatial))

    def balanced_factors(self) -> tuple[Tensor, Tensor]:
        """A (q, k), B (k, p) with M = A B; column i of A and row i of B have one norm.

        Those that the solver found where there are such, otherwise from an SVD of M with columns of unit norm, so that
        features of small scale keep their part; k = max(rank, 1).
        """
        if self.factors is None:
            columns = self.weight.square().sum(0).sqrt()
            columns = torch.where(columns > 0, columns, 1.0)
            u, s, v = torch.linalg.svd(self.weight / columns, full_matrices=False)
            k = max(int(self.rank), 1)
            a, b = u[:, :k] * s[:k], v[:k] * columns
        else:
            a, b = self.factors
        norms = a.square().sum(0).sqrt(), b.square().sum(1).sqrt()
        both = (norms[0] > 0) & (norms[1] > 0)
        root = torch.where(both, norms[1] / torch.where(both, norms[0], 1.0), 1.0).sqrt()
        return a * root, b / root[:, None]

    def __repr__(self) -> str:
        q, p = self.weight.shape[-2:]
        if self.batch:
            r2 = f"{float(self.r2.min()):.6g}…{float(self.r2.max()):.6g}" if self.r2.numel() else "–"
            return f"{type(self).__name__}(batch={tuple(self.batch)}, p={p}, q={q}, r2={r2})"
        return (
            f"{type(self).__name__}(p={p}, q={q}, rank={self.rank}, r2={self.r2:.6g}, residual={self.residual:.6g}, "
            f"method={self.method!r}, weight_error={self.error:.1e})"
        )

    def _settled(self) -> AffineMap:
        """Plain numbers where there is no batch."""
        if self.batch:
            return self
        plain: dict[str, Any] = {
            f.name: value.item()
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and value.ndim == 0
        }
        if isinstance(self.method, tuple):
            plain["method"] = self.method[0]
        return replace(self, **plain)


def settle(
    stats: Statistics,
    weight: Tensor,
    *,
    rank: Tensor,
    dropped: Tensor | int,
    method: tuple[str, ...] | str,
    error: Tensor,
    explained: Tensor | None = None,
    sums: Tensor | None = None,
    kind: type[AffineMap] = AffineMap,
    **more: Any,
) -> Any:
    """The map with this weight and its fit to ``stats``.

    Where they are known: ``explained``, total − residual, and ``sums`` (…, 2, q), M x̄ and |M| σ.
    """
    total = stats.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1)
    if explained is None:
        explained = 2 * (weight.mT * stats.cov_xy).sum((-2, -1)) - ((weight @ stats.cov_xx) * weight).sum((-2, -1))
    residual = (total - explained).clamp(min=0.0)  # the exact value is a mean of squares
    if sums is None:
        deviation = stats.cov_xx.diagonal(dim1=-2, dim2=-1).sqrt()
        sums = torch.stack(
            [(m @ t[..., None])[..., 0] for m, t in ((weight, stats.mean_x), (weight.abs(), deviation))], -2
        )
    # Σⱼ |Mₖⱼ| σⱼ + σₖ: what rounding of a covariance acts on
    reach = sums[..., 1, :] + stats.cov_yy.diagonal(dim1=-2, dim2=-1).sqrt()
    batch = weight.shape[:-2]
    if not bool(
        (residual.isfinite() & total.isfinite() & ~reach.isnan().any(-1)).all()
    ):  # of weight too: reach is |M| σ
        raise StatisticsError("the map or its residual leaves the range of float64; scale the features")
    impossible = explained - total > 1e-6 * total + 800 * stats.epsilon * reach.square().sum(-1)
    if bool(impossible.any()):
        raise StatisticsError("the statistics are indefinite: x would explain more of y than there is")
    return kind(
        weight=weight,
        bias=stats.mean_y - sums[..., 0, :],
        rank=rank,
        dropped=torch.as_tensor(dropped, device=weight.device).expand(batch),
        residual=residual,
        residual_error=8 * stats.epsilon * reach.square().sum(-1),
        r2=torch.where(total > 0, 1.0 - residual / torch.where(total > 0, total, 1.0), 1.0),
        method=(method,) * batch.numel() if isinstance(method, str) else method,
        error=error,
        **more,
    )._settled()


def _plain(weight: Tensor, bias: Tensor | None, spatial: bool) -> torch.nn.Module:
    q, p = weight.shape
    options: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    plain = torch.nn.Conv2d(p, q, 1, **options) if spatial else torch.nn.Linear(p, q, **options)
    with torch.no_grad():
        plain.weight.copy_(weight[:, :, None, None] if spatial else weight)
        if bias is not None:
            plain.bias.copy_(bias)  # type: ignore[union-attr]
    return plain
