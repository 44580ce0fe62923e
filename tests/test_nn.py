from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from stitchkern.errors import ShapeError
from stitchkern.nn import LowRankStitch, Stitch


def affine(p: int = 3, q: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(q, p, generator=generator), torch.randn(q, generator=generator)


@pytest.mark.parametrize("shape", [(4, 3), (4, 7, 3), (4, 3, 2, 5), (0, 3), (1, 3, 1, 1)])
def test_forward_is_the_affine_map_over_channels(shape: tuple[int, ...]) -> None:
    weight, bias = affine()
    x = torch.randn(shape)
    y = Stitch.from_affine(weight, bias)(x)
    dim = 1 if x.ndim == 4 else -1
    expected = torch.einsum("...p,qp->...q", x.movedim(dim, -1), weight) + bias
    assert_close(y, expected.movedim(-1, dim))


def test_no_bias_and_identity() -> None:
    weight, _ = affine()
    assert_close(Stitch.from_affine(weight)(torch.eye(3)), weight.T)
    assert Stitch.from_affine(weight).bias is None
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Stitch.identity(3)(x), x)


def test_from_affine_copies_and_keeps_the_dtype() -> None:
    weight, bias = affine()
    stitch = Stitch.from_affine(weight.double(), bias.double())
    assert stitch.weight.dtype == stitch.bias.dtype == torch.float64
    assert (stitch.p, stitch.q) == (3, 5)
    single = Stitch.from_affine(weight, bias)
    weight.zero_()
    assert single.weight.abs().sum() > 0


def test_gradients_reach_weight_and_bias() -> None:
    stitch = Stitch.from_affine(*(t.double() for t in affine()))
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda w, b: torch.func.functional_call(stitch, {"weight": w, "bias": b}, (x,)),
        (stitch.weight.detach().requires_grad_(), stitch.bias.detach().requires_grad_()),
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(4, 6), (1, 1), (3, 5)])
def test_resize_comes_before_the_map(mode: str, size: tuple[int, int]) -> None:
    weight, bias = affine()
    x = torch.randn(2, 3, 3, 5)
    resized = torch.nn.functional.interpolate(x, size=size, mode=mode)
    stitch = Stitch.from_affine(weight, bias, size=size, resize=mode)
    assert_close(stitch(x), torch.nn.functional.conv2d(resized, weight[:, :, None, None], bias))


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (4, 2), ["3 channels", "got 2", "(4, 2)"]),
        ({}, (4, 7, 2), ["3 channels", "got 2"]),
        ({}, (4, 2, 3, 3), ["3 channels in dimension 1", "got 2"]),
        ({}, (3,), ["(n, c), (n, t, c) or (n, c, h, w)", "(3,)"]),
        ({}, (1, 3, 2, 2, 2), ["(1, 3, 2, 2, 2)"]),
        ({"size": (4, 6)}, (2, 3, 3, 5), ["4×6", "3×5", "resize='bilinear'"]),
        ({"size": (4, 6), "resize": "nearest"}, (2, 3), ["(n, 3, 4, 6)", "(2, 3)"]),
    ],
)
def test_wrong_shapes_are_named(options: dict, shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(ShapeError) as caught:
        Stitch(3, 5, **options)(torch.zeros(shape))
    for word in words:
        assert word in str(caught.value)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"resize must be None or one of bilinear, nearest; got 'cubic'"):
        Stitch(3, 5, size=(2, 2), resize="cubic")
    with pytest.raises(ValueError, match=r"needs size=\(h, w\)"):
        Stitch(3, 5, resize="nearest")
    with pytest.raises(ShapeError, match=r"weight must be \(q, p\) and bias \(q,\); got \(5, 3\) and \(3,\)"):
        Stitch.from_affine(torch.zeros(5, 3), torch.zeros(3))


def test_size_of_the_input_that_fits_passes() -> None:
    assert Stitch(3, 5, size=(2, 4))(torch.zeros(1, 3, 2, 4)).shape == (1, 5, 2, 4)


def test_copies_and_pickles_compute_the_same() -> None:
    stitch = Stitch(3, 5, size=(2, 2), resize="nearest")
    x = torch.randn(1, 3, 4, 4)
    for other in (copy.deepcopy(stitch), pickle.loads(pickle.dumps(stitch))):
        assert torch.equal(other(x), stitch(x))


@pytest.mark.parametrize("shape", [(4, 3), (4, 7, 3), (4, 3, 2, 5), (0, 3)])
def test_bottleneck_is_the_product_of_its_factors(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    up, down, bias = (torch.randn(s, generator=generator) for s in ((5, 2), (2, 3), (5,)))
    stitch = LowRankStitch.from_factors(up, down, bias)
    x = torch.randn(shape, generator=generator)
    assert_close(stitch(x), Stitch.from_affine(up @ down, bias)(x))
    assert (stitch.p, stitch.q, stitch.rank) == (3, 5, 2)
    assert "rank=2" in repr(stitch) and "3, 5" in repr(stitch)
    again = LowRankStitch(3, 5, 2)
    again.load_state_dict(stitch.state_dict())
    assert_close(again(x), stitch(x))
    assert_close(pickle.loads(pickle.dumps(stitch))(x), stitch(x))


def test_bottleneck_draws_and_learns_both_layers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stitch = LowRankStitch(64, 32, 4, bias=False)
    assert stitch.bias is None and 0.1 < stitch.down.abs().max() <= 1 / 8 and 0.4 < stitch.up.abs().max() <= 1 / 2
    stitch(torch.randn(2, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stitch.parameters())
    fits = LowRankStitch(3, 5, 2, size=(2, 2), resize="bilinear")
    assert fits(torch.randn(1, 3, 4, 4)).shape == (1, 5, 2, 2)


def test_bad_bottlenecks() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LowRankStitch(3, 5, 0)
    with pytest.raises(ShapeError, match=r"up must be \(q, k\)"):
        LowRankStitch.from_factors(torch.ones(5, 2), torch.ones(3, 3))
    with pytest.raises(ShapeError, match="expects 3 channels"):
        LowRankStitch(3, 5, 2)(torch.ones(4, 4))
