"""Every index on the data that breaks indices: one table, which a new index joins by one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import Tensor

import stitchkern as sk
from stitchkern import reference, similarity
from stitchkern.errors import StatisticsError
from tests.similarity.conftest import CASES, torture

#: take an index, but are none
NOT_INDICES = {"confidence_interval", "permutation_test"}
#: σ / σ_max of standardised features below which the reference takes a direction as what rounding to this type added
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-3}


@dataclass(frozen=True)
class Index:
    """An index, what it should give, and what it promises.

    ours: (x, y) -> number.
    theirs: (x, y, rounding) -> number, with the reference's tolerance.
    same: the value for identical sides, to `floor`, of bfloat16 to `rounded`; None where none is promised.
    domain: the least and the largest value.
    size: (x, y) -> the unit in which errors count, for indices that have one.
    """

    ours: Callable[[Tensor, Tensor], float]
    theirs: Callable[[Tensor, Tensor, float], float | Tensor]
    same: float | None = 1.0
    domain: tuple[float, float] = (0.0, 1.0)
    floor: float = 1e-12
    rounded: float = 1e-12
    size: Callable[[Tensor, Tensor], float] = lambda x, y: 1.0


@cache
def data(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = (t.to(dtype) for t in torture(case, samples=200))
    return x, y


@cache
def hsics(x: Tensor, y: Tensor, kernel: str, unbiased: bool) -> tuple[float, float, float]:
    """HSIC(x, y), HSIC(x, x), HSIC(y, y), with the median distance as bandwidth."""
    k, l = (
        reference.kernel_matrix(t, kernel, 1.0 if kernel == "linear" else torch.pdist(t.double()).quantile(0.5).item())
        for t in (x, y)
    )
    xy, xx, yy = (reference.hsic_of_kernels(*p, unbiased=unbiased).item() for p in ((k, l), (k, k), (l, l)))
    return xy, xx, yy


def cka(x: Tensor, y: Tensor, kernel: str, unbiased: bool) -> float:
    xy, xx, yy = hsics(x, y, kernel, unbiased)
    return xy / math.sqrt(xx * yy)


def kernel_indices() -> dict[str, Index]:
    found = {}
    for kernel in ("linear", "rbf", "laplace"):
        for unbiased in (False, True):
            options = {"kernel": kernel, "unbiased": unbiased}
            name = f"{kernel}{' unbiased' if unbiased else ''}"
            low = -1.0 if unbiased else 0.0
            found[f"cka {name}"] = Index(
                partial(sk.cka, **options), lambda x, y, _, o=options: cka(x, y, **o), domain=(low, 1)
            )
            found[f"hsic {name}"] = Index(
                partial(sk.hsic, **options),
                lambda x, y, _, o=options: hsics(x, y, **o)[0],
                same=None,
                domain=(-math.inf if unbiased else 0.0, math.inf),
                size=lambda x, y, k=kernel: math.sqrt(math.prod(hsics(x, y, k, False)[1:])),
            )
    return found


def spread(x: Tensor, y: Tensor) -> float:
    """The root of both total variances."""
    return sum(t.double().var(0, correction=0).sum().item() for t in (x, y)) ** 0.5


def rms(x: Tensor, y: Tensor) -> float:
    """The root mean square norm of x's samples."""
    return x.double().square().sum(1).mean().sqrt().item()


def rsm_size(x: Tensor, y: Tensor, metric: str) -> float:
    """About ‖S‖_F of the larger side, but for what all samples have in common."""
    if metric in ("correlation", "cosine"):
        return float(len(x))
    t = max((t.double() - (0 if metric == "inner" else t.double().mean(0))).square().sum(1).sum() for t in (x, y))
    return float(t if metric != "euclidean" else (len(x) * t).sqrt())


def angle(x: Tensor, y: Tensor, alpha: float = 1.0, tolerance: float = 1e-4) -> float:
    return math.acos(min(reference.shape_cosine(x, y, alpha, tolerance).item(), 1.0))


def fidelity(x: Tensor, y: Tensor, of: str, rounding: float) -> tuple[float, float, float]:
    """Of the Grams or of the covariances, with their traces."""
    sides = []
    for t in (x, y):
        basis = reference.orthonormal_basis(t, rounding)
        c = (t.double() - t.double().mean(0)) / len(t) ** 0.5
        sides.append(c @ c.T if of == "grams" else (basis.T @ c).T @ (basis.T @ c))
    a, b = sides
    return reference.fidelity(a, b).item(), a.trace().item(), b.trace().item()


def bures(x: Tensor, y: Tensor, rounding: float, of: str) -> float:
    f, a, b = fidelity(x, y, of, rounding)
    return f / math.sqrt(a * b)


