"""Small networks, data, and the definitions that comparisons are checked against, in plain float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stitchkern.models import activations, frozen


def cnn(seed: int, *, norm: bool = True, inplace: bool = True, width: int = 6, strided: bool = True) -> nn.Sequential:
    """Three convolutions; without normalisation its activations lie far from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for i in range(3):
            layers.append(nn.Conv2d(channels, width, 3, padding=1, stride=2 if strided and i == 2 else 1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU(inplace=inplace))
            channels = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval()


def images(count: int, size: int = 8, shift: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=g) + shift, torch.randint(5, (count,), generator=g)


def split(data: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(t.split(list(sizes)) for t in data), strict=True))


def features(model: nn.Module, layers: list[str], inputs: Tensor, how: str = "flatten") -> list[Tensor]:
    """What the layers give, as (rows, features)."""
    with frozen(model):
        found = activations(model, layers, inputs)
    rows = []
    for x in found.values():
        match how:
            case "flatten":
                rows.append(x.flatten(1))
            case "pool":
                rows.append(x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x)
            case "positions":
                rows.append(x.movedim(1, -1).flatten(0, 2) if x.ndim == 4 else x.flatten(0, -2))
    return rows


def gram(x: Tensor, kernel: str = "linear") -> Tensor:
    x = x.double()
    if kernel == "linear":
        x = x - x.mean(0)
        return x @ x.T
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    sigma = torch.pdist(x).quantile(0.5)
    return torch.exp(-(d**2) / (2 * sigma**2))


def hsic(k: Tensor, l: Tensor, unbiased: bool) -> float:
    """Of two Gram matrices, by its definition."""
    n = len(k)
    if not unbiased:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        return torch.trace(k @ h @ l @ h).item() / n**2
    k, l = k - k.diagonal().diag(), l - l.diagonal().diag()
    one = torch.ones(n, dtype=torch.float64)
    value = (k * l).sum() + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    return value.item() / (n * (n - 3))


def cka(batches: list[tuple[Tensor, Tensor]], unbiased: bool = True, kernel: str = "linear") -> float:
    """Of (x, y) per batch: the ratio of sums of HSIC."""
    sums = [0.0, 0.0, 0.0]
    for x, y in batches:
        k, l = gram(x, kernel), gram(y, kernel)
        for i, (left, right) in enumerate(((k, l), (k, k), (l, l))):
            sums[i] += hsic(left, right, unbiased)
    return sums[0] / (sums[1] * sums[2]) ** 0.5


def expected(a, b, layers_a, layers_b, batches, how="flatten", exact=False, unbiased=True, kernel="linear") -> Tensor:
    """The matrix of CKA, pair by pair."""
    sides = [
        [features(model, layers, inputs, how) for inputs in batches] for model, layers in ((a, layers_a), (b, layers_b))
    ]

    def value(i: int, j: int) -> float:
        pairs = [(x[i], y[j]) for x, y in zip(*sides, strict=True)]
        if exact:
            pairs = [tuple(torch.cat(side) for side in zip(*pairs, strict=True))]
        return cka(pairs, unbiased, kernel)

    return torch.tensor(
        [[value(i, j) for j in range(len(layers_b))] for i in range(len(layers_a))], dtype=torch.float64
    )
