"""The CUDA kernels of the kernel sums, run on the CPU by the test executor (tests/executor/)."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from stitchkern import ops, reference
from tests.executor import build
from tests.executor.play import ORDERS, SANITIZED, run_under_sanitizers
from tests.test_hsic import KERNELS, check_sides, run_sides

pytestmark = pytest.mark.skipif(not build.AVAILABLE, reason=f"needs a C++ compiler ({build.CXX})")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SLOW_FLOAT64 = 86  # a compute capability


def tables(xs: list[torch.Tensor], g: torch.Generator, b: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Bandwidths around the size of the data, and shifts of 0 … 1: (s, b) each."""
    sizes = torch.tensor(
        [t.double().std(0, correction=0).square().sum().sqrt().item() + 1e-3 for t in xs], dtype=torch.float64
    )
    spread = torch.rand(len(xs), b, generator=g, dtype=torch.float64)
    return sizes[:, None] * (0.5 + 2 * spread), torch.rand(len(xs), b, generator=g, dtype=torch.float64)


def samples(g: torch.Generator, n: int, widths: list[int]) -> list[torch.Tensor]:
    return [torch.randn(n, p, generator=g) + 3 * i for i, p in enumerate(widths)]


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 65, 128, 130])
@pytest.mark.parametrize("p, q", [(1, 7), (16, 33), (5, 130)])
def test_sizes(n, p, q, executor, generator):
    executor.play(order="shuffled")
    xs = samples(generator, n, [p, q])
    for kernels in (["rbf", "rbf"], ["laplace", "linear"]):
        check_sides(xs, kernels, *tables(xs, generator))


@pytest.mark.parametrize("processors", [1, 3, 200])
def test_many_tiles(processors, executor, generator):
    """Several units to a block, and fewer units than blocks."""
    executor.play(processors=processors)
    xs = samples(generator, 700, [3, 2])
    check_sides(xs, ["rbf", "laplace"], *tables(xs, generator, 1))


def test_units_of_several_tiles(executor, generator):
    xs = samples(generator, 2050, [2])
    check_sides(xs, ["rbf"], *tables(xs, generator, 9))


@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 8, 9, 17, 32, 33, 64])
def test_sides(s, executor, generator):
    executor.play(order="reverse")
    xs = samples(generator, 70, [1 + i % 5 for i in range(s)])
    kernels = [KERNELS[i % 3] for i in range(s)]
    check_sides(xs, kernels, *tables(xs, generator, 1 if s > 9 else 3))


@pytest.mark.parametrize("s", [65, 100])
def test_more_sides_than_one_launch_takes(s, executor, generator):
    xs = samples(generator, 20, [1 + i % 3 for i in range(s)])
    check_sides(xs, [KERNELS[i % 3] for i in range(s)], *tables(xs, generator, 1))


