"""Similarity indices beside the packages that have them and what a user would otherwise write, verified first.

Run by `make bench`, with the packages by `make bench-peers`; what is not installed is skipped. Wrong answers stay in
the table with their errors; the summary sets ours beside the fastest right one. STITCHKERN_BENCH_SMALL=1 only looks
whether everything runs.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import cache, lru_cache, partial

import pytest
import torch
from torch import Tensor, nn

import stitchkern as sk
from benchmarks import formulas, networks, peers
from benchmarks.bounds import Work
from benchmarks.measure import OURS, SMALL, measure
from stitchkern import reference

Ways = dict[str, Callable]
CHECKED = 512  # samples that answers are verified over where all would take longer than everything that is timed
#: of these one round is long enough
ONCE = ("torch_cka", "simtorch", "ckatorch", "cca-zoo", "pdist, spearmanr (scipy)", "rsatoolbox", "thingsvision")


def rounds(contender: str) -> int:
    return 5 if contender == OURS else 1 if contender in ONCE else 2


def largest(found: Tensor | float, expected: Tensor) -> float:
    return (torch.as_tensor(found, dtype=torch.float64) - expected).abs().max().item()  # NaN stays NaN


# ----------------------------------------------------------------------------- all layers of two networks, minibatch


def ours(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str]) -> Tensor:
    batches = images.split(batch)
    return sk.compare(a, b, batches, layers_a=layers, layers_b=layers, features="flatten", estimator="minibatch").values


def plain(a: nn.Module, b: nn.Module, images: Tensor, batch: int, layers: list[str], *, centred: bool) -> Tensor:
    return formulas.pairs_of_layers(a, b, images.split(batch), layers, centred=centred)


MODEL_WAYS: Ways = {
    OURS: ours,
    **peers.MODELS,
    "hooks, Grams, one product (float32)": partial(plain, centred=False),
    "the same, centred first": partial(plain, centred=True),
}
WRONG_ALWAYS = ("simtorch", "ckatorch")  # and slow: one network has to do
MODEL_PAIRS = [(k, w) for k in networks.KINDS for w in MODEL_WAYS if k == "with BatchNorm" or w not in WRONG_ALWAYS]


@cache
def minibatch_expected(kind: str, count: int) -> Tensor:
    """Σ HSIC₁(x, y) / √(Σ HSIC₁(x, x) Σ HSIC₁(y, y)) over the first batches, in float64."""
    batches = networks.images().split(networks.BATCH)[:count]
    size = len(networks.WIDTHS)
    xy, xx, yy = (torch.zeros(s, dtype=torch.float64) for s in ((size, size), (size, 1), (1, size)))
    sides = [networks.features(model, networks.taps(kind), batches) for model in networks.pair(kind)]
    for x, y in zip(*sides, strict=True):
        k, l = ([reference.kernel_matrix(t, "linear") for t in side] for side in (x, y))
        hsic = partial(reference.hsic_of_kernels, unbiased=True)
        xy += torch.stack([torch.stack([hsic(m, o) for o in l]) for m in k])
        xx += torch.stack([hsic(m, m) for m in k])[:, None]
        yy += torch.stack([hsic(m, m) for m in l])[None]
    return xy / (xx * yy).sqrt()


between_layers = cache(networks.between_layers)


@pytest.mark.parametrize("kind, contender", MODEL_PAIRS)
def test_layers_of_networks(kind, contender, benchmark):
    images, layers, models = networks.images(), networks.taps(kind), networks.pair(kind)
    beyond, within = [], []

    def fresh() -> tuple:  # most of the others leave their hooks behind
        return copy.deepcopy(models)

    def run(a: nn.Module, b: nn.Module) -> Tensor:
        clock = networks.Clock(a, b)
        found = MODEL_WAYS[contender](a, b, images, networks.BATCH, layers)
        beyond.append(clock.beyond())
        within.append(clock.within)
        return found

    def check() -> float:
        found = MODEL_WAYS[contender](*fresh(), images[: networks.BATCH], networks.BATCH, layers)
        return largest(found, minibatch_expected(kind, 1))

    measure(
        benchmark,
        run,
        check,
        family="similarity",
        case=f"10 × 10 layers, minibatch CKA, {kind}",
        contender=contender,
        rounds=2 if contender == OURS else 1,  # forward passes are most of it
        setup=fresh,
        error=lambda found: largest(found, minibatch_expected(kind, len(images) // networks.BATCH)),
        # what the table says: time beyond the forward passes, in the same run
        clock=lambda: [seconds - between_layers(kind) for seconds in beyond],
    )
    if beyond:
        benchmark.extra_info["forward"] = statistics.median(within) + between_layers(kind)


# -------------------------------------------------------------------------------------- all layers, stored features

FEATURE_WAYS: Ways = {
    OURS: lambda xs, ys: sk.cka_matrix(xs, ys),
    "centred Grams, one product (float32)": formulas.pairs_of_features,
    "pytorch-cka (unbiased)": peers.pytorch_cka_features,
}


@lru_cache(maxsize=2)
def features_expected(case: str, unbiased: bool) -> Tensor:
    k, l = ([reference.kernel_matrix(t[:CHECKED], "linear") for t in side] for side in stored(case))
    hsic = partial(reference.hsic_of_kernels, unbiased=unbiased)
    own = [torch.stack([hsic(m, m) for m in side]) for side in (k, l)]
    return torch.stack([torch.stack([hsic(m, o) for o in l]) for m in k]) / torch.outer(*own).sqrt()


STORED = {  # all pairs of samples; whether one round is long enough
    "10 × 10 layers of the networks, exact CKA of stored features, n = 2,048, p = 4,096 … 32,768": True,
    "24 × 24 layers, CKA of stored features, n = 2,048, p = 768": False,
}


@lru_cache(maxsize=1)  # up to 2 GB
def stored(case: str) -> list[list[Tensor]]:
    if case.startswith("10"):
        kind = "with BatchNorm"
        images, layers = networks.images(), networks.taps(kind)
        return [next(networks.features(model, layers, [images])) for model in networks.pair(kind)]
    n, p, depth = (256, 64, 4) if SMALL else (2048, 768, 24)
    g = torch.Generator().manual_seed(0)
    start, sides = torch.randn(n, p, generator=g), []
    for _ in range(2):  # a residual stream, as a transformer has it
        x = start
        sides.append([])
        for _ in range(depth):
            x = x + torch.relu(x @ torch.randn(p, p, generator=g) / p**0.5)
            x = x / x.square().mean(1, keepdim=True).sqrt()
            sides[-1].append(x)
    return sides


def work_of_layers(xs: list[Tensor], ys: list[Tensor]) -> Work:
    """A triangle of each Gram matrix, and what two of them have in common."""
    n, widths = len(xs[0]), sum(t.shape[1] for t in (*xs, *ys))
    triangle = n * (n + 1)
    return Work(4 * n * widths, triangle * (widths + len(xs) * len(ys)))


@pytest.mark.parametrize("case, contender", [(c, w) for c in STORED for w in FEATURE_WAYS])
def test_stored_layers(case, contender, benchmark):
    xs, ys = stored(case)

    def check() -> float:
        found = FEATURE_WAYS[contender](*([t[:CHECKED] for t in side] for side in (xs, ys)))
        return largest(found, features_expected(case, "unbiased" in contender))

    measure(
        benchmark,
        lambda: FEATURE_WAYS[contender](xs, ys),
        check,
        family="similarity",
        case=case,
        contender=contender,
        rounds=1 if STORED[case] else rounds(contender),
        work=work_of_layers(xs, ys),
    )


# ----------------------------------------------------------------------------------------------------- two matrices

N, P = (400, 32) if SMALL else (10_000, 512)
CASE = "n = 10,000, p = q = 512"


@cache
def two_matrices() -> tuple[Tensor, Tensor]:
    """Turned axes, along which deviations fall by a factor of 30 and correlations with them; means not zero."""
    g = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, P)
    turns = [torch.linalg.qr(torch.randn(P, P, generator=g)).Q for _ in range(2)]
    x = torch.randn(N, P, generator=g) * scales
    y = x + 0.1 * torch.randn(N, P, generator=g)
    return x @ turns[0] + scales.mean(), y @ turns[1] + scales.mean()


CKA_WAYS: Ways = {
    OURS: lambda x, y: sk.cka(x, y),
    "torch, features (float32)": formulas.linear_cka,
    "torch, features (float64)": lambda x, y: formulas.linear_cka(x.double(), y.double()),
    "numpy, features (float32)": formulas.linear_cka_numpy,
    "anatome": peers.anatome_cka,
}
SHIFTS = {"": (0.0, 1.0), ", + 1000": (1000.0, 1.0), ", × 1e-3": (0.0, 1e-3), ", × 1e6": (0.0, 1e6)}


@cache
def shifted(shift: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and their CKA from float64 moments."""
    offset, scale = SHIFTS[shift]
    x, y = ((t * scale + offset) for t in two_matrices())
    cov = reference.moments(x[:, None, None], y[:, None, None])["cov"]
    xx, xy, yy = (c.square().sum() for c in (cov[:P, :P], cov[:P, P:], cov[P:, P:]))
    return x, y, xy / (xx * yy).sqrt()


