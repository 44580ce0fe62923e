"""Least squares with weights that follow the data and the fit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError, StatisticsError
from stitchkern.moments import Moments
from stitchkern.rows import batch_views, pieces
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.linear import least_squares
from stitchkern.solvers.roads import Feed, Reader, collect
from stitchkern.weighting import RULES, Rule


def reweighted_least_squares(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    weighting: Rule,
    *,
    iterations: int = 1,
    tolerance: float = 1e-6,
    ridge: float = 0.0,
    precision: str = "highest",
    channel_dim: int | None = None,
) -> AffineMap:
    r"""Least squares with weights that depend on the data and on the fit: E Σ_k w_k (M x + b − y)_k² (IRLS, one step).

    Each iteration is one pass: the weights follow from the residuals of the last map (of the plain least-squares map
    at first), then the weighted problem is solved. Where ``weighting`` gives one weight per entry (n, q), each target
    has a covariance of its own, which takes q times the work and O(q p²) memory.

    Args:
        batches: as for :func:`lstsq`; read ``iterations`` + 1 times, once where the weights do not need a fit. A weight
            that comes with them multiplies.
        weighting: of :mod:`stitchkern.weighting`, :func:`power`, :func:`threshold`, :func:`huber`, :func:`cauchy`, or a
            function of your own (x, y, residual) -> weights (n,) or (n, q), not negative.
        iterations: at most so many reweightings; robust weights (huber, cauchy) take about ten to settle.
        tolerance: stops early where the map moves by less, relative.
        ridge, precision, channel_dim: as for :func:`lstsq`.

    Returns:
        The map; ``residual`` and ``r2`` are those of the last weighted problem (entry by entry: of each target's own),
        not to be compared with unweighted ones. A target none of whose entries has weight gets a zero row.

    Raises:
        NotFiniteError: weights that are negative or not finite. StatisticsError: all weights are zero.
        ShapeError: weights of another shape. ValueError: no iterations. Others as :func:`lstsq`.
    """
    feed = Reader(batches).feed(channel_dim)
    fits = solve_reweighted(
        feed, weighting, iterations=iterations, tolerance=tolerance, ridge=ridge, precision=precision
    )
    if not fits:
        raise ValueError("batches hold nothing")
    return fits[None]


def solve_reweighted(
    feed: Feed,
    weighting: Rule,
    *,
    iterations: int = 1,
    tolerance: float = 1e-6,
    ridge: float = 0.0,
    precision: str = "highest",
) -> dict[Hashable, AffineMap]:
    """`reweighted_least_squares` for many problems that share passes over their data."""
    if not callable(weighting) or isinstance(weighting, type) or weighting in RULES:
        raise TypeError(
            "weighting must be a rule such as stitchkern.weighting.power(4), or a function (x, y, residual)"
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    fits: dict[Hashable, AffineMap] = {}
    if getattr(weighting, "needs_fit", True):
        plain = collect(feed, lambda _, p, q: Moments(p, q, precision=precision))
        fits = {key: least_squares(m, ridge=ridge) for key, m in plain.items()}
    else:
        iterations = 1
    settled: set[Hashable] = set()
    for _ in range(iterations):

        def make(key: Hashable, p: int, q: int) -> WeightedMoments | None:
            return None if key in settled else WeightedMoments(p, q, weighting, fits.get(key), precision=precision)

        for key, taker in collect(feed, make).items():
            new, old = taker.solve(ridge), fits.get(key)
            fits[key] = new
            if old is not None and (new.weight - old.weight).norm() <= tolerance * new.weight.norm():
                settled.add(key)
        if settled == fits.keys():
            break
    return fits


class WeightedMoments:
    """Moments whose weights follow from each batch: one set for weights per row, one per target for weights per entry.

    ``fit``: the map whose residuals the rule sees; None: zeros.
    """

    def __init__(self, p: int, q: int, weighting: Rule, fit: AffineMap | None, *, precision: str = "highest") -> None:
        self._p, self._q, self._weighting, self._fit = p, q, weighting, fit
        self._precision = precision
        self._parts: list[Moments] = []

    def update(
        self, x: Tensor, y: Tensor, *, weight: Tensor | None = None, channel_dim: int | None = None
    ) -> WeightedMoments:
        """Add a batch, as :meth:`Moments.update`. Returns self."""
        x4, y4, w3 = batch_views(x, y, weight, self._p, self._q, channel_dim)
        assert y4 is not None
        for piece in pieces(x4):
            xp, yp = x4[piece], y4[piece]
            flat_x, flat_y = (t.double().reshape(-1, t.shape[-1]) for t in (xp, yp))
            residual = torch.zeros_like(flat_y) if self._fit is None else flat_y - self._fit(flat_x)
            given = torch.as_tensor(self._weighting(flat_x, flat_y, residual))
            if given.shape not in ((len(flat_x),), flat_y.shape):
                raise ShapeError(
                    f"weighting must give ({len(flat_x)},) or {tuple(flat_y.shape)}; got {tuple(given.shape)}"
                )
            columns = given[:, None] if given.ndim == 1 else given
            if w3 is not None:
                outer = w3[piece].reshape(
                    -1, 1
                )  # rows of weight zero are not looked at, whatever the rule made of them
                columns = torch.where(outer > 0, columns * outer, 0.0)
            if not self._parts:
                each = self._q if given.ndim == 1 else 1
                self._parts = [Moments(self._p, each, precision=self._precision) for _ in range(columns.shape[1])]
            if len(self._parts) != columns.shape[1]:
                raise ShapeError("weighting must give weights per row or per entry, the same for every batch")
            rows_x, rows_y = (t.reshape(-1, t.shape[-1]) for t in (xp, yp))  # tokens may stand beside pixels
            for k, m in enumerate(self._parts):
                m.update(rows_x, rows_y if m.q == self._q else rows_y[:, k : k + 1], weight=columns[:, k])
        return self

    def solve(self, ridge: float = 0.0) -> AffineMap:
        """The map of least weighted error; zero for a target none of whose entries has weight."""
        if len(self._parts) == 1:
            if self._parts[0].count <= 0:
                raise StatisticsError("all weights are zero")
            return least_squares(self._parts[0], ridge=ridge)
        used = [k for k, m in enumerate(self._parts) if m.count > 0]
        if not used:
            raise StatisticsError("all weights are zero")
        each = least_squares([self._parts[k] for k in used], ridge=ridge)
        residual = float(each.residual.sum())
        total = sum(float(self._parts[k].cov_yy) for k in used)
        weight, bias = each.weight.new_zeros(self._q, self._p), each.bias.new_zeros(self._q)
        weight[used], bias[used] = each.weight[:, 0], each.bias[:, 0]
        return replace(
            each[0],
            weight=weight,
            bias=bias,
            rank=int(torch.linalg.matrix_rank(weight)),
            dropped=int(each.dropped.max()),
            residual=residual,
            residual_error=float(each.residual_error.sum()),
            r2=1 - residual / total if total > 0 else 1.0,
            method="eigh" if "eigh" in each.method else "cholesky",
            error=float(each.error.max()),
        )
