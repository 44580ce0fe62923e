"""Least squares with weights that follow the data and the fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from stitchkern.moments import Moments
from stitchkern.rows import batch_views
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.linear import least_squares
from stitchkern.solvers.roads import Reader
from stitchkern.weighting import Weighting


def reweighted_least_squares(
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    weighting: Weighting,
    *,
    iterations: int = 1,
    tolerance: float = 1e-6,
    ridge: float = 0.0,
    precision: str = "highest",
    channel_dim: int | None = None,
) -> AffineMap:
    r"""Least squares with weights that depend on the data and on the fit: E Σ_k w_k (M x + b − y)_k² (IRLS).

    Each iteration is one pass: the weights follow from the residuals of the last map (of the plain least-squares map
    at first), then the weighted problem is solved. Where ``weighting`` gives one weight per entry (n, q), each target
    has a covariance of its own, which takes q times the work and O(q p²) memory.

    Args:
        batches: as for :func:`lstsq`, to be read ``iterations`` + 1 times. A weight that comes with them multiplies.
        weighting: :func:`power`, :func:`threshold`, :func:`huber`, :func:`cauchy`, or a function of your own; not
            negative. Two passes suffice where it ignores the residual.
        iterations: at most so many reweightings.
        tolerance: stops early where the map moves by less, relative.

    Returns:
        The map; ``residual`` and ``r2`` are those of the last weighted problem.

    Raises:
        NotFiniteError: weights that are negative or not finite. Others as :func:`lstsq`.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    read = Reader(batches)
    first: Moments | None = None
    for x, y, weight in read():
        if first is None:
            dim = (1 if x.ndim == 4 else -1) if channel_dim is None else channel_dim
            first = Moments(x.shape[dim], y.shape[dim], precision=precision)
        first.update(x, y, weight=weight, channel_dim=channel_dim)
    if first is None or first.q is None:
        raise ValueError("batches hold nothing")
    p, q = first.p, first.q
    fit = least_squares(first, ridge=ridge)
    for _ in range(iterations):
        whole: Moments | None = None
        each: list[Moments] = []
        for x, y, weight in read():
            x4, y4, w3 = batch_views(x, y, weight, p, q, channel_dim)
            assert y4 is not None
            flat_y = y4.double().reshape(-1, q)
            flat_x = x4.double().reshape(-1, p)
            given = weighting(flat_x, flat_y, flat_y - fit(flat_x))
            if w3 is not None:
                given = given * (w3.reshape(-1) if given.ndim == 1 else w3.reshape(-1, 1))
            rows = x4.shape[:3]
            if given.shape == (len(flat_x),):
                whole = whole or Moments(p, q, precision=precision)
                whole.update(x4, y4, weight=given.reshape(rows), channel_dim=-1)
            elif given.shape == flat_y.shape:
                each = each or [Moments(p, 1, precision=precision) for _ in range(q)]
                for k, m in enumerate(each):
                    m.update(x4, y4[..., k : k + 1], weight=given[:, k].reshape(rows), channel_dim=-1)
            else:
                raise ValueError(
                    f"weighting must give ({len(flat_x)},) or {tuple(flat_y.shape)}; got {tuple(given.shape)}"
                )
        new = least_squares(whole, ridge=ridge) if whole is not None else _together(least_squares(each, ridge=ridge))
        moved, size = (new.weight - fit.weight).norm(), new.weight.norm()
        fit = new
        if moved <= tolerance * size:
            break
    return fit


def _together(each: AffineMap) -> AffineMap:
    """One map from a batch of maps to single targets."""
    residual, spread = each.residual, torch.where(each.r2 < 1, each.residual / (1 - each.r2), each.residual)
    total = float(spread.sum())
    return replace(
        each[0],
        weight=each.weight[:, 0],
        bias=each.bias[:, 0],
        rank=min(int(each.rank.sum()), each.weight.shape[-1] - int(each.dropped.min())),
        dropped=int(each.dropped.max()),
        residual=float(residual.sum()),
        residual_error=float(each.residual_error.sum()),
        r2=1 - float(residual.sum()) / total if total > 0 else 1.0,
        method="eigh" if "eigh" in each.method else "cholesky",
        error=float(each.error.max()),
    )