def bures_distance(x: Tensor, y: Tensor, rounding: float, of: str) -> float:
    f, a, b = fidelity(x, y, of, rounding)
    return math.sqrt(max(a + b - 2 * f, 0.0))


def eigenspace_overlap(x: Tensor, y: Tensor, rounding: float) -> float:
    """Of features as they come, whose offsets hide directions without adding rounding to them."""
    t = torch.cat([x, y], 1).double()
    hidden = (t.var(0, correction=0) / t.square().mean(0).clamp(min=1e-300)).mean().sqrt().item()
    return reference.eigenspace_overlap(x, y, tolerance=rounding * hidden).item()


def few(index: Callable[..., float], **options: object) -> Callable[..., float]:
    """Of the first features alone, where the reference takes long."""
    return lambda x, y, *rest: index(x[:, :10], y[:, :10], *rest, **options)


def narrow(index: Callable[..., float], **options: object) -> Callable[..., float]:
    """Of as many features on both sides."""
    return lambda x, y, *rest: index(x[:, : y.shape[1]], y[:, : x.shape[1]], *rest, **options)


DISTANCE = {"same": 0.0, "floor": 5e-7}  # a root of rounding, of up to 300 features
INDICES: dict[str, Index] = kernel_indices() | {
    "cca": Index(lambda x, y: sk.cca(x, y).mean, lambda x, y, r: reference.canonical_correlations(x, y, r).mean()),
    "cca r2": Index(
        lambda x, y: sk.cca(x, y).r2, lambda x, y, r: reference.canonical_correlations(x, y, r).square().mean()
    ),
    "svcca": Index(sk.svcca, lambda x, y, _: reference.svcca(x, y)),
    "pwcca": Index(sk.pwcca, reference.pwcca),
    "linear_r2": Index(sk.linear_r2, reference.linear_r2, rounded=1e-5),
    "linear_r2 y_to_x": Index(
        partial(sk.linear_r2, direction="y_to_x"), lambda x, y, r: reference.linear_r2(y, x, r), rounded=1e-5
    ),
    "procrustes_similarity": Index(sk.procrustes_similarity, lambda x, y, _: reference.shape_cosine(x, y)),
    "procrustes_distance": Index(
        sk.procrustes_distance, lambda x, y, _: 2 * math.sin(angle(x, y) / 2), domain=(0, math.sqrt(2)), **DISTANCE
    ),
    "procrustes_distance angular": Index(
        partial(sk.procrustes_distance, kind="angular"),
        lambda x, y, _: angle(x, y),
        domain=(0, math.pi / 2),
        **DISTANCE,
    ),
    "procrustes_distance euclidean": Index(
        partial(sk.procrustes_distance, kind="euclidean"),
        partial(bures_distance, of="grams"),
        domain=(0, math.inf),
        size=spread,
        **DISTANCE,
    ),
    "shape_distance": Index(sk.shape_distance, lambda x, y, _: angle(x, y), domain=(0, math.pi / 2), **DISTANCE),
    # whitening magnifies rounding as it does directions
    "shape_distance alpha=0.3": Index(
        partial(sk.shape_distance, alpha=0.3),
        lambda x, y, r: angle(x, y, 0.3, r),
        domain=(0, math.pi / 2),
        same=0.0,
        floor=1e-5,
    ),
    "shape_distance alpha=0": Index(
        partial(sk.shape_distance, alpha=0.0),
        lambda x, y, r: angle(x, y, 0.0, r),
        domain=(0, math.pi / 2),
        same=0.0,
        floor=1e-5,
    ),
    "bures": Index(sk.bures, partial(bures, of="grams")),
    "bures covariances": Index(narrow(sk.bures, of="covariances"), narrow(bures, of="covariances")),
    "bures_distance": Index(
        sk.bures_distance, partial(bures_distance, of="grams"), domain=(0, math.inf), size=spread, **DISTANCE
    ),
    "bures_distance covariances": Index(
        narrow(sk.bures_distance, of="covariances"),
        narrow(bures_distance, of="covariances"),
        domain=(0, math.inf),
        size=narrow(spread),
        **DISTANCE,
    ),
    **{
        f"rsa {metric} {comparison}": Index(
            partial(sk.rsa, metric=metric, comparison=comparison),
            lambda x, y, _, m=metric, c=comparison: reference.rsa(x, y, m, c),
            domain=(-1, 1),
        )
        for metric in ("euclidean", "correlation", "cosine")
        for comparison in ("pearson", "spearman")
    },
    **{
        f"{name} {metric}": Index(
            partial(getattr(sk, name), metric=metric),
            lambda x, y, _, n=name, m=metric: getattr(reference, n)(x, y, 10, m),
        )
        for name in ("mutual_knn", "jaccard", "rank_similarity")
        for metric in ("cosine", "euclidean")
    },
    **{
        f"cycle_knn {metric}": Index(
            partial(sk.cycle_knn, metric=metric), lambda x, y, _, m=metric: reference.cycle_knn(x, y, 10, m), same=None
        )
        for metric in ("cosine", "euclidean")
    },
    "second_order_cosine": Index(
        sk.second_order_cosine, lambda x, y, _: reference.second_order_cosine(x, y, 10), domain=(-1, 1)
    ),
    "cka_matrix": Index(
        lambda x, y: sk.cka_matrix([x], [y]).item(), lambda x, y, _: cka(x, y, kernel="linear", unbiased=False)
    ),
    "gulp": Index(
        sk.gulp, lambda x, y, r: reference.gulp_squared(x, y, 0.0, r).sqrt(), domain=(0, math.inf), **DISTANCE
    ),
    "gulp ridge=1e-3": Index(
        partial(sk.gulp, ridge=1e-3),
        lambda x, y, _: reference.gulp_squared(x, y, 1e-3, 0.0).sqrt(),
        domain=(0, math.inf),
        **DISTANCE,
    ),
    "eigenspace_overlap": Index(sk.eigenspace_overlap, eigenspace_overlap),
    "eigenspace_overlap center": Index(
        partial(sk.eigenspace_overlap, center=True),
        lambda x, y, r: reference.eigenspace_overlap(x, y, center=True, tolerance=r),
    ),
    "correlation_match": Index(
        sk.correlation_match, lambda x, y, _: reference.correlation_match(x, y, "hard"), domain=(-1, 1)
    ),
    "correlation_match soft": Index(
        partial(sk.correlation_match, kind="soft"),
        lambda x, y, _: reference.correlation_match(x, y, "soft"),
        domain=(-1, 1),
    ),
    "soft_matching_distance": Index(
        few(sk.soft_matching_distance),
        few(lambda x, y, _: reference.soft_matching_distance(x, y)),
        domain=(0, math.inf),
        size=few(spread),
        **DISTANCE,
    ),
    "soft_matching_distance standardize": Index(
        few(sk.soft_matching_distance, standardize=True),
        few(lambda x, y, _: reference.soft_matching_distance(x, y, standardize=True)),
        domain=(0, 2),
        **DISTANCE,
    ),
    "distance_correlation": Index(sk.distance_correlation, lambda x, y, _: reference.distance_correlation(x, y)),
    "distance_correlation unbiased": Index(
        partial(sk.distance_correlation, unbiased=True),
        lambda x, y, _: reference.distance_correlation(x, y, unbiased=True),
        domain=(-1, 1),
    ),
    **{
        f"rsm_norm {metric}": Index(
            partial(sk.rsm_norm, metric=metric),
            lambda x, y, _, m=metric: reference.rsm_norm(x, y, m),
            domain=(0, math.inf),
            size=lambda x, y, m=metric: rsm_size(x, y, m),
            **DISTANCE,
        )
        for metric in ("linear", "inner", "euclidean", "correlation", "cosine")
    },
    # of one side
    "magnitude": Index(
        lambda x, y: sk.magnitude(x), lambda x, y, _: reference.magnitude(x), same=None, domain=(0, math.inf), size=rms
    ),
    "concentricity": Index(
        lambda x, y: sk.concentricity(x), lambda x, y, _: reference.concentricity(x), same=None, domain=(-1, 1)
    ),
    "uniformity": Index(
        lambda x, y: sk.uniformity(x), lambda x, y, _: reference.uniformity(x), same=None, domain=(-5, 0)
    ),
    "cknna": Index(sk.cknna, lambda x, y, _: reference.cknna(x, y, 10), domain=(-1, 1)),
}


def test_every_public_index_is_in_the_table():
    public = {name for name in similarity.__all__ if inspect.isfunction(getattr(similarity, name))}
    assert {name.split()[0] for name in INDICES} == public - NOT_INDICES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("name", INDICES)
def test_torture(name, case, dtype):
    index = INDICES[name]
    x, y = data(case, dtype)
    size, expected = index.size(x, y), float(index.theirs(x, y, ROUNDING[dtype]))
    if math.isnan(expected):  # most samples are equal, once 1000 is added in bfloat16
        assert case == "offset 1000" and dtype == torch.bfloat16
        with pytest.raises(StatisticsError, match=r"median distance of x is 0|equal features"):
            index.ours(x, y)
        return
    found = index.ours(x, y)
    assert found == pytest.approx(expected, abs=1e-6 * size)
    floor = index.floor if dtype == torch.float32 else max(index.floor, index.rounded)
    assert index.domain[0] - floor * size <= found <= index.domain[1] + floor * size
    if index.same is not None:
        for t in (x, y):
            assert index.ours(t, t.clone()) == pytest.approx(index.same, abs=floor * index.size(t, t))
