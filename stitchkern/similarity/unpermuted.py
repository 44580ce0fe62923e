"""What permuting the samples does not change, index by index: what a road in `permuted` starts from.

A new index joins by a function with the options that it knows, and a line in the table at the end; without one the
index itself is called for every permutation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.similarity.canonical import leading
from stitchkern.similarity.distances import about_median, points, squared, tie_width, tiles, unit_rows
from stitchkern.similarity.features import epsilon_of, pair, spanned
from stitchkern.similarity.kernel_sums import sigma_of, some_distances
from stitchkern.similarity.permuted import Neighbours, Pairs, Products, Road, Value
from stitchkern.similarity.ranks import doubled_ranks
from stitchkern.similarity.rsa import all_distances
from stitchkern.similarity.shape import whitening
from stitchkern.similarity.whitening import Span, principal
from stitchkern.solvers.factor import Factor

if TYPE_CHECKING:
    from stitchkern.similarity.measure import Measure

#: bytes of n × n matrices that are kept: up to n = 8,192
_MEMORY = 1 << 30
#: time of a gathered entry of an n × n matrix, in multiplications
_GATHER = 30


def road_of(measure: Measure, x: Any, y: Any, value: Tensor) -> tuple[Road, Tensor] | None:
    """The road of this index and its value on it, where it has one that fits in memory and agrees with ``value``."""
    make = _ROADS.get(measure.name or "")
    if make is None or value.ndim:
        return None
    wanted = list(inspect.signature(make).parameters)[2:]
    if not measure.changed <= set(wanted):
        return None
    tx, ty = pair(x, y)
    road = make(tx, ty, **{name: measure.options[name] for name in wanted})
    if road is None:
        return None
    found = road(torch.arange(len(tx), device=tx.device)[None])[0].cpu()
    # not to the last digit: some indices take float32 products
    return (road, found) if bool((found - value).abs() <= 1e-6 * found.abs().clamp(min=road.unit)) else None


# ------------------------------------------------------------------------------------------ forms


def _fits(n: int, matrices: int = 2, size: int = 8) -> bool:
    return matrices * size * n * n <= _MEMORY


def _of_squares(a: Tensor, b: Tensor, value: Value, unit: float = 1.0) -> Road:
    """Indices of ‖AᵀPB‖²_F = Σ (AAᵀ)∘(PBBᵀPᵀ): by the cheaper side."""
    n, work = len(a), a.shape[1] * b.shape[1]
    if _fits(n) and _GATHER * n < work:
        return Pairs(a @ a.T, b @ b.T, value, unit)
    return Products(a, b, lambda m, _: value(m.square().sum((-2, -1))), unit)


def _of_nuclear(a: Tensor, b: Tensor, value: Value, unit: float = 1.0) -> Road:
    return Products(a, b, lambda m, _: value(torch.linalg.svdvals(m).sum(-1)), unit)


def _root(square: Tensor) -> Tensor:
    return torch.where(square > 0, square, 0.0).sqrt()


def _size(a: Tensor) -> Tensor:
    """‖AᵀA‖²_F"""
    return (a.T @ a).square().sum()


# ------------------------------------------------------------------------------------------ kernels


def _cka(x: Tensor, y: Tensor, kernel: str, bandwidth: Any, unbiased: bool, debiased: bool, space: str) -> Road | None:
    return _of_kernels(x, y, kernel, bandwidth, unbiased or debiased, normalised=True)


def _hsic(x: Tensor, y: Tensor, kernel: str, bandwidth: Any, unbiased: bool, debiased: bool, space: str) -> Road | None:
    return _of_kernels(x, y, kernel, bandwidth, unbiased or debiased, normalised=False)


def _of_kernels(x: Tensor, y: Tensor, kernel: str, bandwidth: Any, unbiased: bool, *, normalised: bool) -> Road | None:
    n = len(x)
    pairs = n * (n - 3) if unbiased else n * n
    if kernel == "linear":
        a, b = spanned(x), spanned(y)
        if not (_fits(n) and _GATHER * n < a.shape[1] * b.shape[1]):
            return _linear(a, b, unbiased, normalised)
        matrices = [a @ a.T, b @ b.T]
    else:
        if not _fits(n):
            return None
        matrices = [_kernel(name, t, kernel, bandwidth) for name, t in (("x", x), ("y", y))]
    for m in matrices:
        (_centre_u if unbiased else _centre)(m)
    sizes = math.prod(m.square().sum().sqrt().item() for m in matrices)
    scale = sizes if normalised else pairs
    return Pairs(matrices[0], matrices[1], lambda s: s / scale, 1.0 if normalised else sizes / pairs)


def _linear(a: Tensor, b: Tensor, unbiased: bool, normalised: bool) -> Road:
    """Of centred features: unbiased HSIC takes more than the covariance, Σᵢ ‖a_i‖² ‖b_π(i)‖²."""
    n = len(a)
    norms = [t.square().sum(1) for t in (a, b)]

    def hsic(square: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if not unbiased:
            return square / n**2
        joint, traces = (left * right).sum(-1), left.sum(-1) * right.sum(-1)
        return (square + traces / ((n - 1) * (n - 2)) - joint * n / (n - 2)) / (n * (n - 3))

    own = [hsic(_size(t), norm, norm) for t, norm in zip((a, b), norms, strict=True)]
    unit = math.prod(value.item() ** 0.5 for value in own)

    def value(m: Tensor, order: Tensor) -> Tensor:
        found = hsic(m.square().sum((-2, -1)), norms[0], norms[1][order])
        return found / unit if normalised else found

    return Products(a, b, value, 1.0 if normalised else unit)


def _kernel(name: str, t: Tensor, kernel: str, bandwidth: Any) -> Tensor:
    """K − 1 (n, n), which keeps the digits of a K close to 1 and is the same once it is centred."""
    sigma = sigma_of(bandwidth, name, some_distances(t))
    rows = about_median(t.double()) / sigma
    d = rows.new_empty(len(rows), len(rows))
    for a in range(0, len(rows), 512):
        d[a : a + 512] = squared(rows[a : a + 512], rows)
    return torch.expm1(d.mul_(-0.5) if kernel == "rbf" else d.sqrt_().neg_())


def _centre(m: Tensor) -> None:
    """H M H, in place."""
    mean = m.mean(0)
    m.sub_(mean).sub_(mean[:, None]).add_(mean.mean())


def _centre_u(m: Tensor) -> None:
    """U-centred (Székely and Rizzo 2014), in place: sums of products are then n(n − 3) times unbiased HSIC."""
    n = len(m)
    m.fill_diagonal_(0.0)
    sums = m.sum(0)
    m.sub_(sums / (n - 2)).sub_(sums[:, None] / (n - 2)).add_(sums.sum() / ((n - 1) * (n - 2)))
    m.fill_diagonal_(0.0)


# ------------------------------------------------------------------------------------------ distances between samples


def _rsa(x: Tensor, y: Tensor, metric: str, comparison: str) -> Road | None:
    if not _fits(len(x), 8 if comparison == "spearman" else 4):
        return None
    matrices = []
    for name, t in (("x", x), ("y", y)):
        d = all_distances(points(name, t, metric), metric)
        if comparison == "spearman":
            d = doubled_ranks(d, metric).double()
        matrices.append(_symmetric(d - d.mean(), len(x)))
    scale = math.prod(m.square().sum().sqrt().item() for m in matrices)
    return Pairs(matrices[0], matrices[1], lambda s: s / scale)


def _distance_correlation(x: Tensor, y: Tensor, unbiased: bool) -> Road | None:
    if not _fits(len(x), 4):
        return None
    rows = [points(name, t, "euclidean") for name, t in (("x", x), ("y", y))]
    matrices = [_symmetric(all_distances(r, "euclidean"), len(r)) for r in rows]
    for m in matrices:
        (_centre_u if unbiased else _centre)(m)
    scale = math.prod(m.square().sum().sqrt().item() for m in matrices)
    return Pairs(matrices[0], matrices[1], (lambda s: s / scale) if unbiased else (lambda s: _root(s / scale)))


def _symmetric(pairs: Tensor, n: int) -> Tensor:
    """(n, n) with zeros on the diagonal, of a value for each pair in the order of `all_distances`."""
    full, done = pairs.new_zeros(n, n), 0
    for i, j in tiles(n):
        tile = full[i, j]
        if i == j:
            above = torch.triu_indices(len(tile), len(tile), 1, device=pairs.device)
            tile[above[0], above[1]] = pairs[done : done + above.shape[1]]
            done += above.shape[1]
        else:
            tile.copy_(pairs[done : done + tile.numel()].view_as(tile))
            done += tile.numel()
    return full + full.T


# ------------------------------------------------------------------------------------------ what moments can express


def _cca(x: Tensor, y: Tensor) -> Road:
    u, v = Span.of("CCA", "x", x).basis, Span.of("CCA", "y", y).basis
    count = min(u.shape[1], v.shape[1])
    return _of_nuclear(u, v, lambda s: s / count)


def _pwcca(x: Tensor, y: Tensor) -> Road:
    side, v = Span.of("PWCCA", "x", x), Span.of("PWCCA", "y", y).basis
    loadings = side.basis.T @ side.centred

    def value(m: Tensor, _: Tensor) -> Tensor:
        u, rho, _ = torch.linalg.svd(m, full_matrices=False)
        alpha = (u.mT @ loadings).abs().sum(-1)
        return (alpha * rho).sum(-1) / alpha.sum(-1)

    return Products(side.basis, v, value)


def _svcca(x: Tensor, y: Tensor, threshold: float) -> Road:
    sides = []
    for t in (x, y):
        rows, values, vectors = _principal(t)
        keep = leading(values, threshold)
        sides.append(rows @ (vectors[:, keep] / (len(rows) * values[keep]).sqrt()))
    count = min(side.shape[1] for side in sides)
    return _of_nuclear(sides[0], sides[1], lambda s: s / count)


def _principal(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred samples, their principal variances and directions."""
    rows = spanned(t)
    cov = (rows.T @ rows / len(rows))[None]
    values, vectors = principal(cov, cov.new_full((1,), epsilon_of(t)), t.shape[1] > len(t))
    return rows, values[0], vectors[0]


