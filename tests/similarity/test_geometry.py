"""Numbers of one representation against their definitions, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError


def test_against_reference(case, device):
    name, x, _ = case
    near = x.to(device)
    size = x.abs().max().item()
    assert sk.magnitude(near) == pytest.approx(reference.magnitude(x).item(), abs=1e-6 * size)
    assert sk.concentricity(near) == pytest.approx(reference.concentricity(x).item(), abs=1e-6)
    for options in ({}, {"t": 0.5, "self_pairs": True}, {"normalize": False}):
        expected = reference.uniformity(x, **options).item()
        assert sk.uniformity(near, **options) == pytest.approx(expected, rel=1e-6, abs=1e-6), (name, options)


def test_magnitude_of_moments(blocks, generator):
    x, y = torch.randn(50, 4, generator=generator) + 3, torch.randn(50, 3, generator=generator)
    expected = sk.magnitude(x)
    assert sk.magnitude(sk.Moments(4).update(x)) == pytest.approx(expected, rel=1e-7)
    assert sk.magnitude(sk.Moments(4, 3, precision="float64").update(x, y)) == pytest.approx(expected, rel=1e-12)
    stats = sk.Statistics.of(blocks)
    expected = torch.tensor([sk.magnitude(m) for m in blocks], dtype=torch.float64)
    torch.testing.assert_close(sk.magnitude(stats), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(sk.magnitude(blocks), expected, rtol=1e-12, atol=0)
    assert sk.bootstrap(blocks, sk.magnitude, resamples=20).value.shape == ()
    for huge in (1e-200, 1e200):
        assert sk.magnitude(x.double() * huge) == pytest.approx(sk.magnitude(x.double()) * huge, rel=1e-12)
    assert sk.magnitude(torch.zeros(4, 2)) == 0


@pytest.mark.parametrize("n", [2, 512, 513, 1025])
def test_uniformity_in_tiles(n, generator):
    x = torch.randn(n, 3, generator=generator).double()
    d = reference.distances(x / x.norm(dim=1, keepdim=True)).square()
    above = torch.triu_indices(n, n, 1)
    expected = (-2 * d[above[0], above[1]]).exp().mean().log().item()
    assert sk.uniformity(x) == pytest.approx(expected, abs=1e-9)


def test_known_values(generator):
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert sk.concentricity(corners + 0.5) == pytest.approx(reference.concentricity(corners + 0.5).item(), abs=1e-12)
    same = torch.rand(20, 1, generator=generator) * torch.tensor([3.0, -4.0]) + torch.tensor([3.0, -4.0])
    assert sk.concentricity(same) == pytest.approx(1, abs=1e-7) and sk.uniformity(same) == pytest.approx(0, abs=1e-7)
    assert sk.magnitude(torch.tensor([[3.0, 0], [3, 8]])) == 5
    simplex = torch.eye(7)  # all pairs at ‖a − b‖² = 2, at n/(n − 1) of that about their mean
    assert sk.uniformity(simplex) == pytest.approx(-4, abs=1e-12)
    assert sk.uniformity(simplex - 1 / 7, t=3) == pytest.approx(-6 * 7 / 6, abs=1e-6)
    assert sk.uniformity(torch.randn(300, 500, generator=generator)) == pytest.approx(-4, abs=0.1)
    far = 1e3 * torch.eye(5)
    assert sk.uniformity(far, normalize=False) == pytest.approx(-4e6)  # whose exponential is 0 in float64
    assert sk.uniformity(far, normalize=False, self_pairs=True) == pytest.approx(-math.log(5))


def test_invariance_and_input_types(generator):
    x = torch.randn(70, 9, generator=generator).double() + 0.3
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator).double()).Q
    scales = torch.rand(70, 1, generator=generator).double() + 0.1
    indices = {"magnitude": sk.magnitude, "concentricity": sk.concentricity, "uniformity": sk.uniformity}
    for name, ours in indices.items():
        value = ours(x)
        assert ours(x.numpy()) == value
        assert ours(x @ turn) == pytest.approx(value, abs=1e-9), name
        assert ours(x.bfloat16()) == pytest.approx(ours(x.bfloat16().double()), abs=1e-12), name
        assert abs(ours(x + 1) - value) > 1e-3
        if name != "magnitude":
            assert ours(1e-160 * x) == pytest.approx(value, abs=1e-9), name
    assert sk.uniformity(scales * x) == pytest.approx(sk.uniformity(x), abs=1e-9)
    raw = sk.uniformity(x, normalize=False)
    assert sk.uniformity(x + 100, normalize=False) == pytest.approx(raw, abs=1e-9)
    assert abs(sk.uniformity(2 * x, normalize=False) - raw) > 1e-3


def test_bad_input_is_an_error():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    zero = x.clone()
    zero[4] = 0
    for error, match, call in [
        (StatisticsError, "sample 4 of x is zero", lambda: sk.concentricity(zero)),
        (StatisticsError, "sample 4 of x is zero", lambda: sk.uniformity(zero)),
        (StatisticsError, "the mean of x is zero", lambda: sk.concentricity(torch.cat([x, -x]))),
        (StatisticsError, "at least 2 samples; got 1", lambda: sk.uniformity(x[:1])),
        (StatisticsError, "at least 1 sample; got 0", lambda: sk.magnitude(x[:0])),
        (StatisticsError, "at least 1 sample; got 0", lambda: sk.concentricity(x[:0])),
        (StatisticsError, "overflow", lambda: sk.uniformity(1e200 * x.double(), normalize=False)),
        (ValueError, "t must be positive", lambda: sk.uniformity(x, t=0)),
        (ValueError, "t must be positive", lambda: sk.uniformity(x, t=math.nan)),
        (ShapeError, r"x must be \(n, p\); got \(3,\)", lambda: sk.magnitude(x[0])),
        (NotFiniteError, "x holds NaN", lambda: sk.magnitude(x / 0)),
        (NotFiniteError, "x holds NaN", lambda: sk.concentricity(x / 0)),
        (TypeError, "x must be a torch tensor", lambda: sk.uniformity([1.0])),
    ]:
        with pytest.raises(error, match=match):
            call()
