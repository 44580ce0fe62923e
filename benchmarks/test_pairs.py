"""Indices of distances between samples beside what one would write with torch, scikit-learn and scipy; answers verified
before they are timed.

Run by `make bench`. Errors are those over the first 512 samples, whose distances the reference sorts one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import stitchkern as sk
from stitchkern import reference

N, P, K = 4096, 512, 10


def shared(x: Tensor, y: Tensor) -> float:
    """Mean overlap of neighbours (n, k) by index."""
    mask = torch.zeros(len(x), len(x), dtype=torch.bool).scatter_(1, x, True)
    return mask.gather(1, y).sum().item() / x.numel()


def by_product(sort: bool) -> Callable[[Tensor, Tensor], float]:
    def neighbours(t: Tensor) -> Tensor:
        t = torch.nn.functional.normalize(t, dim=1)
        near = (t @ t.T).fill_diagonal_(-torch.inf)
        return near.argsort(1, descending=True)[:, :K] if sort else near.topk(K, dim=1).indices

    return lambda x, y: shared(neighbours(x), neighbours(y))


def by_scikit_learn(x: Tensor, y: Tensor) -> float:
    from sklearn.neighbors import NearestNeighbors

    def neighbours(t: Tensor) -> Tensor:
        search = NearestNeighbors(n_neighbors=K + 1, metric="cosine").fit(t.numpy())
        return torch.from_numpy(search.kneighbors(t.numpy())[1][:, 1:])

    return shared(neighbours(x), neighbours(y))


def ranked_by_scipy(x: Tensor, y: Tensor) -> float:
    from scipy.stats import spearmanr

    above = np.triu_indices(len(x), 1)
    return float(spearmanr(*(torch.cdist(t, t).numpy()[above] for t in (x, y))).statistic)


def ranked_by_torch(x: Tensor, y: Tensor) -> float:
    ranks = torch.stack([torch.pdist(t).argsort().argsort().double() for t in (x, y)])
    return torch.corrcoef(ranks)[0, 1].item()


WAYS: dict[str, dict[str, Callable[[Tensor, Tensor], float]]] = {
    "mutual k-NN": {
        "stitchkern": lambda x, y: sk.mutual_knn(x, y, k=K),
        "product, topk (float32)": by_product(False),
        "product, argsort (float32)": by_product(True),
        "NearestNeighbors": by_scikit_learn,
    },
    "RSA, Spearman": {
        "stitchkern": lambda x, y: sk.rsa(x, y, comparison="spearman"),
        "cdist, spearmanr": ranked_by_scipy,
        "pdist, argsort twice (float32)": ranked_by_torch,
    },
}
EXPECTED: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mutual k-NN": lambda x, y: reference.mutual_knn(x, y, K, "cosine"),
    "RSA, Spearman": lambda x, y: reference.rsa(x, y, "euclidean", "spearman"),
}


@pytest.fixture(scope="module")
def features() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, P, generator=g)
    return x, x @ torch.randn(P, P, generator=g) / P**0.5 + torch.randn(N, P, generator=g)


@pytest.mark.parametrize("index, contender", [(i, w) for i in WAYS for w in WAYS[i]])
def test_pairs(index, contender, features, benchmark):
    x, y = features
    run = WAYS[index][contender]
    error = abs(run(x[:512], y[:512]) - EXPECTED[index](x[:512], y[:512]))
    assert error < 1e-4, "a wrong answer is not worth timing"
    benchmark.group = index
    benchmark.extra_info.update(
        family="pairs",
        case=f"{index}; n = 4,096, p = q = 512",
        contender=contender,
        error=error,
        flop=2.0 * N * N * P if contender == "stitchkern" else 0.0,  # half of all products, of both sides
        threads=torch.get_num_threads(),
    )
    benchmark.pedantic(lambda: run(x, y), rounds=5 if contender == "stitchkern" else 2, warmup_rounds=1)
