"""Least squares from the data itself, by the road that its conditioning needs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.moments import Moments
from stitchkern.qr import StreamingQR
from stitchkern.rows import batch_views, pieces
from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.solvers.factor import Factor
from stitchkern.solvers.linear import least_squares
from stitchkern.statistics import Statistics

ROADS = ("auto", "moments", "refine", "qr")


class Accumulator(Protocol):
    """What takes batches: Moments, StreamingQR, Refinement."""

    def update(self, x: Tensor, y: Tensor) -> Any: ...


Feed = Callable[[Callable[[Any, int, int], "Accumulator | None"]], None]
"""One pass over the data: asks ``make(key, p, q)`` once per problem for what takes its batches (None: skip it)."""


def lstsq(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    road: str = "auto",
    ridge: float = 0.0,
    rank: int | None = None,
    target_weight: Tensor | None = None,
    precision: str = "highest",
    tolerance: float | None = None,
    channel_dim: int | None = None,
) -> AffineMap:
    r"""The affine map that minimises E‖M x + b − y‖² + ridge·‖M‖²_F, from batches of data.

    Roads:

    - ``"moments"``: one pass, :class:`Moments` and :func:`least_squares`. Error about κ(x)² times the rounding of the
      products.
    - ``"refine"``: a second pass measures what the map leaves, in float64, and solves for the correction with the
      factorisation that is there: E[(x − x̄) rᵀ] → δM (Björck 1967, on the normal equations). Each pass multiplies the
      error by κ² times that rounding: it gains digits as long as that is below 1.
    - ``"qr"``: :class:`StreamingQR` in float64, right up to κ(x) of 1e10; four times the multiplications.
    - ``"auto"``: moments first; where their map drops directions that are not dead, or its estimated ``error`` is above
      ``tolerance``, another pass: refine where that will do, QR where it will not or did not.

    Args:
        batches: an iterable of (x, y) or (x, y, weight), as :meth:`Moments.update` takes them, or a function that
            returns one. ``"refine"`` reads it twice, ``"auto"`` where it must, and then it must hold the same data: no
            random augmentation, no generator.
        road: above.
        ridge, rank, target_weight: as for :func:`least_squares`.
        precision: of the moments' products.
        tolerance: estimated relative error of the weights that ``"auto"`` accepts from moments and from refinement; by
            default 1e-6 where the products were float64, 1e-4 where they were float32.
        channel_dim: as for :meth:`Moments.update`.

    Returns:
        The map; ``method`` says which road it took (``"cholesky"``, ``"eigh"``, ``"refined"``, ``"qr"``).

    Raises:
        ValueError: unknown road, no batches, or batches that can be read only once where they must be read again.
        StatisticsError: another pass held other data.
        Others as :meth:`Moments.update` and :func:`least_squares`.
    """
    feed = Reader(batches).feed(channel_dim)
    options = {"ridge": ridge, "rank": rank, "target_weight": target_weight}
    fits = solve_by_road(feed, road=road, precision=precision, tolerance=tolerance, **options)
    if not fits:
        raise ValueError("batches hold nothing")
    return fits[None]


def solve_by_road(
    feed: Feed,
    *,
    road: str,
    precision: str = "highest",
    tolerance: float | None = None,
    **options: Any,
) -> dict[Hashable, AffineMap]:
    """`lstsq` for many problems that share passes over their data: `feed` makes one pass, for as many as there are."""
    if road not in ROADS:
        raise ValueError(f"road must be one of {', '.join(ROADS)}; got {road!r}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive; got {tolerance}")
    if road == "qr":
        return {
            key: least_squares(qr, **options) for key, qr in collect(feed, lambda _, p, q: StreamingQR(p, q)).items()
        }
    moments = collect(feed, lambda _, p, q: Moments(p, q, precision=precision))
    fits: dict[Hashable, AffineMap] = {key: least_squares(m, **options) for key, m in moments.items()}
    if road == "moments":
        return fits

    plain = options.get("rank") is None and options.get("target_weight") is None
    refine, exact = {}, set()
    for key, fit in fits.items():
        lost = fit.dropped > int((moments[key].cov_xx.diagonal() == 0).sum())
        allowed = _allowed(tolerance, moments[key])
        if road == "auto" and not lost and fit.error <= allowed:
            continue
        # a pass of refinement multiplies the error by what it is now
        if plain and not lost and fit.error < 1 and (road == "refine" or fit.error**2 <= allowed):
            refine[key] = Refinement(moments[key], fit, options.get("ridge", 0.0))
        elif road == "refine":
            raise StatisticsError(
                "these moments cannot be refined: directions are lost in their rounding, or rank or target_weight is "
                "given; use road='qr'"
            )
        else:
            exact.add(key)
    if refine:
        for key, taker in _again(feed, moments, refine.get).items():
            fits[key] = taker.result()
            if road == "auto" and fits[key].error > _allowed(tolerance, moments[key]):
                exact.add(key)
    if exact:
        factors = _again(
            feed, moments, lambda key: StreamingQR(moments[key].p, moments[key].q or 0) if key in exact else None
        )
        fits |= {key: least_squares(qr, **options) for key, qr in factors.items()}
    return fits


def _allowed(tolerance: float | None, m: Moments) -> float:
    return tolerance if tolerance is not None else 1e-6 if m.epsilon <= 2.0**-53 else 1e-4


def _again(feed: Feed, moments: dict[Hashable, Moments], make: Callable[[Hashable], Any]) -> dict[Hashable, Any]:
    """Another pass, for the problems that `make` gives something for; `StatisticsError` where the data changed."""
    takers = collect(feed, lambda key, p, q: make(key))
    for key, m in moments.items():
        if make(key) is None:
            continue
        taker = takers.get(key)
        if taker is None or taker.rows != m.rows:
            seen = 0 if taker is None else taker.rows
            raise StatisticsError(f"the second pass held {seen} rows, the first {m.rows}: not the same data")
        for name in ("x", "y"):
            spread = getattr(m, f"cov_{name}{name}").diagonal().sqrt()
            away = (getattr(taker, f"mean_{name}") - getattr(m, f"mean_{name}")).abs()
            share = torch.where(spread > 0, away / torch.where(spread > 0, spread, 1.0), 0.0).max()
            if share > max(1e-5, 64 * m.epsilon):
                raise StatisticsError(
                    f"the second pass held other data than the first (means of {name} differ by {float(share):.1g} "
                    "standard deviations): turn random augmentation off, and shuffling with drop_last; road='qr' and "
                    "road='moments' read once"
                )
    return takers


def collect(feed: Feed, make: Callable[[Any, int, int], Any]) -> dict[Hashable, Any]:
    """One pass; what took each problem's batches."""
    takers: dict[Hashable, Any] = {}

    def once(key: Hashable, p: int, q: int) -> Any:
        taker = make(key, p, q)
        if taker is not None:
            takers[key] = taker
        return taker

    feed(once)
    return takers


