"""Many problems in one call give what each gives alone; statistics that cannot be are refused."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import ops
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from tests.solvers.conftest import conditioned

SOLVERS = {
    "least_squares": sk.least_squares,
    "ridge": lambda m: sk.least_squares(m, ridge=0.3),
    "rank": lambda m: sk.least_squares(m, rank=2),
    "weighted rank": lambda m: sk.least_squares(m, rank=2, target_weight=torch.arange(1.0, m.q + 1)),
    "full_rank": lambda m: sk.full_rank(m, floor=0.5),
    "procrustes": sk.procrustes,
    "scaled procrustes": lambda m: sk.procrustes(m, scale=True, center=False),
    "permutation": sk.permutation,
    "semi_matching": sk.semi_matching,
    "soft_matching": sk.soft_matching,
    "path": lambda m: sk.reduced_rank_path(m, ridge=0.1).at(3),
    "ridge path": lambda m: sk.ridge_path(m, [0.5, 0.0]).at(0.5),
}


def stack(g: torch.Generator, p: int = 6, q: int = 4, count: int = 6) -> list[sk.Moments]:
    """Well-posed, dead, duplicated, and n < p problems side by side."""
    made = []
    for i in range(count):
        x, y = (torch.randn(4, c, generator=g) for c in (p, q)) if i == 3 else conditioned(g, 60, p, q)
        if i == 1:
            x[:, 2] = 7.0
        if i == 2:
            x[:, 2] = x[:, 3]
        made.append(sk.Moments(p, q, precision="float64").update(x, y))
    return made


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6)])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_its_problems(name, sizes, generator):
    moments = stack(generator, *sizes)
    together = SOLVERS[name](sk.Statistics.of(moments).reshape(2, 3))
    assert together.batch == (2, 3) and together.weight.shape == (2, 3, sizes[1], sizes[0])
    for i, m in enumerate(moments):
        alone, part = SOLVERS[name](sk.Statistics.of(m)), together[divmod(i, 3)]
        assert torch.allclose(part.weight, alone.weight, rtol=1e-9, atol=1e-9), i
        assert torch.allclose(part.bias, alone.bias, rtol=1e-9, atol=1e-9), i
        for field in ("rank", "dropped", "residual", "r2", "method"):
            assert getattr(part, field) == pytest.approx(getattr(alone, field), abs=1e-9), (i, field)
    x = torch.randn(2, 3, 5, sizes[0], generator=generator, dtype=torch.float64)
    assert torch.allclose(together(x)[1, 2], together[1, 2](x[1, 2]))


def test_large_and_small_problems_take_the_same_answer(generator, monkeypatch):
    """The fused kernel and the vendor's solvers: the limit between them shows in no digit that matters."""
    moments = stack(generator)
    small = sk.least_squares(moments, ridge=torch.tensor([0, 0, 0, 0.5, 0, 1]))
    monkeypatch.setattr(ops, "LSQ_MAX_FEATURES", {"cpu": 0})
    large = sk.least_squares(moments, ridge=torch.tensor([0, 0, 0, 0.5, 0, 1]))
    assert torch.allclose(small.weight, large.weight, rtol=1e-10, atol=1e-12)
    for field in ("residual", "r2", "error", "rank", "dropped"):
        assert torch.allclose(getattr(small, field), getattr(large, field), rtol=1e-9, atol=1e-11), field
    assert small.method == large.method and "eigh" in small.method


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_on_every_device(name, device, generator):
    moments = stack(generator)
    here = SOLVERS[name](sk.Statistics.of(moments))
    there = SOLVERS[name](sk.Statistics.of([m.to(device) for m in moments]))
    assert there.weight.device.type == there.bias.device.type == device.type
    assert torch.allclose(there.weight.cpu(), here.weight, rtol=1e-8, atol=1e-8)
    assert torch.allclose(there.residual.cpu(), here.residual, rtol=1e-9, atol=1e-9) and there.method == here.method
    assert there[0].to_module()(torch.zeros(1, 6, device=device)).device.type == device.type


def test_resampling_and_roads_on_every_device(device, generator):
    x, y = (t.to(device) for t in conditioned(generator, 300, 5, 3))
    blocks = [sk.Moments(5, 3).update(x[i::6], y[i::6]) for i in range(6)]
    found = sk.bootstrap(blocks, lambda s: sk.least_squares(s).r2, resamples=50)
    assert found.value.device.type == device.type and found.low <= found.high
    cv = sk.cross_validate(blocks, ridges=[0.0, 0.1], ranks=[1, 2, 3])
    assert cv.fit().weight.device.type == device.type
    plain = sk.least_squares(sk.Moments(5, 3).update(x, y)).weight
    for road in ("moments", "refine", "qr", "auto"):
        assert torch.allclose(sk.lstsq([(x, y)], road=road).weight, plain, rtol=1e-9, atol=1e-10), road
    for weighting in (sk.weighting.power(2), sk.weighting.huber(1.0)):
        assert sk.reweighted_least_squares([(x, y)], weighting).weight.device.type == device.type


def test_raw_tensors_broadcast(generator):
    x, y = conditioned(generator, 50, 5, 3)
    s = sk.Statistics.of(sk.Moments(5, 3).update(x, y))
    given = sk.Statistics.given(s.cov_xx, s.cov_xy.expand(4, 5, 3), s.cov_yy, mean_x=s.mean_x, mean_y=s.mean_y)
    fit, alone = sk.least_squares(given), sk.least_squares(s)
    assert (
        given.batch == (4,) and torch.allclose(fit.weight[3], alone.weight) and torch.allclose(fit.bias[3], alone.bias)
    )
    fit = sk.least_squares(given, ridge=torch.tensor([0.0, 0.1, 1.0, 10.0]))
    assert (fit.r2.diff() < 0).all()