@pytest.mark.parametrize("shift, contender", [(s, w) for s in SHIFTS for w in CKA_WAYS])
def test_linear_cka(shift, contender, benchmark):
    x, y, expected = shifted(shift)
    measure(
        benchmark,
        lambda: CKA_WAYS[contender](x, y),
        lambda: largest(CKA_WAYS[contender](x, y), expected),
        family="similarity",
        case=f"linear CKA, {CASE}{shift}",
        contender=contender,
        rounds=5,
        work=Work(4 * x.numel() * 2, len(x) * 2 * P * (2 * P + 1)),  # a triangle of the covariances of both
        accuracy=bool(shift),
    )


CANONICAL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Ways]] = {
    "mean CCA": (
        lambda x, y: reference.canonical_correlations(x, y).mean(),
        {
            OURS: lambda x, y: sk.cca(x, y).mean,
            "QR, SVD (torch, float32)": formulas.cca_of_samples,
            "cca-zoo": peers.cca_zoo,
        },
    ),
    "SVCCA": (
        reference.svcca,
        {
            OURS: lambda x, y: sk.svcca(x, y),
            "google/svcca's steps (numpy)": formulas.svcca_of_google,
            "SVD of samples (torch, float32)": formulas.svcca_of_samples,
            "covariances, eigh (torch, float64)": formulas.svcca_of_covariances,
            "anatome": peers.anatome_svcca,
            "latentis": peers.latentis_svcca,
        },
    ),
    "PWCCA": (
        reference.pwcca,
        {
            OURS: lambda x, y: sk.pwcca(x, y),
            "sim_metric's steps (numpy)": formulas.pwcca_of_sim_metric,
            "covariances, eigh (torch, float64)": formulas.pwcca_of_covariances,
            "anatome": peers.anatome_pwcca,
        },
    ),
}