class Refinement:
    r"""One step of iterative refinement of a map, from a second pass over the same data.

    .. math:: G = E[(x-\bar x)\,r^\top],\quad r = y - M x - b,\qquad
              \delta M^\top = (C_{xx} + \mathrm{ridge})^{-1}(G - \mathrm{ridge}\,M^\top)

    r and G in float64. The factorisation is that of the moments, rounding and all: it only steers.
    """

    def __init__(self, m: Moments, fit: AffineMap, ridge: float = 0.0) -> None:
        self._stats = Statistics.of(m)
        self._fit, self._ridge = fit, float(ridge)
        self._cross = torch.zeros_like(self._stats.cov_xy)
        self._mean = torch.zeros_like(self._stats.mean_y)
        self._square, self._weight = 0.0, 0.0
        self._sums = torch.zeros_like(self._stats.mean_x), torch.zeros_like(self._stats.mean_y)
        self.rows = 0

    def update(
        self, x: Tensor, y: Tensor, *, weight: Tensor | None = None, channel_dim: int | None = None
    ) -> Refinement:
        """Add a batch, as to the moments before. Returns self."""
        fit, stats = self._fit, self._stats
        x4, y4, w3 = batch_views(x, y, weight, stats.p, stats.q, channel_dim)
        assert y4 is not None
        self.rows += x4.shape[:3].numel()
        for part in pieces(x4):
            centred = x4[part].double().reshape(-1, stats.p) - stats.mean_x
            target = y4[part].double().reshape(-1, stats.q) - stats.mean_y
            w = torch.ones(len(target), dtype=torch.float64, device=target.device)
            if w3 is not None:
                w = w3[part].reshape(-1)
                centred, target, w = centred[w > 0], target[w > 0], w[w > 0]
            left = target - centred @ fit.weight.T
            weighted = left * w[:, None]
            self._weight += float(w.sum())
            for total, rows in zip(self._sums, (centred, target), strict=True):
                total += w @ rows
            self._cross += centred.T @ weighted
            self._mean += weighted.sum(0)
            self._square += float((left * weighted).sum())
        return self

    @property
    def mean_x(self) -> Tensor:
        """Of this pass."""
        return self._stats.mean_x + self._sums[0] / self._weight

    @property
    def mean_y(self) -> Tensor:
        return self._stats.mean_y + self._sums[1] / self._weight

    def result(self) -> AffineMap:
        """The corrected map, with a bias and a residual that were measured rather than derived."""
        stats, fit = self._stats, self._fit
        mean = self._mean / self._weight  # of r about the moments' own means
        factor = Factor(
            stats.cov_xx[None],
            torch.full((1,), self._ridge, dtype=torch.float64, device=stats.device),
            stats.epsilon[None],
        )
        gradient = self._cross / self._weight - self._ridge * fit.weight.T
        change = factor.back(factor.forward(gradient[None]))[0].T
        weight = fit.weight + change
        scale = stats.cov_xx.diagonal().sqrt()
        moved, size = ((t * scale).square().sum().sqrt() for t in (change, weight))
        before = float(moved / size) if size > 0 else 0.0  # what the map was off by
        refined = settle(
            stats,
            weight,
            rank=torch.tensor(fit.rank),
            dropped=fit.dropped,
            method="refined",
            # contracted by at most what it was off by or what the rounding of the factor allows, whichever is worse
            error=torch.tensor(max(before * max(before, min(fit.error, 1.0)), 2.0**-52 * float(factor.inverse[0]))),
        )
        total = float(stats.cov_yy.trace())
        # ‖r‖² of the new map: r′ = r − δM (x − x̄) − mean
        residual = self._square / self._weight - float(mean.square().sum())
        residual -= 2 * float((change.T * (self._cross / self._weight)).sum())
        residual += float(((change @ stats.cov_xx) * change).sum())
        residual = max(residual, 0.0)
        spread = (weight.abs() @ scale) + stats.cov_yy.diagonal().sqrt()
        reach = float(spread.square().sum().sqrt())
        return replace(
            refined,
            bias=refined.bias + mean,
            residual=residual,
            # of ‖r‖² measured, of the quadratic in δM, and of r = y − M x itself, whose terms are far larger than r
            residual_error=2.0**-50 * (self._square / self._weight)
            + 8 * float(stats.epsilon) * float(moved**2)
            + 2.0**-50 * (residual**0.5 * reach + 2.0**-50 * reach**2),
            r2=1 - residual / total if total > 0 else 1.0,
        )


