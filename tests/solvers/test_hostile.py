"""Data made to mislead: each of these once gave a wrong map, or a right one with a wrong word about its error."""

from __future__ import annotations

import pickle

import pytest
import torch

import stitchkern as sk
from stitchkern.errors import StatisticsError
from tests.solvers.conftest import conditioned, relative


def mse(f, x, y):
    return (f(x.double()) - y).square().sum(1).mean().item()


def test_collinear_pairs_that_no_probe_sees(generator):
    """Two features whose ±1 probes are equal: the direction between them is orthogonal to every probe."""
    x = torch.randn(4000, 64, generator=generator).double()
    from stitchkern.solvers.factor import probes

    signs = probes(64, torch.device("cpu"))
    same = (signs @ signs.T == 8).triu(1).nonzero()
    assert len(same)
    i, j = same[0].tolist()
    x[:, j] = x[:, i] + 1e-6 * torch.randn(4000, generator=generator).double()
    y = x @ torch.randn(64, 3, generator=generator).double() + torch.randn(4000, 3, generator=generator).double()
    exact = sk.lstsq([(x, y)], road="qr")
    plain = sk.lstsq([(x, y)], road="moments")
    assert relative(plain.weight, exact.weight, x) <= plain.error
    auto = sk.lstsq([(x, y)])
    assert auto.method != "cholesky" and relative(auto.weight, exact.weight, x) <= auto.error


@pytest.mark.parametrize("small", [1e-6, 1e-8, 1e-16, 1e-20])
@pytest.mark.parametrize("make", [sk.Moments, sk.StreamingQR])
def test_minimum_norm_beside_a_feature_of_tiny_scale(make, small, generator):
    """The null space of duplicated features must not point, by rounding, at a feature whose unit is tiny."""
    x = torch.randn(4000, 3, generator=generator).double()
    y = x[:, :1] + x[:, 2:]
    x[:, 1] = x[:, 0]
    x[:, 2] *= small
    f = sk.least_squares(make(3, 1).update(x, y))
    assert f.dropped == 1 and mse(f, x, y) < 1e-20 and abs(f.residual - mse(f, x, y)) < 1e-12
    assert torch.allclose(f.weight * torch.tensor([1, 1, small]), torch.tensor([[0.5, 0.5, 1.0]]).double(), atol=1e-7)


def test_near_duplicates_in_float32_beside_a_small_unit(generator):
    x = torch.randn(4000, 3, generator=generator)
    x[:, 1] = x[:, 0] + 1e-4 * torch.randn(4000, generator=generator)
    y = (x[:, :1] + x[:, 2:]).double()
    x[:, 2] /= 1e6
    f = sk.least_squares(sk.Moments(3, 1).update(x, y.float()))
    assert f.dropped == 1 and mse(f, x, y) < 1e-6


def test_blocks_whose_means_are_far_apart(generator):
    truth = torch.randn(3, 2, generator=generator).double()
    blocks = [torch.randn(500, 3, generator=generator).double() + (1e6 if k == 4 else 0) for k in range(5)]
    parts = sk.Statistics.of([sk.Moments(3, 2).update(x, x @ truth) for x in blocks])
    left_out = parts.combine(1 - torch.eye(5))
    fits = sk.least_squares(left_out)
    for i in range(5):
        assert (fits.weight[i].T - truth).norm() < max(1e-12, fits.error[i].item()) * 10
        assert fits.residual[i] <= fits.residual_error[i]
    direct = sk.Moments(3, 2)
    for x in blocks[1:]:
        direct.update(x, x @ truth)
    assert torch.allclose(left_out.cov_xx[0], direct.cov_xx, rtol=1e-9)


@pytest.mark.parametrize("mean", [1e4, 1e5, 1e6])
def test_first_batches_unlike_the_rest(mean, generator):
    """The origin then lies far from the data: the moments say what that cost, and auto does something about it."""
    x = mean + torch.randn(20000, 6, generator=generator).double()
    x[:64] -= mean
    y = x @ torch.randn(6, 2, generator=generator).double() + torch.randn(20000, 2, generator=generator).double()
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 20000, 64)]
    exact, plain, auto = (sk.lstsq(batches, road=road) for road in ("qr", "moments", "auto"))
    assert relative(plain.weight, exact.weight, x) <= plain.error
    assert relative(auto.weight, exact.weight, x) <= min(1e-6, auto.error + exact.error)


def test_maps_that_are_not_unique_say_so(generator):
    x = torch.randn(500, 6, generator=generator).double()
    x = torch.linalg.qr(x - x.mean(0)).Q * 500**0.5
    assert sk.least_squares(sk.Moments(6, 6).update(x, x.clone()), rank=2).error > 0.01  # equal singular values
    y = x @ torch.diag(torch.tensor([4.0, 2, 1, 0.5, 0.2, 0.1]).double())
    assert sk.least_squares(sk.Moments(6, 6).update(x, y), rank=2).error < 1e-12
    low = x @ torch.randn(6, 2, generator=generator).double() @ torch.randn(2, 6, generator=generator).double()
    assert sk.full_rank(sk.Moments(6, 6).update(x, low), floor=1.0).error == float("inf")
    x[:, 3] = 0
    rotation = sk.procrustes(sk.Moments(6, 6).update(x, x.clone()))
    assert rotation.rank == 5 and rotation.error == float("inf")