@cache
def canonical_expected(index: str) -> Tensor:
    return CANONICAL[index][0](*two_matrices())


@pytest.mark.parametrize("index, contender", [(i, w) for i, (_, ways) in CANONICAL.items() for w in ways])
def test_canonical_correlations(index, contender, benchmark):
    run = partial(CANONICAL[index][1][contender], *two_matrices())
    measure(
        benchmark,
        run,
        lambda: largest(run(), canonical_expected(index)),
        family="similarity",
        case=f"{index}, {CASE}",
        contender=contender,
        rounds=rounds(contender),
    )


# ------------------------------------------------------------------------------------------ neighbours and distances

SAMPLES, K = (200, 10) if SMALL else (4096, 10)
DISTANCES: dict[str, tuple[Callable[[Tensor, Tensor], float], Ways]] = {
    "mutual k-NN, k = 10": (
        partial(reference.mutual_knn, k=K, metric="cosine"),
        {
            OURS: partial(sk.mutual_knn, k=K),
            "platonic-rep's steps (torch, float32)": partial(formulas.mutual_knn_sorted, k=K),
            "products, topk, masks (torch, float32)": partial(formulas.mutual_knn_topk, k=K),
            "platonic-universe": partial(peers.platonic_universe_mknn, k=K),
        },
    ),
    "RSA, Spearman": (
        partial(reference.rsa, metric="euclidean", comparison="spearman"),
        {
            OURS: partial(sk.rsa, comparison="spearman"),
            "pdist, spearmanr (scipy)": formulas.rsa_scipy,
            "cdist, argsort (torch, float32)": formulas.rsa_torch,
            "rsatoolbox": peers.rsatoolbox_rsa,
            "thingsvision": peers.thingsvision_rsa,
        },
    ),
}


@cache
def distances_expected(index: str) -> float:
    return DISTANCES[index][0](*(t[: min(CHECKED, SAMPLES)] for t in two_matrices()))


@pytest.mark.parametrize("index, contender", [(i, w) for i, (_, ways) in DISTANCES.items() for w in ways])
def test_distances(index, contender, benchmark):
    run = DISTANCES[index][1][contender]
    x, y = (t[:SAMPLES] for t in two_matrices())
    measure(
        benchmark,
        lambda: run(x, y),
        lambda: abs(run(x[:CHECKED], y[:CHECKED]) - distances_expected(index)),
        family="similarity",
        case=f"{index}, n = 4,096, p = q = 512",
        contender=contender,
        rounds=rounds(contender),
        work=Work(4 * x.numel() * 2, 2 * SAMPLES * (SAMPLES + 1) * P),  # the products of all pairs, of both sides
    )