@pytest.mark.parametrize("s, b", [(2, 70), (30, 5), (1, 1)])
def test_bandwidths(s, b, executor, generator):
    """More than one launch takes; each as if it were alone."""
    xs = samples(generator, 30, [2] * s)
    bandwidth, shift = tables(xs, generator, b)
    found = check_sides(xs, ["rbf"] * s, bandwidth, shift)
    for j in {0, b // 2, b - 1}:
        alone = run_sides(xs, ["rbf"] * s, bandwidth[:, j : j + 1].contiguous(), shift[:, j : j + 1].contiguous())
        assert torch.equal(found[0][:, j], alone[0][:, 0]) and torch.equal(found[2][j], alone[2][0])


def test_no_samples_and_no_bandwidths(executor):
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    rows, diagonal, sums = run_sides([torch.zeros(0, 3), torch.zeros(0, 2)], ["rbf", "linear"], zeros + 1, zeros)
    assert rows.shape == diagonal.shape == (2, 3, 0) and sums.shape == (3, 2, 2) and (sums == 0).all()
    rows, diagonal, sums = run_sides([torch.ones(5, 3)], ["rbf"], zeros[:1, :0], zeros[:1, :0])
    assert rows.shape == diagonal.shape == (1, 0, 5) and sums.shape == (0, 1, 1)


@pytest.mark.parametrize("capability", [80, 90])  # planes in global memory, in shared memory
def test_places_of_planes(capability, executor, generator):
    executor.play(capability=capability)
    xs = samples(generator, 150, [20, 30])
    check_sides(xs, ["rbf", "laplace"], *tables(xs, generator, 1))


# ------------------------------------------------------------------------------------------------ types, layouts, data


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_strides(dtype, executor, generator):
    base = torch.randn(140, 40, generator=generator).to(dtype)
    for x in (base[::2, 3:20], base[:70, :20], base[:40].T.expand(40, 40)[:, ::3], base[1:2].expand(70, 40)):
        xs = [x, torch.randn(7, len(x), generator=generator).to(dtype).T]
        bandwidth, shift = tables(xs, generator)
        for kernels in (["rbf", "laplace"], ["linear", "rbf"]):
            found = check_sides(xs, kernels, bandwidth, shift)
            contiguous = run_sides([t.contiguous() for t in xs], kernels, bandwidth, shift)
            assert all(torch.equal(a, b) for a, b in zip(found, contiguous, strict=True))


@pytest.mark.parametrize("types", [DTYPES[::-1], DTYPES[1:], [torch.float16, torch.bfloat16], DTYPES[:2]])
def test_mixed_types(types, executor, generator):
    xs = [t.to(d) for t, d in zip(samples(generator, 70, [5, 9, 17, 4]), types, strict=False)]
    bandwidth, shift = tables(xs, generator)
    found = check_sides(xs, ["rbf"] * len(xs), bandwidth, shift)
    wide = run_sides([t.double() for t in xs], ["rbf"] * len(xs), bandwidth, shift)
    assert all(torch.equal(a, b) for a, b in zip(found, wide, strict=True))


def test_equal_samples_are_at_distance_zero(executor, generator):
    """Exactly, wherever in a tile they are: with bandwidths so small that nothing else counts."""
    half = torch.randn(75, 100, generator=generator) * 1e3 + 1e4
    order = torch.randperm(150, generator=generator)
    xs = [half.repeat(2, 1)[order], half.repeat(2, 1)[order] * 3]
    width = torch.full((2, 1), 1e-3, dtype=torch.float64)
    for capability in (80, 90):
        executor.play(capability=capability)
        rows, diagonal, sums = run_sides(xs, ["rbf", "laplace"], width, width * 0)
        assert (rows == 1).all() and (diagonal == 1).all() and (sums == 150).all()


@pytest.mark.parametrize("name", ["offset", "tiny", "huge", "dead", "clusters", "outlier"])
def test_hostile_data(name, executor, generator):
    x, y = samples(generator, 140, [24, 17])
    match name:
        case "offset":
            x, y = x + 1000, y - 1000
        case "tiny":
            x, y = x * 1e-18, y * 1e-12
        case "huge":
            x, y = x * 1e15, y * 1e12
        case "dead":
            x[:, ::3], y[:, 2] = 0.1, 0
        case "clusters":
            x = x * 1e-3 + 100 * torch.randn(4, 24, generator=generator)[torch.arange(140) % 4]
        case "outlier":
            x[7] *= 1e4
    sizes = torch.tensor(
        [[t.double().std(0, correction=0).square().sum().sqrt().item()] for t in (x, y)], dtype=torch.float64
    )
    bandwidth = sizes * torch.tensor([0.2, 1.0, 1e6], dtype=torch.float64)
    shift = torch.tensor([[0.0, 0.5, 1.0]] * 2, dtype=torch.float64)
    for kernels in (["rbf", "rbf"], ["laplace", "linear"]):
        check_sides([x, y], kernels, bandwidth, shift)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_with_its_side(bad, executor, generator):
    x, y = samples(generator, 70, [3, 4])
    x[66, 1] = bad
    rows, _, sums = run_sides([x, y], ["rbf", "rbf"], *tables([y, y], generator, 1))
    assert rows[0].isnan().all() and rows[1].isfinite().all()
    assert sums[0].isnan().tolist() == [[True, True], [True, False]]


def test_exponential(executor):
    """Each the kernel of one pair of samples, against math.exp and math.expm1."""
    x = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    argument = torch.cat([torch.logspace(-18, 2.85, 90, dtype=torch.float64), torch.arange(1, 40) * math.log(2) / 2])
    argument = argument.clamp(max=708)
    width, zeros = (1 / argument)[None], torch.zeros(1, len(argument), dtype=torch.float64)
    exp, expm1 = (run_sides([x], ["laplace"], width, shift)[0][0, :, 0] for shift in (zeros, zeros + 1))
    for found, power, difference in zip((1 / width[0]).tolist(), exp.tolist(), expm1.tolist(), strict=True):
        assert power == pytest.approx(math.exp(-found), rel=5e-16)
        assert difference == pytest.approx(math.expm1(-found), rel=1e-15)
    below = run_sides([x], ["laplace"], torch.full((1, 1), 1e-9, dtype=torch.float64), zeros[:, :1])[0]
    assert (below >= 0).all() and (below < 1e-300).all()


# ------------------------------------------------------------------------------------------------ bfloat16 parts


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_narrow_products(dtype, executor, generator):
    """On chips with slow float64, for as many samples of narrow data, and bandwidths that are not small."""
    xs = [t.to(dtype) for t in samples(generator, 1040, [3, 70])]
    norms = [(t.double() - t.double().mean(0)).square().sum(1).max().sqrt().item() for t in xs]
    width = torch.tensor([[0.51 * v, 3 * v] for v in norms], dtype=torch.float64)
    shift = torch.full_like(width, 0.5)
    fast = run_sides(xs, ["rbf", "rbf"], width, shift)
    executor.play(capability=SLOW_FLOAT64)
    slow = check_sides(xs, ["rbf", "rbf"], width, shift, roundoff=2e-8)
    differences = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(slow, fast, strict=True)]
    assert 0 < differences[0] < 2e-7 and differences[1] == 0 and 0 < differences[2] < 2e-7
    assert all(torch.equal(a, b) for a, b in zip(slow, run_sides(xs, ["rbf", "rbf"], width, shift), strict=True))