def test_bottleneck_of_features_in_different_units(generator):
    scale = torch.tensor([1, 1e8, 1e-8]).double()
    x = torch.randn(500, 3, generator=generator).double()
    y = x @ torch.randn(3, 3, generator=generator).double()
    for rank in (2, None):
        f = sk.least_squares(sk.Moments(3, 3).update(x * scale, y), rank=rank)
        module = f.to_module(low_rank=True, dtype=torch.float64)
        assert (module(x * scale) - f(x * scale)).norm() < 1e-10 * y.norm(), rank
        assert torch.allclose(module.up.norm(dim=0), module.down.norm(dim=1))


def test_refinement_refuses_what_it_cannot_steer(generator):
    x, y = (t.float() for t in conditioned(generator, 2000, 12, 3, 3e4))
    plain = sk.least_squares(sk.Moments(12, 3).update(x, y))
    assert plain.dropped or plain.error > 1
    with pytest.raises(StatisticsError, match="cannot be refined"):
        sk.lstsq([(x, y)], road="refine")
    assert sk.lstsq([(x, y)]).method == "qr"


def test_data_that_change_between_readings(generator):
    x, y = (t.float() for t in conditioned(generator, 600, 6, 2, 300.0))

    def augmented():
        yield x + 0.1 * torch.randn(x.shape, generator=generator), y

    for road in ("refine", "auto"):
        with pytest.raises(StatisticsError, match="other data than the first"):
            sk.lstsq(augmented, road=road, tolerance=1e-9)
    order = torch.randperm(600, generator=generator)
    passes = iter([[(x, y)], [(x[order], y[order])]])
    assert sk.lstsq(lambda: next(passes), road="refine").method == "refined"  # the order does not matter


def test_ellipsis_takes_from_the_batch_alone(generator):
    x, y = conditioned(generator, 100, 4, 2)
    stats = sk.Statistics.of([sk.Moments(4, 2).update(x, k * y) for k in (1, 2, 3)])
    fits = sk.least_squares(stats)
    assert torch.equal(fits[..., 1].weight, fits[1].weight) and torch.equal(stats[..., 1].cov_xy, stats[1].cov_xy)
    assert sk.least_squares(stats, rank=1)[..., 2].factors[0].shape == (2, 1)
    with pytest.raises(TypeError, match="floating-point"):
        fits[0](torch.arange(8).reshape(2, 4))


def test_constant_features_on_every_path(generator):
    m = sk.Moments(3, 2).update(torch.full((5, 3), 0.1).double(), torch.randn(5, 2, generator=generator).double())
    for f in (sk.ridge_path(m, [0.0]).at(0.0), sk.reduced_rank_path(m).at(1), sk.least_squares(m), sk.procrustes(m)):
        assert torch.isfinite(f.weight).all() and f.residual == pytest.approx(float(m.cov_yy.trace())), f


def test_what_leaves_float64_is_an_error(generator):
    x, y = conditioned(generator, 50, 3, 2)
    with pytest.raises(StatisticsError, match="float64"):
        sk.least_squares(sk.StreamingQR(3, 2).update(x, y * 1e160))
    plain = sk.least_squares(sk.StreamingQR(3, 2).update(x, y))
    for unit in (1e160, 1e-170):  # squares leave float64, the map does not
        f = sk.least_squares(sk.StreamingQR(3, 2).update(x * unit, y))
        assert torch.allclose(f.weight * unit, plain.weight, rtol=1e-9) and f.r2 == pytest.approx(plain.r2)
    wide = torch.randn(50, 200, generator=generator).double() * 1.2e154
    with pytest.raises(StatisticsError, match="float64"):
        sk.least_squares(sk.Moments(3, 200).update(x, wide))
    with pytest.raises(StatisticsError, match="indefinite"):
        sk.least_squares(sk.Statistics.given(torch.eye(2), torch.ones(2, 1), torch.ones(1, 1)))


@pytest.mark.parametrize("damage", ["below", "corner", "count", "swapped"])
def test_damaged_factors_are_found(damage, generator, tmp_path):
    pytest.importorskip("safetensors")
    from safetensors import safe_open
    from safetensors.torch import save_file

    sk.StreamingQR(3, 2).update(*(torch.randn(50, c, generator=generator) for c in (3, 2))).save(tmp_path / "f")
    with safe_open(tmp_path / "f", framework="pt") as f:
        meta, tensors = dict(f.metadata()), {k: f.get_tensor(k) for k in ("factor", "origin")}
    match damage:
        case "below":
            tensors["factor"][3, 1] = 1.0
        case "corner":
            tensors["factor"][0, 0] = 0.0
        case "count":
            meta["count"] = "7.0"
        case "swapped":
            meta["q"] = "7"
    save_file(tensors, tmp_path / "g", meta)
    with pytest.raises(StatisticsError, match="damaged"):
        sk.StreamingQR.load(tmp_path / "g")


