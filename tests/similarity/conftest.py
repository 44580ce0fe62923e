"""The data that breaks similarity indices, as float32 rounded after the transformation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stitchkern as sk

CASES = {
    "plain",
    "independent",
    "identical",
    "offset 10",
    "offset 1000",
    "scale 1e-3",
    "scale 1e6",
    "low rank",
    "dead",
    "outlier",
    "n < p",
}


def torture(name: str, seed: int = 0, samples: int = 400) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    n, p, q = (40, 300, 200) if name == "n < p" else (samples, 48, 32)
    x = torch.randn(n, p, generator=g, dtype=torch.float64) * torch.logspace(0, -1, p, dtype=torch.float64)
    y = x @ torch.randn(p, q, generator=g, dtype=torch.float64) / 2
    y = y + torch.randn(n, q, generator=g, dtype=torch.float64)
    match name:
        case "independent":
            y = torch.randn(n, q, generator=g, dtype=torch.float64)
        case "identical":
            y = x
        case "offset 10":
            x, y = x + 10, y + 10
        case "offset 1000":
            x, y = x + 1000, y + 1000
        case "scale 1e-3":
            x, y = x * 1e-3, y * 1e-3
        case "scale 1e6":
            x, y = x * 1e6, y * 1e6
        case "low rank":
            x = x[:, :3] @ torch.randn(3, p, generator=g, dtype=torch.float64)
        case "dead":
            x[:, 5] = 0.3
        case "outlier":
            x[:, 5] *= 1e3
    return x.float(), y.float()


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, Tensor, Tensor]:
    return request.param, *torture(request.param)


@pytest.fixture
def blocks() -> list[sk.Moments]:
    """Three problems of one shape."""
    found = []
    for seed in range(3):
        x, y = torture("plain", seed)
        found.append(sk.Moments(48, 32, precision="float64").update(x, y))
    return found
