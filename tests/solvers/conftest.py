"""Problems of known condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def conditioned(
    g: torch.Generator, n: int, p: int, q: int, cond: float = 10.0, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """x (n, p) float64 whose centred singular values run from √n to √n / cond, y = x W + noise."""
    u = torch.randn(n, p, generator=g, dtype=torch.float64)
    u = torch.linalg.qr(u - u.mean(0)).Q * math.sqrt(n)
    v = torch.linalg.qr(torch.randn(p, p, generator=g, dtype=torch.float64)).Q
    x = (u * torch.logspace(0, -math.log10(cond), p, dtype=torch.float64)) @ v.T + 3
    y = x @ torch.randn(p, q, generator=g, dtype=torch.float64)
    return x, y + noise * torch.randn(n, q, generator=g, dtype=torch.float64) - 2


def relative(found: Tensor, expected: Tensor, x: Tensor) -> float:
    """‖δM D‖ / ‖M D‖ with D the standard deviations of x."""
    d = x.double().std(0, correction=0)
    return (((found - expected) * d).norm() / (expected * d).norm()).item()