def test_targets_that_the_weights_leave_out(generator):
    """A unit that is never above zero: nothing weighs in, and the others keep their maps."""
    x, y = conditioned(generator, 200, 4, 3)
    y[:, 1] = -y[:, 1].abs() - 1
    f = sk.reweighted_least_squares([(x, y)], sk.weighting.threshold(0.0))
    assert (f.weight[1] == 0).all() and f.bias[1] == 0 and f.weight[0].norm() > 0
    with pytest.raises(StatisticsError, match="all weights are zero"):
        sk.reweighted_least_squares([(x, y)], sk.weighting.threshold(1e9))
    w = torch.ones(200).double()
    w[0], x[0] = 0, float("nan")
    y[0] = float("nan")
    clean = sk.reweighted_least_squares([(x[1:], y[1:])], sk.weighting.power(2))
    assert torch.allclose(sk.reweighted_least_squares([(x, y, w)], sk.weighting.power(2)).weight, clean.weight)


def test_tokens_beside_pixels(generator):
    x = torch.randn(20, 15, 4, generator=generator)
    y = torch.randn(20, 2, 5, 3, generator=generator)
    m = sk.Moments(4, 2).update(x, y)
    for f in (sk.lstsq([(x, y)]), sk.lstsq([(x, y)], road="qr"), sk.lstsq([(x, y)], road="refine")):
        assert torch.allclose(f.weight, sk.least_squares(m).weight, atol=1e-5)
    assert sk.reweighted_least_squares([(x, y)], sk.weighting.huber(1e9)).r2 == pytest.approx(sk.least_squares(m).r2)


def test_dead_features_match_nothing(generator):
    x = torch.randn(100, 3, generator=generator)
    x[:, 1] = 0
    y = -x[:, :1] - 0.1 * x[:, 2:]
    y = torch.cat([y, -x[:, 2:]], 1)
    f = sk.semi_matching(sk.Moments(3, 2).update(x, y))
    assert 1 not in f.matches.tolist() and f.r2 > 0


def test_empty_batches_of_problems(generator):
    x, y = conditioned(generator, 50, 3, 2)
    none = sk.Statistics.of([sk.Moments(3, 2).update(x, y)])[:0]
    for f in (
        sk.least_squares(none),
        sk.procrustes(none),
        sk.permutation(none),
        sk.soft_matching(none),
        sk.full_rank(none, floor=1.0),
        sk.reduced_rank_path(none).at(1),
        sk.ridge_path(none, [1.0]).at(1.0),
    ):
        assert f.weight.shape == (0, 2, 3) and f.r2.shape == (0,)


def test_results_travel(generator):
    x, y = conditioned(generator, 50, 3, 2)
    m = sk.Moments(3, 2).update(x, y)
    for thing in (
        sk.least_squares(m),
        sk.reduced_rank_path(m),
        sk.ridge_path(m, [1.0]),
        sk.procrustes(m),
        sk.weighting.huber(2.0),
        sk.cross_validate([m, m]),
    ):
        assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)


@pytest.mark.parametrize(
    "error, match, call",
    [
        (TypeError, "batches must hold", lambda x, y: sk.lstsq([(x, torch.zeros(len(x)).long())])),
        (TypeError, "such as", lambda x, y: sk.lstsq((x, y))),
        (TypeError, "moments go to", lambda x, y: sk.lstsq(sk.Moments(3, 2).update(x, y))),
        (TypeError, "weighting must be a rule", lambda x, y: sk.reweighted_least_squares([(x, y)], sk.weighting.power)),
        (TypeError, "weighting must be a rule", lambda x, y: sk.reweighted_least_squares([(x, y)], "power")),
        (ValueError, "width must be", lambda x, y: sk.weighting.huber(-1)),
        (ValueError, "n must be a number", lambda x, y: sk.weighting.power("4")),
        (ValueError, "weights must be non-negative", lambda x, y: blocks(x, y).combine(torch.tensor([[2.0, -1]]))),
        (ValueError, "ridge 7 is not among", lambda x, y: sk.ridge_path(sk.Moments(3, 2).update(x, y), [1.0]).at(7)),
        (ValueError, "rank must be", lambda x, y: sk.least_squares(sk.Moments(3, 2).update(x, y), rank=float("inf"))),
    ],
)
def test_mistakes_are_named(error, match, call, generator):
    with pytest.raises(error, match=match):
        call(*conditioned(generator, 50, 3, 2))


def blocks(x, y):
    return sk.Statistics.of([sk.Moments(3, 2).update(x, y)] * 2)