def _procrustes_similarity(x: Tensor, y: Tensor) -> Road:
    a, b = (rows / rows.square().sum().sqrt() for rows in (spanned(x), spanned(y)))
    return _of_nuclear(a, b, lambda s: s)


def _procrustes_distance(x: Tensor, y: Tensor, kind: str) -> Road:
    if kind == "euclidean":
        a, b = (rows / len(rows) ** 0.5 for rows in (spanned(x), spanned(y)))
        total = a.square().sum() + b.square().sum()
        return _of_nuclear(a, b, lambda s: _root(total - 2 * s), total.sqrt().item())
    cosine = _procrustes_similarity(x, y)
    assert isinstance(cosine, Products)
    return _of_nuclear(cosine.left, cosine.right, _chord if kind == "normalized" else _angle)


def _chord(s: Tensor) -> Tensor:
    return _root(2 - 2 * s)


def _angle(s: Tensor) -> Tensor:
    return 2 * (_chord(s) / 2).asin()


def _shape_distance(x: Tensor, y: Tensor, alpha: float) -> Road:
    if alpha == 1:
        return _procrustes_distance(x, y, "angular")
    sides = []
    for t in (x, y):
        rows, values, vectors = _principal(t)
        sides.append(rows @ (vectors * whitening(values, alpha)) / len(rows) ** 0.5)
    return _of_nuclear(sides[0], sides[1], _angle)


