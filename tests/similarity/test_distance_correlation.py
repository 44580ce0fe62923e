"""Distance correlation against its centred n × n matrices."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError


@pytest.mark.parametrize("unbiased", [False, True])
def test_against_reference(case, unbiased, device):
    name, x, y = case
    expected = reference.distance_correlation(x, y, unbiased=unbiased).item()
    a, b = x.to(device), y.to(device)
    found = sk.distance_correlation(a, b, unbiased=unbiased)
    assert found == pytest.approx(expected, abs=1e-6)
    assert sk.distance_correlation(b, a, unbiased=unbiased) == pytest.approx(found, abs=1e-12)
    assert sk.distance_correlation(a, a, unbiased=unbiased) == pytest.approx(1, abs=1e-12)
    if name == "independent":
        assert abs(found) < 0.1 if unbiased else found > 0.3


@pytest.mark.parametrize("n", [2, 3, 4, 512, 513, 1025])
def test_tiles(n, generator):
    x = torch.randn(n, 4, generator=generator)
    y = x[:, :2] + torch.randn(n, 2, generator=generator)
    for unbiased in (False, True):
        if n >= 4 or not unbiased:
            expected = reference.distance_correlation(x, y, unbiased=unbiased).item()
            assert sk.distance_correlation(x, y, unbiased=unbiased) == pytest.approx(expected, abs=1e-9)


def test_known_values(generator):
    x = torch.tensor([[0.0], [1.0]]).repeat(10, 1)
    y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]).repeat(5, 1)
    assert sk.distance_correlation(x, y) == pytest.approx(0, abs=1e-7)  # every combination as often: independent
    assert sk.distance_correlation(x, 3 - 5 * x) == pytest.approx(1, abs=1e-12)
    t = torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None]
    found = sk.distance_correlation(t, t.square())  # uncorrelated, but not independent
    assert abs(float((t * t.square()).mean())) < 1e-12 and 0.4 < found < 0.6
    # CKA with the kernel −‖a − b‖
    a, b = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator)
    kernels = [-reference.distances(s) for s in (a, b)]
    for unbiased in (False, True):
        xy, xx, yy = (
            reference.hsic_of_kernels(k, l, unbiased=unbiased).item()
            for k, l in ((kernels[0], kernels[1]), (kernels[0], kernels[0]), (kernels[1], kernels[1]))
        )
        value = sk.distance_correlation(a, b, unbiased=unbiased)
        assert (value if unbiased else value**2) == pytest.approx(xy / (xx * yy) ** 0.5, abs=1e-12)


def test_the_corrected_form_does_not_grow_with_the_features(generator):
    x, y = torch.randn(40, 4000, generator=generator), torch.randn(40, 4000, generator=generator)
    assert sk.distance_correlation(x, y) > 0.95
    assert abs(sk.distance_correlation(x, y, unbiased=True)) < 0.1


def test_invariance_and_input_types(generator):
    x, y = torch.randn(70, 9, generator=generator).double(), torch.randn(70, 6, generator=generator).double()
    y = y + x[:, :6]
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator).double()).Q
    half = x.bfloat16(), y.bfloat16()
    for unbiased in (False, True):
        options = {"unbiased": unbiased}
        value = sk.distance_correlation(x, y, **options)
        assert 0.3 < value < 0.95
        assert sk.distance_correlation(x.numpy(), y.numpy(), **options) == value
        assert sk.distance_correlation(1e-160 * x @ turn, 1e160 * y, **options) == pytest.approx(value, abs=1e-9)
        assert sk.distance_correlation(x + 1e3, y - 5, **options) == pytest.approx(value, abs=1e-9)
        expected = sk.distance_correlation(half[0].double(), half[1].double(), **options)
        assert sk.distance_correlation(*half, **options) == pytest.approx(expected, abs=1e-12)


def test_undefined_is_an_error():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(3))
    for error, match, a, unbiased in [
        (StatisticsError, "y does not vary", (x, torch.full((10, 2), 0.1)), False),
        (StatisticsError, "at least 2 samples; got 1", (x[:1], x[:1]), False),
        (StatisticsError, "at least 4 samples; got 3", (x[:3], x[:3]), True),
        (StatisticsError, "distances of x are sums", (torch.eye(10), x), True),
        (StatisticsError, "distances of y are sums", (x, torch.eye(10).double() * 0.1 + 7), True),
        (ShapeError, "same n", (x, x[:9]), False),
        (NotFiniteError, "x holds NaN", (x / 0, x), False),
        (ValueError, "y is missing", (x, None), False),
        (TypeError, "x must be a torch tensor", ([1.0], x), False),
    ]:
        with pytest.raises(error, match=match):
            sk.distance_correlation(*a, unbiased=unbiased)
    # equally far apart is a distance matrix like any other for the first form
    expected = reference.distance_correlation(torch.eye(10), x).item()
    assert sk.distance_correlation(torch.eye(10), x) == pytest.approx(expected, abs=1e-12)
