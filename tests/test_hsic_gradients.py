"""The gradients of kernel sums, of CKA and of HSIC, against those of the definitions and against finite differences."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

import stitchkern as sk
from stitchkern import ops, reference

KERNELS = list(ops.HSIC_KERNELS)


def gradients(sums, x, kernels, bandwidth, shift, weights):
    x = [t.detach().requires_grad_() for t in x]
    device = x[0].device
    found = sums(x, kernels, bandwidth.to(device), shift.to(device))
    return torch.autograd.grad(sum((a * b.to(device)).sum() for a, b in zip(found, weights, strict=True)), x)


def native(x, kernels, bandwidth, shift):
    return ops.hsic_sums(x, [ops.HSIC_KERNELS[k] for k in kernels], bandwidth, shift)


def check(x, generator, bandwidths: int = 2) -> None:
    kernels = list(itertools.islice(itertools.cycle(KERNELS), len(x)))
    n = len(x[0])
    sigma = torch.tensor([[t.shape[1] ** 0.5] for t in x]) * torch.linspace(1, 3, bandwidths)
    options = sigma.double().contiguous(), torch.rand(len(x), bandwidths, generator=generator).double()
    shapes = (len(x), bandwidths, n), (len(x), bandwidths, n), (bandwidths, len(x), len(x))
    weights = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
    found = gradients(native, x, kernels, *options, weights)
    exact = gradients(reference.hsic_sums, [t.cpu().double() for t in x], kernels, *options, weights)
    for ours, theirs, t in zip(found, exact, x, strict=True):
        assert ours.dtype == t.dtype and ours.shape == t.shape and ours.device == t.device
        allowed = max(2 * torch.finfo(t.dtype).eps, 1e-12)
        assert (ours.cpu().double() - theirs).abs().max() <= allowed * theirs.abs().max()


@pytest.mark.parametrize("n", [1, 2, 5, 96, 97, 250])
@pytest.mark.parametrize("sides", [1, 2, 5])
def test_sizes(n, sides, generator, device):
    widths = (1, 70, 25, 400, 3)[:sides]
    check([torch.randn(n, p, generator=generator).double().to(device) + 2 for p in widths], generator)


def test_no_samples(device):
    x = [torch.zeros(0, p, device=device, requires_grad=True) for p in (3, 4)]
    one = torch.ones(2, 1, dtype=torch.float64, device=device)
    for kernel in KERNELS:
        found = torch.autograd.grad(sum(t.sum() for t in native(x, [kernel] * 2, one, one)), x)
        assert [g.shape for g in found] == [(0, 3), (0, 4)]


@pytest.mark.parametrize("kernel, n", [("linear", 6), ("linear", 30), ("rbf", 30)])
def test_a_second_derivative_is_an_error(kernel, n, generator, device):
    """Not a gradient that lacks what comes through the first one."""
    x, y = (torch.randn(n, 5, generator=generator).to(device) for _ in range(2))
    x.requires_grad_()
    (first,) = torch.autograd.grad(sk.cka(x, y, kernel=kernel), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once|twice"):
        first.square().sum().backward()


def test_several_blocks_of_tiles(generator, device):
    check([torch.randn(900, p, generator=generator).double().to(device) for p in (4, 9, 1100)], generator, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_and_strides(dtype, generator, device):
    base = torch.randn(60, 50, generator=generator).to(device, dtype)
    check([base[::2, 3:20], base[:, :30].T, base[:30]], generator)


def test_every_instruction_set(cpu_path, generator):
    check([torch.randn(110, p, generator=generator).double() - 1 for p in (30, 5, 7)], generator)


def test_same_bits_for_any_number_of_threads(generator):
    before, results = torch.get_num_threads(), []
    x = [torch.randn(300, p, generator=generator) for p in (300, 40)]
    weights = [torch.ones(2, 1, 300).double(), torch.ones(2, 1, 300).double(), torch.ones(1, 2, 2).double()]
    one = torch.ones(2, 1).double()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradients(native, x, ["rbf", "linear"], 9 * one, 0 * one, weights))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_equal_samples_have_no_direction(generator):
    """|x_i − x_k| has no derivative where it is 0: such pairs add nothing, and no NaN."""
    x = torch.randn(10, 3, generator=generator).double().repeat(2, 1).requires_grad_()
    y = torch.randn(20, 2, generator=generator).double()
    (found,) = torch.autograd.grad(sk.cka(x, y, kernel="laplace", bandwidth=2.0), x)
    assert found.isfinite().all() and found.abs().max() > 0


SPACES = [("linear", "features"), ("linear", "samples"), ("rbf", "samples"), ("laplace", "samples")]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel, space", SPACES)
@pytest.mark.parametrize("index", [sk.cka, sk.hsic])
def test_gradcheck(index, kernel, space, unbiased, generator):
    x, y = (torch.randn(9, p, generator=generator).double() + 3 for p in (4, 2))
    options = {"kernel": kernel, "space": space, "unbiased": unbiased}
    if kernel != "linear":
        options["bandwidth"] = 2.0
    function = partial(index, **options)
    both = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(function, both)
    assert torch.autograd.gradcheck(lambda x: function(x, y.detach()), (x,))
    assert torch.autograd.gradcheck(lambda y: function(x.detach(), y), (y,))
    value = function(*both)
    assert value.ndim == 0 and value.dtype == torch.float64
    with torch.no_grad():
        assert function(*both) == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("space", ["features", "samples"])
def test_gradcheck_of_matrices(space, generator):
    sides = [torch.randn(8, p, generator=generator).double().requires_grad_() for p in (3, 5, 2)]
    for unbiased in (False, True):
        matrix = partial(sk.cka_matrix, space=space, unbiased=unbiased)
        for function in (lambda *s, m=matrix: m(s[:1], s[1:]), lambda *s, m=matrix: m(s)):
            assert torch.autograd.gradcheck(function, sides)
    several = partial(sk.cka_matrix, kernel="rbf", bandwidth=[1.0, 3.0])
    assert torch.autograd.gradcheck(lambda *s: several(s[:2], s[2:]), sides)


@pytest.mark.parametrize("unbiased", [False, True])
def test_float32_gradients_of_far_features(unbiased, generator):
    """In float32, many samples, far from zero: the gradient of the float64 definition, to float32."""
    x = torch.randn(3000, 16, generator=generator)
    y = x @ torch.randn(16, 12, generator=generator) + torch.randn(3000, 12, generator=generator)
    far = x + 1000
    (found,) = torch.autograd.grad(sk.cka(far.requires_grad_(), y, unbiased=unbiased), far)
    exact = far.detach().double().requires_grad_()
    h = partial(reference.hsic_linear, unbiased=unbiased)
    value = h(exact, y) / (h(exact, exact) * h(y, y)).sqrt()
    (wanted,) = torch.autograd.grad(value, exact)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_as_a_penalty(generator):
    """A few steps of gradient descent take a map's output away from what it resembled."""
    x = torch.randn(200, 8, generator=generator)
    layer = torch.nn.Linear(8, 8)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    before = sk.cka(layer(x).detach(), x)
    for _ in range(40):
        optimiser.zero_grad()
        sk.cka(layer(x), x).backward()
        optimiser.step()
    assert sk.cka(layer(x).detach(), x) < before - 0.2


def test_ops_are_well_formed(generator):
    x = [torch.randn(7, p, generator=generator).double().requires_grad_() for p in (3, 2)]
    one = torch.ones(2, 1, dtype=torch.float64)
    torch.library.opcheck(torch.ops.stitchkern.hsic_sums, (x, [0, 1], one, one))
    grads = torch.ones(2, 1, 7).double(), torch.ones(2, 1, 7).double(), torch.ones(1, 2, 2).double()
    torch.library.opcheck(torch.ops.stitchkern.hsic_backward, ([t.detach() for t in x], [0, 1], one, one, *grads))
    with pytest.raises(RuntimeError, match="grad_rows must be contiguous float64"):
        ops.hsic_backward([t.detach() for t in x], [0, 1], one, one, grads[0][:1], *grads[1:])
