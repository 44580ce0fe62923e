"""The accurate roads: right where covariances cannot be, and honest about how far they are right."""

from __future__ import annotations

import pickle

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from tests.conftest import layouts
from tests.solvers.conftest import conditioned, relative


def split(x, y, size=700):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@pytest.mark.parametrize("cond, allowed", [(1e2, 1e-12), (1e5, 1e-9), (1e8, 1e-6), (1e10, 1e-4)])
def test_qr_is_right_up_to_1e10(cond, allowed, generator):
    x, y = conditioned(generator, 4000, 24, 8, cond)
    expected, _ = reference.least_squares(x, y)
    f = sk.lstsq(split(x, y), road="qr")
    assert f.method == "qr" and f.dropped == 0 and f.rank == 8
    assert relative(f.weight, expected, x) < min(allowed, f.error)
    # f(x) itself is rounded by up to 2^-53 ‖M‖‖x‖, and ‖M‖ grows with the condition
    assert f.residual == pytest.approx((f(x) - y).square().sum(1).mean().item(), rel=max(1e-9, 1e-16 * cond))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cond", [1e1, 1e3, 1e5, 1e7, 1e9])
def test_auto_holds_what_it_estimates(cond, dtype, generator):
    """Whichever road: the error against float64 SVD of the very data is below the estimate, which is not absurd."""
    x, y = (t.to(dtype) for t in conditioned(generator, 4000, 16, 6, cond))
    expected, _ = reference.least_squares(x, y)
    f = sk.lstsq(split(x, y))
    actual = relative(f.weight, expected, x)
    assert actual <= f.error + 1e-13
    if cond <= 1e7 or dtype == torch.float64:  # beyond, float32 data have this condition only in name
        assert f.error < 1e-3
    assert f.method in ("cholesky", "refined", "qr")


def test_moments_say_when_they_cannot_be_trusted(generator):
    """The estimate from moments alone bounds the error wherever nothing was dropped."""
    for cond in (1e1, 1e2, 1e3, 1e4, 1e5, 1e6):
        for dtype in (torch.float32, torch.float64):
            x, y = (t.to(dtype) for t in conditioned(generator, 3000, 16, 6, cond))
            expected, _ = reference.least_squares(x, y)
            f = sk.least_squares(sk.Moments(16, 6).update(x, y))
            actual = relative(f.weight, expected, x)
            assert f.dropped or actual <= f.error, (cond, dtype)
            assert actual > 1e-9 * f.error or actual < 1e-12, (cond, dtype)  # an estimate, not infinity


def test_refinement_gains_digits(generator):
    x, y = (t.float() for t in conditioned(generator, 4000, 16, 6, 1e3))
    expected, bias = reference.least_squares(x, y)
    plain = sk.lstsq(split(x, y), road="moments")
    refined = sk.lstsq(split(x, y), road="refine")
    before, after = (relative(f.weight, expected, x) for f in (plain, refined))
    assert after < before / 50 and after <= refined.error and refined.method == "refined"
    assert torch.allclose(refined.bias, bias, rtol=1e-4, atol=1e-4)
    actual = (refined(x.double()) - y).square().sum(1).mean().item()
    assert refined.residual == pytest.approx(actual, rel=1e-9)
    ridge = sk.lstsq(split(x, y), road="refine", ridge=0.01)
    exact = sk.lstsq(split(x.double(), y.double()), road="qr", ridge=0.01)
    assert relative(ridge.weight, exact.weight, x) < 1e-9


def test_weights_reach_every_road(generator):
    x, y = conditioned(generator, 900, 6, 3)
    w = torch.rand(900, generator=generator, dtype=torch.float64)
    w[::5] = 0
    expected, _ = reference.least_squares(x, y, w)
    x[::5] = float("nan")  # of weight zero: not looked at
    batches = [(x[i : i + 200], y[i : i + 200], w[i : i + 200]) for i in range(0, 900, 200)]
    keep = w > 0
    for road in ("moments", "qr", "refine", "auto"):
        f = sk.lstsq(batches, road=road)
        assert relative(f.weight, expected, x[keep]) < 1e-11, road
        residual = (w[keep] * (f(x[keep]) - y[keep]).square().sum(1)).sum() / w.sum()
        assert f.residual == pytest.approx(residual.item(), rel=1e-9), road