def _channels(name: str, t: Any, channel_dim: int | None) -> int:
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.ndim < 2:
        what = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(
            f"batches must hold (x, y), {name} a floating-point tensor (n, c), (n, t, c) or (n, c, h, w); got {what}. "
            "Layers of models are matched by match_direct"
        )
    dim = (1 if t.ndim == 4 else -1) if channel_dim is None else channel_dim
    return int(t.shape[dim])


class Reader:
    """Batches as (x, y, weight), again and again; says so where they cannot be read again."""

    def __init__(self, batches: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self._batches, self._used = batches, False

    def __call__(self) -> Iterable[tuple[Tensor, Tensor, Tensor | None]]:
        source: Any = self._batches() if callable(self._batches) else self._batches
        if isinstance(source, Moments | StreamingQR | Tensor) or (
            isinstance(source, tuple) and source and isinstance(source[0], Tensor)
        ):
            raise TypeError("batches must be an iterable of (x, y), such as [(x, y)]; moments go to least_squares")
        if self._used and not callable(self._batches) and iter(source) is source:
            raise ValueError(
                "batches can be read only once, and must be read again here: pass a list, a DataLoader, or a function "
                "that returns an iterable"
            )
        self._used = True
        for batch in source:
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise TypeError(f"batches must hold (x, y) or (x, y, weight); got {type(batch).__name__}")
            x, y, *more = batch
            yield x, y, (more[0] if more else None)

    def feed(self, channel_dim: int | None) -> Feed:
        """Passes over one problem, named None."""

        def run(make: Callable[[Any, int, int], Any]) -> None:
            taker = None
            for x, y, weight in self():
                if taker is None:
                    p, q = (_channels(name, t, channel_dim) for name, t in (("x", x), ("y", y)))
                    taker = make(None, p, q)
                if taker is not None:
                    taker.update(x, y, weight=weight, channel_dim=channel_dim)

        return run
