"""The definition of every native op, in plain float64 torch.

These functions are what the kernels compute, written to be read. The tests compare every backend with
them; nothing in the library calls them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """(n, h, w, c), any strides -> (n·h·w, c) float64."""
    return x.double().reshape(-1, x.shape[-1])


def moments(x: Tensor, y: Tensor | None = None, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Weighted moments of the rows z = [x, y], centred at their mean.

    With W = Σ wᵢ and z̄ = Σ wᵢ zᵢ / W, a = ‖x − x̄‖², b = ‖y − ȳ‖²:

    - ``mean`` (P,): z̄
    - ``cov`` (P, P): Σ wᵢ (zᵢ − z̄)(zᵢ − z̄)ᵀ / W
    - ``third`` (2, P): Σ w a (z − z̄) and Σ w b (z − z̄)
    - ``norms`` (3,): Σ w a², Σ w a b, Σ w b²
    - ``totals`` (3,): number of rows, W, Σ w²

    x (n, h, w, p), y (n, h, w, q), weight (n, h, w); P = p + q.
    """
    zx = rows(x)
    zy = rows(y) if y is not None else zx[:, :0]
    w = torch.ones(len(zx), dtype=torch.float64, device=zx.device) if weight is None else weight.double().reshape(-1)
    z = torch.cat([zx, zy], dim=1)
    total = w.sum()
    mean = (w @ z) / total
    z = z - mean
    p = zx.shape[1]
    a, b = z[:, :p].square().sum(1), z[:, p:].square().sum(1)
    return {
        "mean": mean,
        "cov": (z * w[:, None]).T @ z / total,
        "third": torch.stack([(w * a) @ z, (w * b) @ z]),
        "norms": torch.stack([(w * a * a).sum(), (w * a * b).sum(), (w * b * b).sum()]),
        "totals": torch.stack(
            [torch.tensor(float(len(zx)), dtype=torch.float64, device=z.device), total, (w * w).sum()]
        ),
    }


def hsic_linear(x: Tensor, y: Tensor, *, unbiased: bool) -> Tensor:
    """HSIC of the linear kernels K = XXᵀ, L = YYᵀ, from the n × n matrices.

    Biased: tr(KHLH) / n² with H = I − 11ᵀ/n. Unbiased (Song et al. 2012, equation 5), with K̃ = K off the diagonal:
    [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)).
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    k, l, n = x @ x.T, y @ y.T, len(x)
    if not unbiased:
        return (k * l).sum() / n**2
    k, l = k - k.diag().diag(), l - l.diag().diag()
    return ((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l.sum(1)) / (n - 2)) / (
        n * (n - 3)
    )


def least_squares(x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """M (q, p), b (q,) that minimise Σ w ‖M x + b − y‖², minimum norm, by a float64 SVD of the data."""
    zx, zy = rows(x), rows(y)
    w = torch.ones(len(zx), dtype=torch.float64) if weight is None else weight.double().reshape(-1)
    mean_x, mean_y = (w @ zx) / w.sum(), (w @ zy) / w.sum()
    s = w.sqrt()[:, None]
    m = torch.linalg.lstsq(s * (zx - mean_x), s * (zy - mean_y), driver="gelsd").solution.T
    return m, mean_y - m @ mean_x
