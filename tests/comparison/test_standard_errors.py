"""Standard errors against the spread of the estimates over many data sets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stitchkern as sk
from stitchkern.comparison.blocks import MOST_BLOCKS
from tests.comparison.conftest import cnn, images, split


def pair() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        a, b = (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)) for _ in range(2))
    return a, b


def spread(repeats: int, batches: int, size: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all values over data sets: their standard deviation, and their mean standard error."""
    a, b = pair()
    g = torch.Generator().manual_seed(0)
    found = [sk.compare(a, b, list(torch.randn(batches, size, 8, generator=g)), **options) for _ in range(repeats)]
    values, errors = (torch.stack([getattr(one, name) for one in found]) for name in ("values", "standard_error"))
    return values.std(0), errors.square().mean(0).sqrt()


def test_of_the_minibatch_estimator() -> None:
    deviation, error = spread(120, 12, 32)
    assert ((error / deviation).log().abs() < 0.25).all(), error / deviation


@pytest.mark.parametrize("options", [dict(features="flatten"), dict(unbiased=True)])
def test_of_exact_cka_it_is_slightly_too_large(options) -> None:
    deviation, error = spread(120, 12, 32, estimator="exact", **options)
    assert (error / deviation > 0.8).all() and (error / deviation < 1.6).all(), error / deviation


@pytest.mark.parametrize("measure", ["procrustes_similarity", "linear_r2", "cca"])
def test_of_indices_from_moments(measure) -> None:
    deviation, error = spread(100, 12, 40, measure=measure, layers_a=["0", "2"], layers_b=["0", "2"])
    assert ((error / deviation).log().abs() < 0.4).all(), error / deviation


def test_of_indices_from_features_where_blocks_are_asked_for() -> None:
    deviation, error = spread(60, 1, 100, measure="rsa", blocks=10, layers_a=["0"], layers_b=["2"])
    assert ((error / deviation).log().abs() < 0.5).all(), error / deviation


def test_blocks() -> None:
    a, b = cnn(0), cnn(1)
    layers = dict(layers_a=["0", "4"], layers_b=["4"])
    batches = split(images(120), *[10] * 12)
    every = sk.compare(a, b, batches, **layers)
    assert every.blocks == 12
    some = sk.compare(a, b, batches, blocks=5, **layers)
    assert some.blocks == 5
    torch.testing.assert_close(some.values, every.values, rtol=1e-12, atol=0)
    assert (some.standard_error != every.standard_error).all() and (some.standard_error > 0).all()
    for options in (dict(), dict(estimator="exact"), dict(measure="svcca", features="pool")):
        none = sk.compare(a, b, batches, blocks=0, **layers, **options)
        assert none.blocks == 0 and none.standard_error.isnan().all() and not none.values.isnan().any()
        assert not sk.compare(a, b, batches, **layers, **options).standard_error.isnan().any()
        one = sk.compare(a, b, batches[:1], **layers, **options)  # one batch is one block
        assert one.blocks == 0 and one.standard_error.isnan().all()
    jackknife = sk.compare(a, b, batches, measure="svcca", features="pool", blocks=3, **layers)
    assert jackknife.blocks == 3
    assert sk.compare(a, b, batches, measure="rsa", **layers).standard_error.isnan().all()


def test_the_delta_method_by_hand() -> None:
    a, b = pair()
    batches = list(torch.randn(6, 9, 8, generator=torch.Generator().manual_seed(1)))
    found = sk.compare(a, b, batches, layers_a=["0"], layers_b=["2"])
    with torch.no_grad():
        sums = [[sk.hsic(u.double(), v.double(), unbiased=True) for u, v in ((x, y), (x, x), (y, y))]
                for x, y in ((a[0](z), b(z)) for z in batches)]  # fmt: skip
    t = torch.tensor(sums, dtype=torch.float64, requires_grad=True)
    xy, xx, yy = t.sum(0)
    ratio = xy / (xx * yy).sqrt()
    (slope,) = torch.autograd.grad(ratio, t)
    parts = (slope * t).sum(1).detach()
    error = (6 / 5 * (parts - parts.mean()).square().sum()).sqrt()
    assert found.values.item() == pytest.approx(ratio.item(), rel=1e-6)
    assert found.standard_error.item() == pytest.approx(error.item(), rel=1e-5)


def test_many_batches_make_no_more_blocks_than_memory_allows() -> None:
    model = nn.Sequential(nn.Identity())
    other = nn.Sequential(nn.Linear(3, 2))
    batches = list(torch.randn(2 * MOST_BLOCKS + 7, 5, 3, generator=torch.Generator().manual_seed(0)))
    many = sk.compare(model, other, batches)
    assert many.blocks == MOST_BLOCKS + 4
    some = sk.compare(model, other, batches, blocks=100)
    torch.testing.assert_close(many.values, some.values, rtol=1e-10, atol=0)
    torch.testing.assert_close(many.standard_error, some.standard_error, rtol=0.3, atol=0)
