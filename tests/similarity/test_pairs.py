"""CKA of all pairs of two lists: equal to that of each pair, in either space, and it names what it cannot take."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.similarity.pairs import hsic_matrix
from tests.similarity.conftest import CASES, torture


def exact(x, y, kernel, unbiased, sigma=None):
    def h(a, b):
        k, l = (reference.kernel_matrix(t, kernel, sigma or 1.0) for t in (a, b))
        return reference.hsic_of_kernels(k, l, unbiased=unbiased).item()

    return h(x, y) / math.sqrt(h(x, x) * h(y, y))


@pytest.mark.parametrize("space", ["features", "samples"])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_torture(name, unbiased, space):
    lists = zip(*(torture(name, seed) for seed in range(3)), strict=True)
    list_x, list_y = ([t.bfloat16() if i == 2 else t for i, t in enumerate(found)] for found in lists)
    found = sk.cka_matrix(list_x, list_y, unbiased=unbiased, space=space)
    wanted = [[exact(x, y, "linear", unbiased) for y in list_y] for x in list_x]
    assert found.shape == (3, 3) and found.dtype == torch.float64
    assert (found - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-6
    own = sk.cka_matrix(list_x, unbiased=unbiased, space=space)
    assert torch.equal(own, own.T) and (own.diagonal() - 1).abs().max() < 1e-12
    assert own[0, 1].item() == pytest.approx(exact(*list_x[:2], "linear", unbiased), abs=1e-6)


@pytest.mark.parametrize("kernel", ["rbf", "laplace"])
def test_other_kernels(kernel, generator):
    sides = [torch.randn(150, p, generator=generator) for p in (3, 20, 7, 9, 1)]
    found = sk.cka_matrix(sides[:2], sides[2:], kernel=kernel, bandwidth=[2.0, 5.0], unbiased=True)
    assert found.shape == (2, 2, 3)
    for b, sigma in enumerate((2.0, 5.0)):
        for i, j in ((0, 0), (1, 2)):
            wanted = exact(sides[i], sides[2 + j], kernel, True, sigma)
            assert found[b, i, j].item() == pytest.approx(wanted, abs=1e-9)
    median = sk.cka_matrix(sides[:2], sides[2:], kernel=kernel)
    assert median[1, 1].item() == pytest.approx(sk.cka(sides[1], sides[3], kernel=kernel), rel=1e-12)


def test_the_cheaper_space(generator, monkeypatch):
    from stitchkern.similarity import kernel_sums

    called = []
    monkeypatch.setattr(kernel_sums.ops, "hsic_sums", lambda *a, f=kernel_sums.ops.hsic_sums: called.append(0) or f(*a))
    few, many = ([torch.randn(n, p, generator=generator) for p in (5, 30)] for n in (20, 200))
    for lists, space, samples in (
        (few, "auto", True),
        (many, "auto", False),
        (few, "features", False),
        (many, "samples", True),
    ):
        for index in (sk.cka, sk.hsic):
            called.clear()
            index(*lists, space=space)
            assert bool(called) == samples
        called.clear()
        sk.cka_matrix(lists[:1], lists[1:], space=space)
        assert bool(called) == samples
    for index in (sk.cka, sk.hsic):
        for kernel in ("linear", "rbf"):
            assert index(*few, kernel=kernel, debiased=True) == index(*few, kernel=kernel, unbiased=True)


def test_hsic_matrix_of_a_layer_that_does_not_vary(generator):
    x, dull = torch.randn(30, 4, generator=generator), torch.full((30, 3), 0.1)
    for space in ("samples", "features"):
        xy, xx, yy = hsic_matrix([x, dull], [x.numpy()], space=space)
        assert xy[1].tolist() == [0] and xx[1] == 0 and yy[0] == xx[0] > 0


def test_errors(generator):
    x, dull = torch.randn(30, 4, generator=generator), torch.full((30, 3), 0.1)
    spoilt = x.clone()
    spoilt[3, 1] = math.nan
    for error, match, call in [
        (StatisticsError, r"list_x\[1\] does not vary", lambda: sk.cka_matrix([x, dull], [x])),
        (StatisticsError, r"list_y\[0\] does not vary", lambda: sk.cka_matrix([x], [dull])),
        (StatisticsError, "at least 4 samples; got 3", lambda: sk.cka_matrix([x[:3]], unbiased=True)),
        (NotFiniteError, r"list_y\[1\] holds NaN", lambda: sk.cka_matrix([x], [x, spoilt], space="samples")),
        (NotFiniteError, "NaN or Inf", lambda: sk.cka_matrix([x], [x, spoilt], space="features")),
        (ShapeError, r"list_x\[0\] and list_y\[0\] must be .* the same n", lambda: sk.cka_matrix([x], [x[:9]])),
        (ShapeError, "at least one feature", lambda: sk.cka_matrix([x, x[:, :0]])),
        (TypeError, r"list_x\[0\] must be a torch tensor or a numpy array; got list", lambda: sk.cka_matrix([[1.0]])),
        (TypeError, "real", lambda: sk.cka_matrix([np.ones((4, 2)) * 1j])),
        (ValueError, r"list_x must be a list of features \(n, p\); got Tensor", lambda: sk.cka_matrix(x)),
        (ValueError, "list_y must be a list .* got an empty one", lambda: sk.cka_matrix([x], [])),
        (ValueError, "space must be auto, samples or features; got 'kernel'", lambda: sk.cka(x, x, space="kernel")),
        (ValueError, "has no finite space", lambda: sk.cka_matrix([x], kernel="rbf", space="features")),
        (ValueError, "moments hold no samples", lambda: sk.cka(sk.Moments(4, 4).update(x, x), space="samples")),
    ]:
        with pytest.raises(error, match=match):
            call()