@pytest.mark.parametrize("kernels, n", [(["linear", "linear"], 128), (["linear", "rbf"], 1024)])
def test_narrow_products_of_linear_kernels(kernels, n, executor, generator):
    xs = samples(generator, n, [5, 40])
    xs[1][:] = 0.1 if kernels[1] == "linear" else xs[1]  # what is constant needs no float64
    width = torch.full((2, 1), 50.0, dtype=torch.float64)
    fast = run_sides(xs, kernels, width, width * 0)
    executor.play(capability=SLOW_FLOAT64)
    slow = check_sides(xs, kernels, width, width * 0, roundoff=6e-8)
    assert 0 < (slow[2] - fast[2]).abs().max() < 2e-7 * fast[2].abs().max()


def test_where_narrow_products_are_not_good_enough(executor, generator):
    xs = samples(generator, 1025, [3, 2])
    norms = [(t.double() - t.double().mean(0)).square().sum(1).max().sqrt().item() for t in xs]
    safe = torch.tensor([[0.51 * v] for v in norms], dtype=torch.float64)
    zeros = safe * 0
    cases = [
        (xs, ["rbf", "rbf"], safe * 0.97),
        ([xs[0] * 1e-12, xs[1]], ["rbf", "rbf"], safe * 1e3),
        ([xs[0] * 1e16, xs[1]], ["rbf", "rbf"], safe * 1e17),
        ([t.double() for t in xs], ["rbf", "rbf"], safe),
        ([t[:1023] for t in xs], ["rbf", "rbf"], safe * 2),
        (xs, ["laplace", "rbf"], safe),
        ([t[:127] for t in xs], ["linear", "linear"], safe),
        ([xs[0] * 1e18, xs[1]], ["linear", "linear"], safe),
    ]
    for given, kernels, width in cases:
        executor.play()
        fast = run_sides(given, kernels, width, zeros)
        executor.play(capability=SLOW_FLOAT64)
        assert all(torch.equal(a, b) for a, b in zip(run_sides(given, kernels, width, zeros), fast, strict=True))


# ------------------------------------------------------------------------------------------------ backward


def run_backward(xs, kernels, bandwidth, shift, gradients):
    codes = [ops.HSIC_KERNELS[k] for k in kernels]
    return ops._library.hsic_backward(xs, codes, bandwidth, shift, *gradients)


def check_backward(xs, kernels, bandwidth, shift, g: torch.Generator, rtol: float = 1e-12) -> None:
    """Against autograd; in Laplace kernels rounding of |a − b|² turns the direction of samples that are close."""
    leaves = [x.double().requires_grad_() for x in xs]
    outputs = reference.hsic_sums(leaves, kernels, bandwidth, shift)
    gradients = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in outputs]
    wanted = torch.autograd.grad(outputs, leaves, gradients)
    found = run_backward(xs, kernels, bandwidth, shift, gradients)
    assert len(found) == len(xs)
    largest = 1 + max((t.double() - t.double().mean(0)).square().sum(1).max() for t in xs)  # of a K, and more
    for a, (ours, theirs, x) in enumerate(zip(found, wanted, xs, strict=True)):
        assert ours.shape == theirs.shape and ours.dtype == torch.float64
        bound = rtol * theirs.abs().max() + 1e-300
        if kernels[a] == "laplace":
            square = 1e-16 * (4 + x.shape[1] ** 0.5) * (x.double() - x.double().mean(0)).square().sum(1).max()
            apart = reference.distances(x).square()
            turned = torch.where(apart > 0, square / apart, 0.0).sum(1).max()
            weight = gradients[0].abs().max() + 2 * gradients[2].abs().sum(2).max() * largest
            bound = bound + 2 * turned * (weight / bandwidth[a]).sum()
        assert (ours - theirs).abs().max() <= bound


@pytest.mark.parametrize("n", [2, 7, 64, 65, 130])
@pytest.mark.parametrize("p, q", [(1, 7), (33, 16), (130, 5)])
def test_backward_sizes(n, p, q, executor, generator):
    executor.play(order="shuffled")
    xs = samples(generator, n, [p, q])
    for kernels in (["rbf", "linear"], ["laplace", "rbf"]):
        check_backward(xs, kernels, *tables(xs, generator), generator)


