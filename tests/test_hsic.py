"""Kernel sums and what is made of them, against n × n matrices: sizes, kernels, layouts, hostile data, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern import ops, reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

KERNELS = list(ops.HSIC_KERNELS)
RADIAL = [k for k in KERNELS if k != "linear"]


def table(*values: tuple[float, float]) -> torch.Tensor:
    """(2, b): of x and of y, for each of b."""
    return torch.tensor(values, dtype=torch.float64).T.contiguous()


BANDWIDTH = table((3.0, 5.0), (20.0, 0.5), (400.0, 3e3))
SHIFT = table((0.0, 0.0), (0.5, 0.25), (1.0, 0.999))


def run_sides(sides, kernels, bandwidth, shift):
    device = sides[0].device
    return ops.hsic_sums(list(sides), [ops.HSIC_KERNELS[k] for k in kernels], bandwidth.to(device), shift.to(device))


def run(x, y, kernel_x, kernel_y, bandwidth=BANDWIDTH, shift=SHIFT):
    return run_sides((x, y), (kernel_x, kernel_y), bandwidth, shift)


def check(x, y, kernel_x, kernel_y, bandwidth=BANDWIDTH, shift=SHIFT, roundoff=1e-16) -> None:
    check_sides((x, y), (kernel_x, kernel_y), bandwidth, shift, roundoff)


def check_sides(sides, kernels, bandwidth, shift, roundoff=1e-16):
    """The op against the reference, within what errors of |a − b|² by a few roundoffs of the largest |a|² add up to.

    Linear kernels of narrow data take float32 products from 128 samples on.
    """
    if set(kernels) == {"linear"} and len(sides[0]) >= 128 and all(t.dtype != torch.float64 for t in sides):
        roundoff = 6e-8
    found = run_sides(sides, kernels, bandwidth, shift)
    assert all(t.device == sides[0].device for t in found)
    results, sides = [t.cpu() for t in found], [t.cpu() for t in sides]
    wanted = reference.hsic_sums(sides, kernels, bandwidth, shift)
    n = len(sides[0])
    for ours, theirs in zip(results, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == torch.float64 and ours.is_contiguous()
    for i in range(bandwidth.shape[1]):
        size, error = [], []  # of entries of K and L
        for side, (t, kernel) in enumerate(zip(sides, kernels, strict=True)):
            sigma = bandwidth[side, i].item()
            k = (reference.kernel_matrix(t, kernel, sigma) - shift[side, i]).abs()
            square = roundoff * (4 + t.shape[1] ** 0.5) * (t.double() - t.double().mean(0)).square().sum(1).max()
            distance = reference.distances(t)
            by = {
                "linear": square,
                "rbf": square / sigma**2,
                "laplace": square / (distance + square.sqrt()).clamp(min=1e-300) / sigma,
            }
            error.append(by[kernel].expand(n, n) + 4e-16 * (k + 1))
            size.append(k)
            summing = 2e-16 * n**0.5 * k.sum(1).max()
            assert (results[0][side, i] - wanted[0][side, i]).abs().max() <= error[side].sum(1).max() + summing
            assert ((results[1][side, i] - wanted[1][side, i]).abs() <= error[side].diagonal()).all()
        for a, c in itertools.product(range(len(sides)), repeat=2):
            bound = (size[a] * error[c] + error[a] * size[c]).sum() + 2e-16 * n * (size[a] * size[c]).sum()
            assert (results[2][i, a, c] - wanted[2][i, a, c]).abs() <= bound
    assert torch.equal(results[2], results[2].mT)
    return found


def median(t: torch.Tensor) -> float:
    if len(t) > 512:
        t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(0))[:512]]
    return torch.pdist(t.double()).quantile(0.5).item()


# ------------------------------------------------------------------------------------------------ sizes and layouts


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 13, 95, 96, 97, 191, 192, 193, 300])
@pytest.mark.parametrize("p, q", [(1, 7), (7, 1), (64, 200), (200, 64), (300, 513)])
def test_sizes(n, p, q, generator, device):
    x, y = (torch.randn(n, c, generator=generator).to(device) for c in (p, q))
    for kernel in RADIAL:
        check(x, y, kernel, kernel)


@pytest.mark.parametrize("kernel_y", KERNELS)
@pytest.mark.parametrize("kernel_x", KERNELS)
def test_kernels_of_each_side(kernel_x, kernel_y, generator, device):
    for n in (7, 130):
        x, y = (torch.randn(n, c, generator=generator).to(device) + m for c, m in ((9, 3), (5, -1)))
        check(x, y, kernel_x, kernel_y)
        check(x.double(), y, kernel_x, kernel_y, BANDWIDTH[:, :1].contiguous(), SHIFT[:, :1].contiguous())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_and_strides(dtype, generator, device):
    base = torch.randn(240, 40, generator=generator).to(device, dtype)
    for x in (base[::2, 3:20], base[:, :120].T[:37].T.repeat(1, 1)[:120], base[:40].T.expand(40, 40)[:, ::3]):
        n = len(x)
        y = torch.randn(7, n, generator=generator).to(device, dtype).T  # samples are contiguous, channels are not
        for kernel in KERNELS:
            check(x, y, kernel, kernel)
            contiguous = run(x.contiguous(), y.contiguous(), kernel, kernel)
            assert all(torch.equal(a, b) for a, b in zip(run(x, y, kernel, kernel), contiguous, strict=True))
    one = torch.randn(1, 6, generator=generator).to(device, dtype).expand(100, 6)  # one sample, again and again
    check(one, base[:100], "rbf", "rbf")


@pytest.mark.parametrize("n, p, q", [(1024, 1, 7), (1055, 64, 9), (1057, 33, 140)])
def test_float32_products(n, p, q, cpu_path, generator):
    """As many samples of narrow data and bandwidths that are not small get; never float64 data, never other kernels."""
    x, y = torch.randn(n, p, generator=generator) + 5, torch.randn(n, q, generator=generator) - 5
    bandwidth = table(*((m * (p + 9) ** 0.5, m * (q + 9) ** 0.5) for m in (1, 1.5, 40)))
    check(x, y, "rbf", "rbf", bandwidth, roundoff=6e-8)
    single, double = (run(*sides, "rbf", "rbf", bandwidth) for sides in ((x, y), (x.double(), y.double())))
    differences = [(a - b).abs().max() / b.abs().max() for a, b in zip(single, double, strict=True)]
    assert 0 < differences[0] < 1e-6 and differences[1] == 0 and differences[2] < 1e-6
    for kernel, narrower in (("rbf", 5), ("laplace", 1)):
        single, double = (
            run(*sides, "rbf", kernel, bandwidth / narrower) for sides in ((x, y), (x.double(), y.double()))
        )
        assert all(torch.equal(a, b) for a, b in zip(single, double, strict=True))


def test_no_samples_and_no_bandwidths():
    rows, diagonal, sums = run(torch.zeros(0, 3), torch.zeros(0, 2), "rbf", "rbf")
    assert rows.shape == diagonal.shape == (2, 3, 0) and (sums == 0).all()
    none = torch.zeros(2, 0, dtype=torch.float64)
    rows, diagonal, sums = run(torch.ones(5, 3), torch.ones(5, 2), "rbf", "rbf", none, none)
    assert rows.shape == diagonal.shape == (2, 0, 5) and sums.shape == (0, 2, 2)


def test_every_instruction_set(cpu_path, generator):
    for n, p, q in ((1, 1, 1), (4, 3, 2), (25, 33, 8), (97, 16, 17), (250, 300, 64)):
        x, y = torch.randn(n, p, generator=generator), torch.randn(n, q, generator=generator)
        for kernel in KERNELS:
            check(x, y, kernel, kernel)
    check_exponential()


def test_same_bits_for_any_number_of_threads(generator):
    """Also with several blocks of tiles."""
    before = torch.get_num_threads()
    for n, p in ((300, 40), (2200, 5)):
        x, y, results = torch.randn(n, p, generator=generator), torch.randn(n, p, generator=generator), []
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(run(x, y, "rbf", "laplace"))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    check(x, y, "rbf", "laplace")


@pytest.mark.parametrize("sides, n", [(1, 300), (3, 130), (5, 300), (33, 70), (70, 20)])
def test_sides_repeatably(sides, n, generator, device):
    x = [(torch.randn(n, 1 + i % 19, generator=generator) + i).to(device) for i in range(sides)]
    kernels = [KERNELS[i % 3] for i in range(sides)]
    sigma = torch.tensor([[1.0, 3.0]], dtype=torch.float64) * torch.tensor([[t.shape[1] ** 0.5] for t in x])
    found = check_sides(x, kernels, sigma, sigma * 0 + 0.3)
    for again in range(2):
        for ours, theirs in zip(found, run_sides(x, kernels, sigma, sigma * 0 + 0.3), strict=True):
            assert torch.equal(ours, theirs), again


@pytest.mark.parametrize("sides", [1, 3, 4, 5, 9, 23])
def test_sides(sides, cpu_path, generator):
    """Of all widths and types, cut into groups of channels; blocks of tiles are smaller for many sides."""
    widths = itertools.cycle([3, 1100, 17, 129, 2500, 1024])
    types = itertools.cycle([torch.float32, torch.bfloat16, torch.float64])
    for n in (20, 460):
        x = [torch.randn(n, next(widths), generator=generator).to(next(types)) + 1 for _ in range(sides)]
        kernels = [k for _, k in zip(x, itertools.cycle(KERNELS), strict=False)]
        sigma = torch.tensor([[1.0, 2.0]], dtype=torch.float64) * torch.tensor([[t.shape[1] ** 0.5] for t in x])
        check_sides(x, kernels, sigma, sigma * 0 + 0.3)


@pytest.mark.parametrize("n, p", [(128, 1), (250, 3000), (700, 129)])
def test_linear_kernels_of_narrow_data_take_float32_products(n, p, generator):
    x = [torch.randn(n, p, generator=generator) + 50, torch.randn(n, 7, generator=generator).half()]
    one, none = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    check_sides(x, ["linear"] * 2, one, none, roundoff=6e-8)
    single, double = (run_sides(t, ["linear"] * 2, one, none) for t in (x, [t.double() for t in x]))
    assert 0 < (single[2] - double[2]).abs().max() / double[2].abs().max() < 1e-6
    for tiny in (1e-20, 1e18):  # squares leave what float32 products can take
        found = run_sides([x[0] * tiny, x[1]], ["linear"] * 2, one, none)[2]
        exact = run_sides([(x[0] * tiny).double(), x[1]], ["linear"] * 2, one, none)[2]
        assert torch.equal(found, exact)


def test_small_blocks(generator):
    """As many bandwidths make them."""
    many = torch.linspace(1, 9, 300, dtype=torch.float64).expand(2, 300).contiguous()
    x = torch.randn(800, 3, generator=generator)
    found = run(x, x, "rbf", "laplace", many, many * 0)
    for at in (0, 150, 299):
        one = run(x, x, "rbf", "laplace", many[:, at : at + 1].contiguous(), many[:, :1] * 0)
        for ours, alone in zip(found, one, strict=True):
            ours = ours[at : at + 1] if ours.shape[0] == 300 else ours[:, at : at + 1]
            torch.testing.assert_close(ours, alone, rtol=1e-13, atol=0)


# ------------------------------------------------------------------------------------------------ the exponential


def check_exponential() -> None:
    """exp of many numbers, each the kernel of one pair of samples, against extended precision."""
    if np.finfo(np.longdouble).eps > 2e-19:
        pytest.skip("needs 80-bit long doubles")
    x = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    argument = torch.cat(
        [
            torch.linspace(1e-3, 708, 40_001, dtype=torch.float64),
            torch.logspace(-20, 2.85, 40_001, dtype=torch.float64),
            torch.arange(1, 1000, dtype=torch.float64) * math.log(2) / 2,  # where the reduction switches
        ]
    ).clamp(max=708)
    width = 1 / argument
    exact = np.exp(-(1 / width).numpy().astype(np.longdouble))
    widths, zeros = width.expand(2, -1).contiguous(), torch.zeros(2, len(width), dtype=torch.float64)
    found = run(x, x, "laplace", "laplace", widths, zeros)[0][0, :, 0].numpy()
    error = np.abs(found - exact) / np.spacing(exact.astype(np.float64))
    assert error.max() < 2
    found = run(x, x, "laplace", "laplace", widths, zeros + 1)[0][0, :, 0].numpy()
    small = argument.numpy() < 0.3
    exact = np.expm1(-(1 / width).numpy().astype(np.longdouble))
    error = np.abs(found - exact) / np.spacing(np.abs(exact.astype(np.float64)))
    assert error[small].max() < 3


def test_exponential():
    check_exponential()
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for width in (1e-4, 1e-200):  # underflow: nothing, or near enough
        found = run(x, x, "laplace", "rbf", table((width, width)), table((0, 0)))[0]
        assert (found >= 0).all() and (found < 1e-300).all()
    nan = run(x * math.nan, x, "rbf", "rbf", table((1, 1)), table((0, 0)))[0]
    assert nan[0].isnan().all() and not nan[1].isnan().any()


# ------------------------------------------------------------------------------------------------ hsic and cka


def features(name: str, g: torch.Generator, n: int = 310) -> tuple[torch.Tensor, torch.Tensor]:
    n, p, q = (40, 96, 150) if name == "n < p" else (n, 24, 17)
    x = torch.randn(n, p, generator=g, dtype=torch.float64)
    y = x @ torch.randn(p, q, generator=g, dtype=torch.float64) / p**0.5 + torch.randn(n, q, generator=g).double()
    match name:
        case "offset 10":
            x, y = x + 10, y - 10
        case "offset 1000":
            x, y = x + 1000, y + 1000
        case "scale 1e-3":
            x, y = x * 1e-3, y * 1e-3
        case "scale 1e6":
            x, y = x * 1e6, y * 1e6
        case "dead features":
            x[:, ::3], y[:, 2] = 0.1, 0
        case "duplicates":
            x[1::2], y[1::2] = x[::2], y[::2]
        case "outlier":
            x[7] *= 1e4
        case "outlier dimension":
            x[:, 3] *= 1e4
        case "low rank":
            x = x[:, :2] @ torch.randn(2, p, generator=g, dtype=torch.float64)
        case "clusters":
            x = x * 1e-3 + 100 * torch.randn(4, p, generator=g, dtype=torch.float64)[torch.arange(n) % 4]
        case "identical":
            y = x.clone()
        case "independent":
            y = torch.randn(n, q, generator=g, dtype=torch.float64)
    return x.float(), y.float()


HOSTILE = ["plain", "offset 10", "offset 1000", "scale 1e-3", "scale 1e6", "dead features", "duplicates", "outlier"]
HOSTILE += ["outlier dimension", "low rank", "clusters", "identical", "independent", "n < p"]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", RADIAL)
@pytest.mark.parametrize("name", HOSTILE)
def test_indices(name, kernel, unbiased, generator, device):
    check_indices(*features(name, generator), name, kernel, unbiased, (0.2, 1.0, 5.0, 50.0), device)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_indices_of_many_samples(name, unbiased, generator):
    """With bandwidths that allow float32 products in most of these."""
    check_indices(*features(name, generator, 1030), name, "rbf", unbiased, (1.2, 5.0, 50.0))


def check_indices(x, y, name, kernel, unbiased, multiples, device="cpu") -> None:
    specs, given = [f"{m} median" for m in multiples], (x.to(device), y.to(device))
    found = sk.hsic(*given, kernel=kernel, bandwidth=specs, unbiased=unbiased)
    similarity = sk.cka(*given, kernel=kernel, bandwidth=specs, unbiased=unbiased)
    assert found.shape == similarity.shape == (len(specs),) and found.dtype == torch.float64
    for i, multiple in enumerate(multiples):
        k, l = (reference.kernel_matrix(t, kernel, multiple * median(t)) for t in (x, y))
        xy, xx, yy = (reference.hsic_of_kernels(a, b, unbiased=unbiased).item() for a, b in ((k, l), (k, k), (l, l)))
        scale = math.sqrt(xx * yy)
        assert found[i].item() == pytest.approx(xy, abs=1e-6 * scale)
        assert similarity[i].item() == pytest.approx(xy / scale, abs=1e-6)
        assert sk.cka(*given, kernel=kernel, bandwidth=specs[i], unbiased=unbiased) == pytest.approx(
            similarity[i].item(), rel=1e-6
        )
    if name == "identical":
        assert (similarity - 1).abs().max() <= 1e-12


@pytest.mark.parametrize("n", [310, 1030])
@pytest.mark.parametrize("unbiased", [False, True])
def test_large_bandwidths_become_linear(unbiased, n, generator):
    """All of K is then close to 1: what is left of centring it would be rounding."""
    x, y = features("plain", generator, n)
    linear = sk.cka(x, y, unbiased=unbiased)
    found = sk.cka(x, y, kernel="rbf", bandwidth=["1e3 median", "1e5 median", "1e7 median"], unbiased=unbiased)
    assert found.tolist() == pytest.approx([linear] * 3, abs=1e-6)
    assert sk.cka(x, x, kernel="rbf", bandwidth="1e9 median", unbiased=unbiased) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kernel", RADIAL)
def test_bandwidths(kernel, generator):
    x, y = features("plain", generator)
    default = sk.hsic(x, y, kernel=kernel)
    assert isinstance(default, float)
    assert default == sk.hsic(x, y, kernel=kernel, bandwidth="median")
    assert default == sk.hsic(x, y, kernel=kernel, bandwidth="1.0 median")
    wide = sk.hsic(x, y, kernel=kernel, bandwidth=(2.5, "median", None))
    assert wide[0].item() == pytest.approx(sk.hsic(x, y, kernel=kernel, bandwidth=2.5), rel=1e-12)
    assert wide[1].item() == wide[2].item() == pytest.approx(default, rel=1e-12)
    assert sk.hsic(x, y, kernel=kernel, bandwidth=torch.tensor([2.5])).shape == (1,)
    assert sk.hsic(x.numpy(), y.numpy(), kernel=kernel, bandwidth=np.float64(2.5)) == sk.hsic(
        x, y, kernel=kernel, bandwidth=torch.tensor(2.5)
    )
    assert sk.cka(x, y, kernel=kernel, debiased=True) == sk.cka(x, y, kernel=kernel, unbiased=True)
    for scale in (1e-3, 1e6):  # a bandwidth that follows the data does not see its unit
        assert sk.cka(x.double() * scale, y, kernel=kernel) == pytest.approx(sk.cka(x, y, kernel=kernel), abs=1e-12)


def test_median_of_a_subsample(generator):
    x = torch.randn(3000, 4, generator=generator)
    exact = sk.hsic(x, x, kernel="rbf", bandwidth=2 * median(x))
    assert sk.hsic(x, x, kernel="rbf", bandwidth="2 median") == pytest.approx(exact, rel=1e-12)
    assert sk.hsic(x, x, kernel="rbf") == sk.hsic(x, x, kernel="rbf")


def test_unbiased_may_be_negative(generator):
    values = [
        sk.hsic(*(torch.randn(12, 3, generator=generator) for _ in "xy"), kernel="rbf", unbiased=True)
        for _ in range(20)
    ]
    assert min(values) < 0 < max(values)


def test_more_samples_than_a_square_of_int32():
    """n² is beyond int32 from 46,341 samples on. Two values, so that K centred is ± (1 − e) / 2."""
    n = 46_500
    x = (torch.arange(n) % 2).float()[:, None]
    e = math.exp(-0.5)
    assert sk.hsic(x, x, kernel="rbf", bandwidth=1.0) == pytest.approx(((1 - e) / 2) ** 2, rel=1e-12)


@pytest.mark.parametrize("kernel", RADIAL)
def test_errors(kernel, generator):
    x = torch.randn(10, 3, generator=generator)
    dull, doubled = torch.full((10, 2), 0.1), x[[0] * 8 + [1, 2]]
    assert sk.hsic(x, dull, kernel=kernel, bandwidth=1.0) == 0
    assert sk.hsic(dull, dull, kernel=kernel, bandwidth=1.0, unbiased=True) == 0
    spoilt = {"NaN": math.nan, "Inf": math.inf}
    for error, match, call in [
        (StatisticsError, "at least 4 samples; got 3", lambda: sk.hsic(x[:3], x[:3], kernel=kernel, unbiased=True)),
        (StatisticsError, "at least two samples; got 1", lambda: sk.hsic(x[:1], x[:1], kernel=kernel)),
        (StatisticsError, "at least two samples; got 0", lambda: sk.hsic(x[:0], x[:0], kernel=kernel)),
        (StatisticsError, "median distance of y is 0: it does not vary", lambda: sk.cka(x, dull, kernel=kernel)),
        (StatisticsError, "median distance of x is 0: .* equal samples", lambda: sk.hsic(doubled, x, kernel=kernel)),
        (StatisticsError, "y does not vary", lambda: sk.cka(x, dull, kernel=kernel, bandwidth=2)),
        (StatisticsError, "x does not vary", lambda: sk.cka(dull, x, kernel=kernel, bandwidth=[2, 3])),
        (StatisticsError, "overflows float64", lambda: sk.hsic(x.double() * 1e200, x, kernel=kernel)),
        (ShapeError, "same n", lambda: sk.cka(x, x[:9], kernel=kernel)),
        (ShapeError, "at least one feature", lambda: sk.cka(x, x[:, :0], kernel=kernel)),
        (ValueError, "y is missing", lambda: sk.cka(x, kernel=kernel)),
        (ValueError, "linear kernel only", lambda: sk.cka(sk.Moments(3, 3).update(x, x), kernel=kernel)),
        (ValueError, "linear kernel has none", lambda: sk.cka(x, x, bandwidth=1.0)),
        (
            ValueError,
            "kernel must be one of linear, rbf, laplace; got 'cosine'",
            lambda: sk.hsic(x, x, kernel="cosine"),
        ),
        *[
            (
                NotFiniteError,
                "y holds NaN or Inf",
                lambda v=v: sk.cka(x, x.index_fill(1, torch.tensor(1), v), kernel=kernel),
            )
            for v in spoilt.values()
        ],
        *[
            (ValueError, "bandwidth must be", lambda b=b: sk.hsic(x, x, kernel=kernel, bandwidth=b))
            for b in (0, -1.0, math.nan, math.inf, [1.0, 0.0], [], "mean", "-1 median", "median 2", "x median", "")
        ],
    ]:
        with pytest.raises(error, match=match):
            call()


# ------------------------------------------------------------------------------------------------ the op


def test_ops_are_well_formed(generator):
    for n, kernel in ((5, 1), (0, 1), (130, 0)):
        x, y = torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator)
        torch.library.opcheck(torch.ops.stitchkern.hsic_sums, ([x, y], [kernel, 2], BANDWIDTH, SHIFT))


def test_op_checks_its_arguments():
    x, y, kernels = torch.zeros(5, 3), torch.zeros(5, 2), [1, 1]
    for match, arguments in [
        (r"x must hold at least one side", ([], [], BANDWIDTH, SHIFT)),
        (r"one code for each of 2 sides; got 1", ([x, y], [1], BANDWIDTH, SHIFT)),
        (r"x\[0\] must be \(n, 1 or more features\); got 1 dimensions", ([x[0], y], kernels, BANDWIDTH, SHIFT)),
        (
            r"x\[1\] must be \(n, 1 or more features\); got 2 dimensions without",
            ([x, y[:, :0]], kernels, BANDWIDTH, SHIFT),
        ),
        (r"x\[0\] must be float64, float32", ([x.int(), y], kernels, BANDWIDTH, SHIFT)),
        (r"same rows; x\[0\] has 5, x\[1\] 4", ([x, y[:4]], kernels, BANDWIDTH, SHIFT)),
        (r"kernels must be 0 … 2; got 3", ([x, y], [3, 1], BANDWIDTH, SHIFT)),
        (r"kernels must be 0 … 2; got -1", ([x, y], [1, -1], BANDWIDTH, SHIFT)),
        (r"bandwidth must be \(2, b\), a row for each side; got 1", ([x, y], kernels, BANDWIDTH[0], SHIFT)),
        (r"bandwidth must be contiguous float64", ([x, y], kernels, BANDWIDTH.float(), SHIFT)),
        (r"shift must be \(2, b\) like bandwidth, b = 3", ([x, y], kernels, BANDWIDTH, SHIFT[:, :2])),
        (r"shift must be contiguous float64", ([x, y], kernels, BANDWIDTH, SHIFT.float())),
    ]:
        with pytest.raises(RuntimeError, match=match):
            ops.hsic_sums(*arguments)
