"""Least squares from moments against float64 solutions of the data itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import ShapeError, StatisticsError


def problem(g: torch.Generator, n: int, p: int, q: int, dtype=torch.float64):
    x = torch.randn(n, p, generator=g, dtype=dtype) @ torch.randn(p, p, generator=g, dtype=dtype) + 3
    y = x @ torch.randn(p, q, generator=g, dtype=dtype) + torch.randn(n, q, generator=g, dtype=dtype) - 5
    return x, y


def fit(x, y, weight=None, **options):
    return sk.least_squares(sk.Moments(x.shape[1], y.shape[1]).update(x, y, weight=weight), **options)


def residual(f: sk.AffineMap, x, y) -> float:
    return (f(x.double()) - y.double()).square().sum(1).mean().item()


@pytest.mark.parametrize("n,p,q", [(500, 20, 7), (500, 7, 20), (60, 1, 1), (21, 20, 3)])
def test_agrees_with_the_svd_of_the_data(n, p, q, device, generator):
    x, y = problem(generator, n, p, q)
    f = fit(x.to(device), y.to(device))
    weight, bias = reference.least_squares(x[:, None, None], y[:, None, None])
    assert (f.weight.cpu() - weight).abs().max() / weight.abs().max() < 1e-9
    assert (f.bias.cpu() - bias).abs().max() / bias.abs().max() < 1e-8
    assert (f.rank, f.method) == (min(p, q), "cholesky")
    best = residual(f, x.to(device), y.to(device))
    assert f.residual == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert f.r2 == pytest.approx(1 - best / y.var(0, correction=0).sum().item(), abs=1e-9)


def test_weights(generator):
    x, y = problem(generator, 300, 6, 4)
    w = torch.rand(300, generator=generator, dtype=torch.float64)
    weight, bias = reference.least_squares(x[:, None, None], y[:, None, None], w)
    f = fit(x, y, weight=w)
    assert torch.allclose(f.weight, weight, rtol=1e-9) and torch.allclose(f.bias, bias, rtol=1e-8)


def test_ridge_agrees_with_scikit_learn(generator):
    ridge = pytest.importorskip("sklearn.linear_model").Ridge
    x, y = problem(generator, 200, 12, 5)
    theirs = ridge(alpha=0.3 * len(x)).fit(x.numpy(), y.numpy())  # scikit-learn sums where we average
    f = fit(x, y, ridge=0.3)
    assert np.allclose(f.weight, theirs.coef_, rtol=1e-9) and np.allclose(f.bias, theirs.intercept_, rtol=1e-9)


@pytest.mark.parametrize("kind", ["dead", "duplicated", "n < p", "constant", "duplicated in another unit"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_deficient_gives_the_minimum_norm_map(kind, dtype, generator):
    n, p = (8, 12) if kind == "n < p" else (400, 12)
    x, y = problem(generator, n, p, 5)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    match kind:
        case "dead":
            x[:, 3] = 0
        case "constant":
            x[:, 3] = 7
        case "duplicated":
            x[:, 3] = x[:, 5]
        case "duplicated in another unit":
            x[:, 3] = 1024 * x[:, 5]
    x, y = x.to(dtype), y.to(dtype)
    f = fit(x, y)
    # the minimum-norm minimiser, with the rank named to numpy: directions of singular value below 1e-5 are rounding
    xc, yc = x.double().numpy(), y.double().numpy()
    xc, yc = xc - xc.mean(0), yc - yc.mean(0)
    expected = (np.linalg.pinv(xc, rcond=1e-6) @ yc).T
    tolerance = 1e-8 if dtype == torch.float64 else 2e-4
    assert np.abs(f.weight.numpy() - expected).max() < tolerance * np.abs(expected).max()
    assert f.method == "eigh" and torch.isfinite(f.weight).all()
    assert f.rank == (5 if kind != "n < p" else min(5, n - 1))


def test_reduced_rank_is_the_optimum(generator):
    x, y = problem(generator, 500, 8, 6)
    full = fit(x, y)
    fitted = full(x) - y.mean(0)
    singular = torch.linalg.svdvals(fitted)
    for k in range(1, 7):
        f = fit(x, y, rank=k)
        assert torch.linalg.matrix_rank(f.weight) == k == f.rank
        lost = singular[k:].square().sum().item() / len(x)  # Eckart-Young on the fitted values
        assert f.residual == pytest.approx(full.residual + lost, rel=1e-9)
        truncated = torch.linalg.svd(full.weight)
        truncated = truncated.U[:, :k] * truncated.S[:k] @ truncated.Vh[:k]
        other = sk.AffineMap(truncated, y.mean(0) - truncated @ x.mean(0), k, 0, 0, "")
        assert residual(f, x, y) <= residual(other, x, y) * (1 + 1e-12)


def test_degenerate_targets(generator):
    x = torch.randn(50, 3, generator=generator)
    f = fit(x, torch.full((50, 2), 4.0))
    assert f.r2 == 1.0 and f.residual == 0 and torch.equal(f.bias, torch.full((2,), 4.0, dtype=torch.float64))
    f = fit(torch.ones(50, 3), x)
    assert f.rank == 0 and f.r2 == pytest.approx(0) and torch.equal(f.weight, torch.zeros(3, 3, dtype=torch.float64))


def test_map_applies_over_the_channel_dimension(generator):
    x, y = problem(generator, 100, 4, 3)
    f = fit(x, y)
    image = torch.randn(2, 4, 5, 6, generator=generator)
    expected = torch.einsum("qp,nphw->nqhw", f.weight, image.double()) + f.bias[:, None, None]
    assert torch.allclose(f(image).double(), expected, atol=1e-4) and f(image).dtype == image.dtype
    assert torch.allclose(f(image.movedim(1, -1), channel_dim=-1), f(image).movedim(1, -1), atol=1e-5)
    module = f.to_module()
    assert torch.allclose(module(image), f(image), atol=1e-4)
    assert [p.requires_grad for p in module.parameters()] == [True, True]
    for spatial, kind in ((True, torch.nn.Conv2d), (False, torch.nn.Linear)):
        plain = f.to_module(spatial=spatial, dtype=torch.float64)
        assert type(plain) is kind
        x4 = image.double() if spatial else image.double().movedim(1, -1)
        assert torch.allclose(plain(x4) if spatial else plain(x4).movedim(-1, 1), f(image.double()))
    with pytest.raises(ShapeError, match="x must have 4 channels in dimension 1"):
        f(image[:, :3])


def test_bad_arguments(generator):
    x, y = problem(generator, 20, 4, 3)
    m = sk.Moments(4, 3).update(x, y)
    for error, match, call in [
        (ValueError, "ridge must be non-negative", lambda: sk.least_squares(m, ridge=-1)),
        (ValueError, "ridge must be non-negative", lambda: sk.least_squares(m, ridge=float("nan"))),
        (ValueError, "rank must be 1 … 3", lambda: sk.least_squares(m, rank=4)),
        (ValueError, "rank must be 1 … 3", lambda: sk.least_squares(m, rank=0)),
        (StatisticsError, "one-sided", lambda: sk.least_squares(sk.Moments(4).update(x))),
        (StatisticsError, "at least two samples", lambda: sk.least_squares(sk.Moments(4, 3).update(x[:1], y[:1]))),
    ]:
        with pytest.raises(error, match=match):
            call()