@pytest.mark.parametrize("kind", ["dead", "duplicated", "duplicated in another unit", "n < p", "one sample more"])
def test_qr_gives_the_minimum_norm_map(kind, generator):
    n, p = {"n < p": (8, 12), "one sample more": (13, 12)}.get(kind, (300, 12))
    x, y = torch.randn(n, p, generator=generator).double() + 2, torch.randn(n, 5, generator=generator).double()
    match kind:
        case "dead":
            x[:, 3] = 0.1
        case "duplicated":
            x[:, 3] = x[:, 5]
        case "duplicated in another unit":
            x[:, 3] = 1024 * x[:, 5]
    f = sk.least_squares(sk.StreamingQR(p, 5).update(x, y))
    expected, _ = reference.least_squares(x, y)
    assert torch.allclose(f.weight, expected, atol=1e-8 * expected.abs().max())
    assert f.dropped == {"n < p": 5, "one sample more": 0}.get(kind, 1)


def test_qr_takes_ridge_rank_and_target_weight(generator):
    x, y = conditioned(generator, 300, 7, 5, noise=1.0)
    m, qr = sk.Moments(7, 5).update(x, y), sk.StreamingQR(7, 5).update(x, y)
    weight = torch.tensor([1.0, 2, 3, 4, 5])
    for options in ({"ridge": 0.2}, {"rank": 2}, {"rank": 3, "ridge": 0.2}, {"rank": 2, "target_weight": weight}):
        a, b = sk.least_squares(m, **options), sk.least_squares(qr, **options)
        assert torch.allclose(a.weight, b.weight, rtol=1e-8, atol=1e-10), options
        assert a.residual == pytest.approx(b.residual, rel=1e-9) and a.r2 == pytest.approx(b.r2) and a.rank == b.rank
    assert torch.allclose(sk.procrustes(qr).weight, sk.procrustes(m).weight, atol=1e-10)


@pytest.mark.parametrize("layout", layouts())
def test_streaming_qr_reads_any_layout(layout, generator, device):
    x, y = (layouts()[layout](generator, 9, c).to(device) for c in (5, 3))
    m, qr = sk.Moments(5, 3, precision="float64").update(x, y), sk.StreamingQR(5, 3).update(x, y)
    s = qr.statistics()
    assert qr.device.type == device.type and qr.rows == m.rows and qr.count == m.count
    for name in ("cov_xx", "cov_xy", "cov_yy", "mean_x", "mean_y"):
        assert torch.allclose(getattr(s, name), getattr(m, name), rtol=1e-11, atol=1e-13), name


def test_streaming_qr_merges(generator, tmp_path):
    pytest.importorskip("safetensors")
    x, y = conditioned(generator, 3000, 6, 4)
    x = x + 1e5
    whole = sk.StreamingQR(6, 4).update(x, y)
    parts = [sk.StreamingQR(6, 4).update(x[i::3], y[i::3]) for i in range(3)]
    merged = sk.StreamingQR(6, 4)
    for part in parts:
        merged.merge(pickle.loads(pickle.dumps(part)))
    whole.save(tmp_path / "r.safetensors")
    loaded = sk.StreamingQR.load(tmp_path / "r.safetensors")
    for other, allowed in ((merged, 1e-9), (loaded, 1e-14)):
        assert (other.rows, other.count) == (3000, 3000.0)
        for a, b in zip(other.factor(), whole.factor(), strict=True):
            assert torch.allclose(a.T @ a, b.T @ b, rtol=allowed, atol=allowed)
    again = sk.StreamingQR(6, 4).update(x, y)
    assert all(torch.equal(a, b) for a, b in zip(again.factor(), whole.factor(), strict=True))
    with pytest.raises(StatisticsError, match="other must have p=6, q=4"):
        whole.merge(sk.StreamingQR(6, 3))
    with pytest.raises(StatisticsError, match="cannot be read"):
        (tmp_path / "bad").write_bytes(b"nothing")
        sk.StreamingQR.load(tmp_path / "bad")