def _bures(x: Tensor, y: Tensor, of: str) -> Road | None:
    return _procrustes_similarity(x, y) if of == "grams" else None


def _bures_distance(x: Tensor, y: Tensor, of: str) -> Road | None:
    return _procrustes_distance(x, y, "euclidean") if of == "grams" else None


def _linear_r2(x: Tensor, y: Tensor, direction: str, adjusted: bool) -> Road | None:
    if direction == "both":
        return None
    if direction == "x_to_y":
        a, b = Span.of("linear R²", "x", x).basis, spanned(y)
        rank, total = a.shape[1], b.square().sum()
    else:
        a, b = spanned(x), Span.of("linear R²", "y", y).basis
        rank, total = b.shape[1], a.square().sum()
    loss = (len(x) - 1) / (len(x) - 1 - rank) if adjusted else 1.0
    return _of_squares(a, b, lambda s: 1 - (1 - s / total) * loss)


def _gulp(x: Tensor, y: Tensor, ridge: float) -> Road:
    if ridge == 0:
        a, b = Span.of("GULP", "x", x).basis, Span.of("GULP", "y", y).basis
    else:
        sides = []
        for t in (x, y):
            rows = spanned(t)
            cov = (rows.T @ rows / len(rows))[None]
            factor = Factor(cov, ridge * cov.diagonal(dim1=1, dim2=2).sum(1), cov.new_full((1,), epsilon_of(t)))
            sides.append(factor.forward(rows.T[None])[0].T / len(rows) ** 0.5)
        a, b = sides
    own = _size(a) + _size(b)
    return _of_squares(a, b, lambda s: _root(own - 2 * s), own.sqrt().item())