def test_impossible_statistics(generator):
    x, y = conditioned(generator, 50, 4, 3)
    s = sk.Statistics.of(sk.Moments(4, 3).update(x, y))
    xx, xy, yy = s.cov_xx, s.cov_xy, s.cov_yy
    skewed, negative, indefinite = xx.clone(), xx.clone(), torch.eye(4, dtype=torch.float64) * 1.0
    skewed[0, 1] *= 1.01
    negative[2, 2] = -1
    indefinite[:3, :3] -= 0.9 * (1 - torch.eye(3, dtype=torch.float64))  # pairwise possible, together not
    for error, match, call in [
        (StatisticsError, "cov_xx is not symmetric", lambda: sk.Statistics.given(skewed, xy, yy)),
        (StatisticsError, "negative variance", lambda: sk.Statistics.given(negative, xy, yy)),
        (StatisticsError, "correlation exceeds 1", lambda: sk.Statistics.given(xx, 1e3 * xy, yy)),
        (NotFiniteError, "cov_xy holds NaN or Inf", lambda: sk.Statistics.given(xx, xy * float("nan"), yy)),
        (ShapeError, r"cov_yy must be \(…, 3, 3\)", lambda: sk.Statistics.given(xx, xy, xx)),
        (
            ShapeError,
            "leading dimensions do not broadcast",
            lambda: sk.Statistics.given(xx.expand(2, 4, 4), xy.expand(3, 4, 3), yy),
        ),
        (TypeError, "cov_xx must be a float64 or float32 tensor", lambda: sk.Statistics.given(xx.long(), xy, yy)),
        (
            StatisticsError,
            "cov_xx is indefinite: its correlation form has the eigenvalue -0.8",
            lambda: sk.least_squares(sk.Statistics.given(indefinite, 0.1 * torch.ones(4, 3), torch.eye(3))),
        ),
        (ShapeError, "ridge must be one number or fit the batch", lambda: sk.least_squares(s, ridge=torch.ones(3))),
        (
            ShapeError,
            "statistics must have one shape",
            lambda: sk.Statistics.of([sk.Moments(4, 3).update(x, y), sk.Moments(3, 4).update(y, x)]),
        ),
        (ValueError, "target_weight must be positive", lambda: sk.least_squares(s, target_weight=torch.zeros(3))),
        (ShapeError, r"target_weight must be \(…, 3\)", lambda: sk.least_squares(s, target_weight=torch.ones(4))),
        (ValueError, "floor must be positive", lambda: sk.full_rank(s, floor=0)),
        (ValueError, "ridges must be non-negative", lambda: sk.ridge_path(s, [1.0, -1.0])),
        (ValueError, "rank must be 1 … 3", lambda: sk.reduced_rank_path(s).at(4)),
        (ValueError, "rank must be 1 … 3", lambda: sk.reduced_rank_path(s, [0, 1])),
        (ValueError, "criterion must be", lambda: sk.permutation(s, criterion="best")),
        (ValueError, "a batch of maps has no one layer", lambda: sk.least_squares([s, s]).to_module()),
        (TypeError, "expected Moments, Statistics", lambda: sk.least_squares(x)),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_combining_blocks_is_seeing_their_rows(generator):
    x, y = conditioned(generator, 90, 5, 3)
    x += 1e4
    blocks = sk.Statistics.of([sk.Moments(5, 3).update(x[i::3], y[i::3]) for i in range(3)])
    mixed = blocks.combine(torch.tensor([[1.0, 1, 1], [2, 0, 1], [0, 0, 3]]))
    rows = torch.cat([x[0::3], x[0::3], x[2::3]]), torch.cat([y[0::3], y[0::3], y[2::3]])
    for i, (a, b) in enumerate([(x, y), rows, (x[2::3], y[2::3])]):
        direct = sk.Statistics.of(sk.Moments(5, 3).update(a, b))
        for name in ("cov_xx", "cov_xy", "cov_yy", "mean_x", "mean_y"):
            assert torch.allclose(getattr(mixed, name)[i], getattr(direct, name), rtol=1e-9, atol=1e-9), (i, name)
    assert mixed.count.tolist() == [90, 90, 90]
    with pytest.raises(StatisticsError, match="has no weight"):
        blocks.combine(torch.zeros(1, 3))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_features_of_any_scale(scale, generator):
    """Scaling features scales their columns of the map and nothing else: no epsilon hides anywhere."""
    x, y = conditioned(generator, 200, 6, 4)
    scales = scale ** torch.linspace(0, 1, 6, dtype=torch.float64)
    plain, scaled = (sk.Moments(6, 4).update(a, y) for a in (x, x * scales))
    for solve in (sk.least_squares, lambda m: sk.least_squares(m, rank=2)):
        a, b = solve(plain), solve(scaled)
        assert torch.allclose(b.weight * scales, a.weight, rtol=1e-9) and b.dropped == 0
        assert b.r2 == pytest.approx(a.r2, rel=1e-11)


def test_a_ridge_beside_features_of_tiny_scale(generator):
    """The ridge dwarfs one feature's variance: that feature must not make the others look like noise."""
    x, y = conditioned(generator, 200, 4, 2)
    x = x * torch.tensor([1e-8, 1.0, 1.0, 1.0])
    m = sk.Moments(4, 2).update(x, y)
    fit = sk.least_squares(m, ridge=1e-3)
    centred = x - x.mean(0)
    expected = torch.linalg.solve(
        centred.T @ centred / 200 + 1e-3 * torch.eye(4, dtype=torch.float64), centred.T @ (y - y.mean(0)) / 200
    ).T
    assert fit.dropped == 0 and torch.allclose(fit.weight, expected, rtol=1e-8, atol=1e-14)