def test_bad_batches_leave_the_factor_alone(generator):
    x, y = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator)
    qr = sk.StreamingQR(3, 2).update(x, y)
    before = [t.clone() for t in qr.factor()]
    bad = x.clone()
    bad[49, 1] = float("inf")
    for error, match, call in [
        (NotFiniteError, "x holds NaN or Inf", lambda: qr.update(bad, y)),
        (NotFiniteError, "y holds NaN or Inf", lambda: qr.update(x, bad[:, :2])),
        (NotFiniteError, "weight holds a negative", lambda: qr.update(x, y, weight=-torch.ones(50))),
        (ShapeError, "same samples", lambda: qr.update(x, y[:10])),
        (ShapeError, "x must have 3 channels", lambda: qr.update(y, y)),
        (ValueError, "y is missing", lambda: qr.update(x, None)),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert qr.rows == 50 and all(torch.equal(a, b) for a, b in zip(qr.factor(), before, strict=True))
    with pytest.raises(StatisticsError, match="at least two samples"):
        sk.StreamingQR(3, 2).update(x[:1], y[:1]).factor()


def test_what_cannot_be_read_again(generator):
    x, y = conditioned(generator, 300, 4, 2, 1e2)
    with pytest.raises(ValueError, match="batches can be read only once"):
        sk.lstsq(iter(split(x.float(), y.float())), road="refine")
    assert sk.lstsq(iter(split(x, y)), road="qr").method == "qr"
    assert sk.lstsq(lambda: iter(split(x, y)), road="refine").method == "refined"
    with pytest.raises(ValueError, match="road must be one of"):
        sk.lstsq(split(x, y), road="fast")
    with pytest.raises(ValueError, match="batches hold nothing"):
        sk.lstsq([])
    with pytest.raises(StatisticsError, match="not the same data"):
        passes = iter([split(x, y, 200), split(x, y, 200)[:-1]])
        sk.lstsq(lambda: next(passes), road="refine")


# ------------------------------------------------------------------------------------------ weights


def entrywise(x, y, w, ridge=0.0):
    """Each target's own weighted least squares, by numpy."""
    return torch.cat([reference.least_squares(x, y[:, k : k + 1], w[:, k])[0] for k in range(y.shape[1])])


def test_entrywise_weights_of_the_target(generator):
    x, y = conditioned(generator, 400, 5, 3, noise=1.0)
    x4, y4 = x.T.reshape(1, 5, 20, 20), y.T.reshape(1, 3, 20, 20)
    for name, weighting, w in [
        ("power", sk.weighting.power(4), y.abs() ** 4),
        ("threshold", sk.weighting.threshold(0.5, below=0.1), torch.where(y > 0.5, 1.0, 0.1).double()),
    ]:
        f = sk.reweighted_least_squares([(x4, y4)], weighting)
        expected = entrywise(x, y, w)
        assert relative(f.weight, expected, x) < 1e-10, name
        left = (w * (f(x) - y).square()).sum(0) / w.sum(0)
        assert f.residual == pytest.approx(left.sum().item(), rel=1e-9)


def test_robust_weights_ignore_outliers(generator):
    x = torch.randn(500, 4, generator=generator).double()
    truth = torch.randn(2, 4, generator=generator).double()
    y = x @ truth.T + 0.01 * torch.randn(500, 2, generator=generator).double()
    y[::25] += 100
    plain = sk.lstsq([(x, y)])
    for weighting in (sk.weighting.huber(0.05), sk.weighting.cauchy(0.05)):
        f = sk.reweighted_least_squares([(x[:200], y[:200]), (x[200:], y[200:])], weighting, iterations=30)
        assert (f.weight - truth).norm() < 0.05 * (plain.weight - truth).norm()
        # a fixed point: the weights of its own residuals give the map again
        w = weighting(x, y, y - f(x))
        assert torch.allclose(reference.least_squares(x, y, w)[0], f.weight, atol=1e-4)
    with pytest.raises(NotFiniteError, match="negative"):
        sk.reweighted_least_squares([(x, y)], lambda x, y, r: -torch.ones(len(x)).double())
    with pytest.raises(ValueError, match="weighting must give"):
        sk.reweighted_least_squares([(x, y)], lambda x, y, r: torch.ones(3).double())