def _rsm_norm(x: Tensor, y: Tensor, metric: str) -> Road | None:
    if metric != "linear":
        return None
    a, b = spanned(x), spanned(y)
    own = _size(a) + _size(b)
    return _of_squares(a, b, lambda s: _root(own - 2 * s), own.sqrt().item())


# ------------------------------------------------------------------------------------------ neighbours


def _mutual_knn(x: Tensor, y: Tensor, k: int, metric: str) -> Road | None:
    return _of_neighbours(x, y, k, metric, lambda shared: (shared / k).mean(-1))


def _jaccard(x: Tensor, y: Tensor, k: int, metric: str) -> Road | None:
    return _of_neighbours(x, y, k, metric, lambda shared: (shared / (2 * k - shared)).mean(-1))


def _of_neighbours(x: Tensor, y: Tensor, k: int, metric: str, value: Value) -> Road | None:
    if not _fits(len(x), 1, 1):
        return None
    nearest = [_nearest(points(name, t, metric), k, metric) for name, t in (("x", x), ("y", y))]
    if nearest[0] is None or nearest[1] is None:
        return None
    mask = torch.zeros(len(x), len(x), dtype=torch.bool, device=x.device).scatter_(1, nearest[1], True)
    return Neighbours(nearest[0], mask, lambda both: value(both.sum(-1).double()))


def _cknna(x: Tensor, y: Tensor, k: int) -> Road | None:
    if not _fits(len(x)):
        return None
    sides = []
    for name, t in (("x", x), ("y", y)):
        nearest = _nearest(points(name, t, "cosine"), k, "cosine")
        if nearest is None:
            return None
        units = unit_rows(name, t, "cosine")
        about = units - units.mean(0)
        norms = about.square().sum(1)
        products = (about @ about.T).add_((norms.mean() - norms) / 2)  # as `cknna` has them
        sides.append((nearest, products, products.gather(1, nearest)))
    (nearest, _, weights), (others, products, own) = sides
    right = torch.zeros_like(products).scatter_(1, others, own)
    scale = weights.square().sum().sqrt() * own.square().sum().sqrt()
    return Neighbours(nearest, right, lambda both: (weights * both).sum((-2, -1)) / scale)


def _nearest(rows: Tensor, k: int, metric: str) -> Tensor | None:
    """The k nearest (n, k), or None where ties leave them open: they go to the first, which permuting moves."""
    n, found = len(rows), []
    for start in range(0, n, 512):
        d = squared(rows[start : start + 512], rows)
        d.diagonal(start).fill_(torch.inf)
        values, index = d.topk(min(k + 1, n - 1), dim=1, largest=False)
        if k < n - 1:
            width = 2 * tie_width(values[:, k], metric, are_squared=True)
            if bool((values[:, k] - values[:, k - 1] <= width).any()):
                return None
        found.append(index[:, :k])
    return torch.cat(found)


_ROADS: dict[str, Callable[..., Road | None]] = {
    "bures": _bures,
    "bures_distance": _bures_distance,
    "cca": _cca,
    "cka": _cka,
    "cknna": _cknna,
    "distance_correlation": _distance_correlation,
    "gulp": _gulp,
    "hsic": _hsic,
    "jaccard": _jaccard,
    "linear_r2": _linear_r2,
    "mutual_knn": _mutual_knn,
    "procrustes_distance": _procrustes_distance,
    "procrustes_similarity": _procrustes_similarity,
    "pwcca": _pwcca,
    "rsa": _rsa,
    "rsm_norm": _rsm_norm,
    "shape_distance": _shape_distance,
    "svcca": _svcca,
}