@pytest.mark.parametrize("s, b", [(1, 1), (4, 3), (5, 2), (9, 1), (13, 6), (64, 1)])
def test_backward_of_many_sides(s, b, executor, generator):
    """More planes than one launch takes, too: 13 sides of 6 bandwidths."""
    executor.play(processors=1)
    xs = samples(generator, 66 if s < 64 else 20, [1 + i % 5 for i in range(s)])
    check_backward(xs, [KERNELS[i % 3] for i in range(s)], *tables(xs, generator, b), generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_types_and_strides(dtype, executor, generator):
    base = torch.randn(140, 40, generator=generator).to(dtype)
    for x in (base[::2, 3:20], base[:70, :20], base[:40].T[:, ::3]):
        xs = [x, torch.randn(7, len(x), generator=generator).to(dtype).T]
        check_backward(xs, ["rbf", "linear"], *tables(xs, generator), generator)
    xs = [t.to(d) for t, d in zip(samples(generator, 20, [5, 9]), (dtype, torch.float32), strict=True)]
    check_backward(xs, ["rbf", "laplace"], *tables(xs, generator), generator)


def test_backward_of_equal_samples(executor, generator):
    """Laplace kernels have a kink there: the derivative is taken as 0."""
    half = torch.randn(40, 6, generator=generator)
    xs = [half.repeat(2, 1) + 50, half.repeat_interleave(2, 0)]
    for kernels in (["laplace", "laplace"], ["rbf", "linear"]):
        check_backward(xs, kernels, *tables(xs, generator), generator, rtol=1e-11)


def test_backward_of_offset_data(executor, generator):
    xs = [t + 1000 * i for i, t in enumerate(samples(generator, 70, [5, 24, 9]), 1)]
    check_backward(xs, KERNELS, *tables(xs, generator), generator, rtol=1e-10)


def test_backward_of_nothing(executor):
    zeros, none = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 1, 0, dtype=torch.float64)
    sums = torch.zeros(1, 2, 2, dtype=torch.float64)
    found = run_backward([torch.zeros(0, 3), torch.zeros(0, 2)], ["rbf", "rbf"], zeros + 1, zeros, [none, none, sums])
    assert [t.shape for t in found] == [(0, 3), (0, 2)]
    none = torch.zeros(1, 0, 5, dtype=torch.float64)
    found = run_backward([torch.ones(5, 3)], ["rbf"], zeros[:1, :0], zeros[:1, :0], [none, none, sums[:0, :1, :1]])
    assert len(found) == 1 and found[0].shape == (5, 3) and not found[0].any()


def test_backward_has_a_limit(executor, generator):
    xs = samples(generator, 5, [1] * 65)
    bandwidth, shift = tables(xs, generator, 1)
    gradients = [torch.zeros(65, 1, 5).double(), torch.zeros(65, 1, 5).double(), torch.zeros(1, 65, 65).double()]
    with pytest.raises(RuntimeError, match="at most 64 sides on a GPU; got 65"):
        run_backward(xs, ["rbf"] * 65, bandwidth, shift, gradients)


# ------------------------------------------------------------------------------------------------ same bits


@pytest.mark.parametrize("s, n", [(2, 200), (6, 140), (35, 70)])
def test_same_bits_in_every_order(s, n, executor, generator):
    """Threads and blocks take turns in three orders: a missing barrier, or blocks that share sums, would show."""
    xs = samples(generator, n, [3 + 7 * (i % 4) for i in range(s)])
    bandwidth, shift = tables(xs, generator)
    results = []
    for order in (*ORDERS, "forward"):
        executor.play(order=order, processors=2)
        results.append(run_sides(xs, [KERNELS[i % 3] for i in range(s)], bandwidth, shift))
    assert all(t.isfinite().all() for t in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_backward_has_the_same_bits_in_every_order(executor, generator):
    xs = samples(generator, 140, [70, 9, 3])
    bandwidth, shift = tables(xs, generator)
    gradients = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 2, 140)] * 2 + [(2, 3, 3)]
    ]
    results = []
    for order in (*ORDERS, "forward"):
        executor.play(order=order, processors=2)
        results.append(run_backward(xs, KERNELS, bandwidth, shift, gradients))
    assert all(t.isfinite().all() for t in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="runs once, on Linux")
def test_kernels_under_sanitizers():
    selection = " or ".join(
        f"({part})"
        for part in (
            "test_sizes and 65",
            "test_sides and (2 or 5 or 33) and not 32",
            "test_types or test_mixed or test_places or no_samples",
            "test_narrow_products_of_linear and 128",
            "test_backward_sizes and 65",
            "test_backward_types or test_backward_of_nothing",
        )
    )
    run_under_sanitizers(__file__, selection)
