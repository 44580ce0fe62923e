"""Least squares from moments against float64 solutions of the data itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import ShapeError, StatisticsError
from stitchkern.solvers.triangular import least_squares_qr


def problem(g: torch.Generator, n: int, p: int, q: int, dtype=torch.float64):
    x = torch.randn(n, p, generator=g, dtype=dtype) @ torch.randn(p, p, generator=g, dtype=dtype) + 3
    y = x @ torch.randn(p, q, generator=g, dtype=dtype) + torch.randn(n, q, generator=g, dtype=dtype) - 5
    return x, y


def fit(x, y, weight=None, precision="highest", **options):
    m = sk.Moments(x.shape[1], y.shape[1], precision=precision)
    return sk.least_squares(m.update(x, y, weight=weight), **options)


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
    assert f.method == ("cholesky" if kind in ("dead", "constant") else "eigh") and torch.isfinite(f.weight).all()
    assert f.dropped == (p - (n - 1) if kind == "n < p" else 1)
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
        other = x @ truncated.T + y.mean(0) - truncated @ x.mean(0)
        assert residual(f, x, y) <= (other - y).square().sum(1).mean().item() * (1 + 1e-12)


@pytest.mark.parametrize("noise,p", [(3e-3, 512), (3e-3, 64), (0.1, 16), (1.0, 16)])
def test_residual_is_right_within_its_error(noise, p, generator):
    """Strongly collinear features, and targets that live in their small differences."""
    z = torch.randn(4000, 1, generator=generator)
    x = z + noise * torch.randn(4000, p, generator=generator)
    y = (x[:, :4].double() - x[:, 4:8].double()) / noise
    f = fit(x, y.float())
    assert abs(f.residual - residual(f, x, y.float())) <= f.residual_error + 1e-12
    exact = fit(x, y.float(), precision="float64")
    assert exact.dropped == 0 and exact.residual_error < 1e-6 and exact.r2 > 1 - 1e-6


@pytest.mark.parametrize("words,p", [(2, 128), (5, 256), (10, 64)])
def test_few_distinct_rows_have_their_rank(words, p, generator):
    table = torch.randn(words, p, generator=generator) + 3 * torch.randn(p, generator=generator)
    x = table[torch.randint(0, words, (20000,), generator=generator)]
    f = fit(x, x @ torch.randn(p, 300, generator=generator) / p**0.5)
    assert (f.rank, f.dropped) == (words - 1, p - words + 1)


def test_constant_float64_feature_is_ignored(generator):
    for seed in range(20):
        g = generator.manual_seed(seed)
        x = torch.randn(300, 6, dtype=torch.float64, generator=g)
        x[:, 5] = 0.1 + seed
        y = torch.randn(300, 3, dtype=torch.float64, generator=g) + x[:, :3]
        m = sk.Moments(6, 3)
        for i in range(0, 300, 37):
            m.update(x[i : i + 37], y[i : i + 37])
        assert (sk.least_squares(m).weight[:, 5] == 0).all()


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


def test_a_factor_about_zero(generator):
    """R of the rows themselves: maps without a bias, right far from zero (κ = 1e6)."""
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64) + 1e6
    y = x[:, :2] - x[:, 2:4] + torch.randn(300, 2, generator=generator, dtype=torch.float64)
    w = torch.rand(300, generator=generator, dtype=torch.float64)
    qr = sk.StreamingQR(6, 2)
    for i in range(0, 300, 70):
        qr.update(x[i : i + 70], y[i : i + 70], weight=w[i : i + 70])
    raw = qr.about_zero()
    stats = raw.statistics()
    assert torch.allclose(stats.cov_xx, (x * w[:, None]).T @ x / w.sum(), rtol=1e-12) and not stats.mean_x.any()
    f = sk.least_squares(raw)
    root = w.sqrt()[:, None]
    expected = torch.from_numpy(np.linalg.lstsq((root * x).numpy(), (root * y).numpy())[0].T)
    assert torch.allclose(f.weight, expected, rtol=1e-8, atol=1e-8) and not f.bias.any()
    assert qr.rows == raw.rows == 300
    assert sk.least_squares(qr).residual < f.residual  # the factor itself is still about its mean
    with pytest.raises(StatisticsError, match="no samples"):
        sk.StreamingQR(6, 2).about_zero()


def test_a_factor_of_rounded_features(generator):
    """A sum of features is one only up to the rounding of numbers far from zero; nearly constant ones are noise."""
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    x[:, 3] = x[:, 0] + x[:, 1]
    x[:, 5] = 0
    y = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    expected = fit(x, y)
    far = x + 1e6
    far[::2, 5] += 2.0**-33  # one unit in the last place
    qr = sk.StreamingQR(6, 2).update(far, y)
    assert sk.least_squares(qr).dropped == 0
    f = least_squares_qr(qr, rounding=torch.full((6,), 2.0**-53 * 1e6, dtype=torch.float64))
    assert f.dropped == 2 and torch.allclose(f.weight[:, :5], expected.weight[:, :5], atol=1e-8)
    assert not f.weight[:, 5].any()
