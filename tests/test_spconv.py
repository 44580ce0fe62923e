"""The sparse 1×1 convolution and its gradients against their definitions: layouts, sizes, patterns, bad input."""

from __future__ import annotations

import pytest
import torch

from stitchkern import ops, reference
from stitchkern.errors import ShapeError
from stitchkern.nn.pattern import NAMES, pack

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
#: name -> function(generator, p) -> x and its channel dimension
LAYOUTS = {
    "c": lambda g, p: (torch.randn(p, generator=g), 0),
    "nc": lambda g, p: (torch.randn(37, p, generator=g), -1),
    "nc-transposed": lambda g, p: (torch.randn(p, 37, generator=g).T, -1),
    "nc-sliced": lambda g, p: (torch.randn(80, p + 3, generator=g)[::2, 2 : p + 2], 1),
    "nc-every-second": lambda g, p: (torch.randn(20, 2 * p, generator=g)[:, ::2], 1),
    "cn": lambda g, p: (torch.randn(p, 70, generator=g), 0),
    "ntc": lambda g, p: (torch.randn(5, 9, p, generator=g), -1),
    "nct": lambda g, p: (torch.randn(5, p, 9, generator=g), 1),
    "nchw": lambda g, p: (torch.randn(3, p, 5, 4, generator=g), 1),
    "nchw-large": lambda g, p: (torch.randn(2, p, 12, 13, generator=g), 1),
    "nhwc": lambda g, p: (torch.randn(3, 5, 4, p, generator=g), -1),
    "channels_last": lambda g, p: (torch.randn(3, p, 5, 9, generator=g).to(memory_format=torch.channels_last), 1),
    "cropped": lambda g, p: (torch.randn(2, p, 9, 8, generator=g)[:, :, 1:-1, 2:-1], 1),
    # as many positions as a tile has: the first and the last are where they would be if it were contiguous
    "tile-transposed": lambda g, p: (torch.randn(3, p, 4, 8, generator=g).mT, 1),
    "half-tile-transposed": lambda g, p: (torch.randn(3, p, 4, 4, generator=g).mT, 1),
    "batch-sliced": lambda g, p: (torch.randn(6, p, 7, 7, generator=g)[::2], 1),
    "expanded": lambda g, p: (torch.randn(4, p, 1, 1, generator=g).expand(4, p, 3, 2), 1),
    "one-image": lambda g, p: (torch.randn(1, p, 11, 13, generator=g), 1),
    "no-images": lambda g, p: (torch.randn(0, p, 5, 4, generator=g), 1),
    "no-positions": lambda g, p: (torch.randn(3, p, 0, 4, generator=g), 1),
}


def sparse(g: torch.Generator, q: int, p: int, density: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Values and pattern of a matrix; rows and columns in the middle are empty."""
    kept = torch.rand(q, p, generator=g) < density
    if density < 1 and q > 2:
        kept[q // 2] = False
    if density < 1 and p > 2:
        kept[:, p // 2] = False
    crow = torch.zeros(q + 1, dtype=torch.long)
    crow[1:] = kept.sum(1).cumsum(0)
    return torch.randn(int(kept.sum()), generator=g), pack(crow, kept.nonzero()[:, 1], p)


def placed(x: torch.Tensor, device, dtype: torch.dtype) -> torch.Tensor:
    """x there, with its strides."""
    return (
        torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device).copy_(x)
        if 0 not in x.stride()
        else (x.to(device, dtype))
    )


def check(x, values, bias, pattern, dim, *, gradient: bool = True) -> torch.Tensor:
    """spconv and its gradient of the values within the rounding of their sums: the unit roundoff of what they are added
    in, times Σ|terms|; and half a unit of the result's own type."""
    q, (_, col, row, *_) = len(pattern[0]) - 1, [t.cpu() for t in pattern]
    unit = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    y = ops.spconv(x, values, bias, pattern, dim)
    terms = [None if t is None else t.cpu().double() for t in (x, values, bias)]
    sizes = [None if t is None else t.abs() for t in terms]
    wanted, reach = (reference.spconv(*t, row, col, q, dim) for t in (terms, sizes))
    assert y.shape == wanted.shape and y.dtype == x.dtype and y.device == x.device
    allowed = unit * (2 + len(col) ** 0.5) * reach + torch.finfo(x.dtype).eps * wanted.abs()
    assert ((y.cpu().double() - wanted).abs() <= allowed).all()
    if gradient:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(x)
        found = ops.spconv_weight_grad(x, grad, pattern, dim)
        assert found.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
        of_grad = grad.cpu().double()
        wanted = reference.spconv_weight_grad(terms[0], of_grad, row, col, dim)
        reach = reference.spconv_weight_grad(sizes[0], of_grad.abs(), row, col, dim)
        assert found.shape == wanted.shape and ((found.cpu().double() - wanted).abs() <= 32 * unit * reach).all()
    return y


def arguments(g, q, p, density, layout, device="cpu", dtype=torch.float32, bias=True):
    values, pattern = sparse(g, q, p, density)
    x, dim = LAYOUTS[layout](g, p)
    b = torch.randn(q, generator=g).to(device) if bias else None
    return placed(x, device, dtype), values.to(device), b, [t.to(device) for t in pattern], dim


# ------------------------------------------------------------------------------------------------ layouts and sizes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, device, generator):
    for bias in (True, False):
        x, *rest = arguments(generator, 21, 35, 0.2, layout, device, dtype, bias)
        before = x.clone()
        check(x, *rest)
        assert torch.equal(x, before)


@pytest.mark.parametrize("q,p", [(1, 1), (1, 9), (9, 1), (3, 200), (200, 3), (64, 64), (130, 70)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_sizes_and_densities(q, p, density, device, generator):
    for layout in ("nchw-large", "channels_last", "nc"):
        check(*arguments(generator, q, p, density, layout, device))


@pytest.mark.parametrize("positions", [1, 2, 7, 8, 16, 17, 31, 32, 33, 49, 64, 127, 128, 129, 1000])
def test_positions(positions, device, generator):
    values, pattern = sparse(generator, 19, 24, 0.3)
    values, pattern = values.to(device), [t.to(device) for t in pattern]
    for shape in ((1, 24, positions, 1), (3, 24, 1, positions), (positions, 24, 1, 1)):
        x = torch.randn(shape, generator=generator).to(device)
        check(x, values, None, pattern, 1)
        check(x.to(memory_format=torch.channels_last), values, None, pattern, 1)
    check(torch.randn(positions, 24, generator=generator).to(device), values, None, pattern, 1)


@pytest.mark.parametrize("q,p", [(0, 5), (5, 0), (0, 0)])
def test_no_channels(q, p, device, generator):
    values, pattern = sparse(generator, q, p, 0.5)
    bias, x = torch.randn(q, generator=generator).to(device), torch.ones(2, p, 3, 3, device=device)
    y = ops.spconv(x, values.to(device), bias, [t.to(device) for t in pattern], 1)
    assert torch.equal(y, bias[:, None, None].expand(2, q, 3, 3))


@pytest.mark.parametrize("shift,scale", [(1e4, 1.0), (0.0, 1e-30), (1e6, 1e6), (-1e3, 1e-3)])
def test_large_means_and_tiny_scales(shift, scale, device, generator):
    x, *rest = arguments(generator, 40, 50, 0.2, "nchw-large", device)
    check(x * scale + shift, *rest)


def test_many_positions_keep_float32_sums_short(device, generator):
    """The gradient of the values sums over all positions; plain float32 sums of this length would lose digits."""
    values, pattern = sparse(generator, 3, 4, 1.0)
    values, pattern = values.to(device), [t.to(device) for t in pattern]
    x, grad = torch.full((3, 4, 300, 300), 1.1, device=device), torch.full((3, 3, 300, 300), 0.9, device=device)
    found = ops.spconv_weight_grad(x, grad, pattern, 1).double()
    assert ((found / (float(x[0, 0, 0, 0]) * float(grad[0, 0, 0, 0]) * 270_000) - 1).abs() < 3e-5).all()


def test_values_and_bias_of_another_type(device, generator):
    x, values, bias, pattern, dim = arguments(generator, 12, 20, 0.3, "nchw", device, torch.bfloat16)
    y = check(x, values, bias, pattern, dim)
    rounded = [values.bfloat16(), bias.bfloat16()]
    check(x, *rounded, pattern, dim)
    assert torch.equal(y, ops.spconv(x, values.double(), bias.double(), pattern, dim))


def test_layout_of_the_result(device, generator):
    x, values, bias, pattern, _ = arguments(generator, 12, 20, 0.3, "nchw", device)
    assert ops.spconv(x, values, bias, pattern, 1).is_contiguous()
    last = x.to(memory_format=torch.channels_last)
    assert ops.spconv(last, values, bias, pattern, 1).is_contiguous(memory_format=torch.channels_last)
    assert ops.spconv(last.permute(0, 2, 3, 1), values, bias, pattern, -1).is_contiguous()


def test_zeros_are_not_multiplied(device):
    """NaN and Inf reach what they are connected to, as in the dense product, and nothing else."""
    pattern = [t.to(device) for t in pack(torch.tensor([0, 1, 3, 3]), torch.tensor([0, 1, 2]), 3)]
    values, x = torch.ones(3, device=device), torch.ones(2, 3, 4, 9, device=device)
    x[0, 0, 1, 2], x[1, 2, 0, 0] = float("nan"), float("inf")
    for given in (x, x.to(memory_format=torch.channels_last)):
        y = ops.spconv(given, values, None, pattern, 1)
        assert y[0, 0, 1, 2].isnan() and y[1, 1, 0, 0].isinf() and y.isfinite().sum() == y.numel() - 2
    assert ops.spconv(x, values * 0, None, pattern, 1)[0, 0, 1, 2].isnan()  # an entry that is zero is an entry


# ------------------------------------------------------------------------------------------------ CPU


def test_every_instruction_set(cpu_path, generator):
    for dtype in DTYPES:
        for q, p in ((1, 1), (5, 3), (33, 17), (40, 70)):
            for layout in ("nc", "nchw-large", "channels_last", "nc-every-second", "nchw"):
                check(*arguments(generator, q, p, 0.3, layout, "cpu", dtype))


@pytest.mark.parametrize("layout", ["nchw-large", "channels_last", "nc", "one-image"])
def test_same_bits_for_any_number_of_threads(layout, generator):
    values, pattern = sparse(generator, 200, 150, 0.3)
    x, dim = LAYOUTS[layout](generator, 150)
    x = torch.cat([x] * 30)
    grad = ops.spconv(x, values, None, pattern, dim)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found = ops.spconv(x, values, None, pattern, dim), ops.spconv_weight_grad(x, grad, pattern, dim)
            results.append(found)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_a_position_does_not_feel_its_neighbours(generator):
    """The same bits wherever in a tile it lies, and in every layout."""
    values, pattern = sparse(generator, 30, 40, 0.3)
    x = torch.randn(5, 40, 7, 7, generator=generator)
    y = ops.spconv(x, values, None, pattern, 1)
    assert torch.equal(ops.spconv(x[2:], values, None, pattern, 1), y[2:])
    assert torch.equal(ops.spconv(x[:, :, 3:4, 5:6], values, None, pattern, 1), y[:, :, 3:4, 5:6])
    assert torch.equal(ops.spconv(x.to(memory_format=torch.channels_last), values, None, pattern, 1), y)


# ------------------------------------------------------------------------------------------------ autograd


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nc", "ntc", "c"])
def test_gradients(layout, device, generator):
    x, values, bias, pattern, dim = arguments(generator, 4, 5, 0.5, layout, device, torch.float64)
    x, values, bias = (t.double().narrow(0, 0, min(len(t), 9)) if t is x else t.double() for t in (x, values, bias))
    if layout in ("nchw", "channels_last"):
        x = x[:2, :, :2, :3]

    def run(x, values, bias):
        return ops.spconv(x, values, bias, pattern, dim)

    inputs = [t.requires_grad_() for t in (x, values, bias)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_types_of_what_they_belong_to(dtype, device, generator):
    x, values, bias, pattern, dim = arguments(generator, 12, 20, 0.3, "channels_last", device, dtype)
    leaves = [t.requires_grad_() for t in (x, values, bias)]
    y = ops.spconv(*leaves, pattern, dim)
    weight = torch.randn(y.shape, generator=generator).to(y)
    found = torch.autograd.grad((y * weight).sum(), leaves)
    assert [t.dtype for t in found] == [dtype, torch.float32, torch.float32]
    dense = torch.zeros(12, 20, dtype=torch.float64)
    row, col = pattern[2].long().cpu(), pattern[1].long().cpu()
    dense[row, col] = values.detach().double().cpu()
    exact = torch.einsum("nqhw,qp->nphw", weight.double().cpu(), dense)
    torch.testing.assert_close(
        found[0].double().cpu(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2
    )
    torch.testing.assert_close(found[2].double().cpu(), weight.double().cpu().sum((0, 2, 3)), rtol=1e-5, atol=1e-4)


def test_only_what_is_asked_for(generator):
    x, values, bias, pattern, dim = arguments(generator, 12, 20, 0.3, "nchw")
    y = ops.spconv(x, values.requires_grad_(), bias, pattern, dim)
    y.sum().backward()
    assert x.grad is None and bias.grad is None
    torch.testing.assert_close(
        values.grad, reference.spconv_weight_grad(x, torch.ones_like(y), pattern[2], pattern[1], dim).float()
    )


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nc", "nc-transposed"])
def test_ops_are_well_formed(layout, device, generator):
    x, values, bias, pattern, dim = arguments(generator, 12, 20, 0.3, layout, device)
    leaves = [t.requires_grad_() for t in (x, values, bias)]
    torch.library.opcheck(torch.ops.stitchkern.spconv, (*leaves, pattern, dim))
    torch.library.opcheck(torch.ops.stitchkern.spconv, (x.detach(), values.detach(), None, pattern, dim))
    grad = ops.spconv(*leaves, pattern, dim).detach()
    torch.library.opcheck(torch.ops.stitchkern.spconv_weight_grad, (x, grad, pattern, dim))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_capture_streams_and_bits(generator):
    x, values, bias, pattern, dim = arguments(generator, 130, 70, 0.3, "nchw-large", "cuda")
    y = ops.spconv(x, values, bias, pattern, dim)
    found = ops.spconv_weight_grad(x, y, pattern, dim)
    for _ in range(5):
        assert torch.equal(ops.spconv(x, values, bias, pattern, dim), y)
        assert torch.equal(ops.spconv_weight_grad(x, y, pattern, dim), found)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.spconv(x, values, None, pattern, dim)
    x.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        other = ops.spconv(x, values, None, pattern, dim)
    side.synchronize()
    assert torch.equal(other, captured) and not torch.equal(captured, y)


# ------------------------------------------------------------------------------------------------ bad input


def test_op_checks_its_arguments(device, generator):
    x, values, bias, pattern, dim = arguments(generator, 12, 20, 0.3, "nchw", device)
    cases = [
        ("x must have 20 channels in dimension 1; got 5", (x[:, :5], values, bias, pattern, dim)),
        ("x must have 20 channels in dimension 2; got 5", (x, values, bias, pattern, 2)),
        ("x must have 1 … 4 dimensions; got 5", (x[None], values, bias, pattern, 1)),
        (r"channel_dim must be -4 … 3; got 4", (x, values, bias, pattern, 4)),
        ("x must be float64, float32 or bfloat16; got float16", (x.half(), values, bias, pattern, dim)),
        ("x must be float64, float32, bfloat16", (x.int(), values, bias, pattern, dim)),
        (r"values must be \(nonzeros,\)", (x, values[1:], bias, pattern, dim)),
        (r"bias must be \(q,\) = \(12,\); got 1 dimensions of 3", (x, values, bias[:3], pattern, dim)),
        ("pattern must hold 8 tensors; got 7", (x, values, bias, pattern[1:], dim)),
        (
            "pattern: crow must be one contiguous dimension of int32",
            (x, values, bias, [pattern[0].long(), *pattern[1:]], 1),
        ),
    ]
    for match, given in cases:
        with pytest.raises(RuntimeError, match=match):
            ops.spconv(*given)
    y = ops.spconv(x, values, bias, pattern, dim)
    for match, grad in [
        ("grad must have the positions of x; dimension 2", y[:, :, 1:]),
        ("x and grad must have 20 and 12 channels", y[:, 1:]),
        ("grad must have the dimensions and the type of x", y.double()),
    ]:
        with pytest.raises(RuntimeError, match=match):
            ops.spconv_weight_grad(x, grad, pattern, dim)


@pytest.mark.parametrize(
    "member,index,value", [(0, 3, 10**6), (0, -1, 2), (0, 0, 1), (1, 0, 20), (1, 0, -1), (4, 1, 999)]
)
def test_indices_out_of_bounds_are_found_before_they_are_used(member, index, value, generator):
    x, values, bias, pattern, dim = arguments(generator, 12, 20, 0.3, "nchw")
    pattern[member][index] = value
    with pytest.raises(RuntimeError, match="pattern: crow must rise from 0 to the number of non-zeros"):
        ops.spconv(x, values, bias, pattern, dim)
    with pytest.raises(RuntimeError, match="pattern"):
        ops.spconv_weight_grad(x, torch.ones(3, 12, 5, 4), pattern, dim)


# ------------------------------------------------------------------------------------------------ patterns


@pytest.mark.parametrize(
    "q,p,density", [(1, 1, 1.0), (7, 5, 0.5), (30, 40, 0.1), (3, 4, 0.0), (0, 3, 0.0), (3, 0, 0.0)]
)
def test_pattern_and_its_transpose(q, p, density, generator):
    values, pattern = sparse(generator, q, p, density)
    named = dict(zip(NAMES, (t.long() for t in pattern), strict=True))
    dense = torch.zeros(q, p)
    dense[named["row"], named["col"]] = values
    if q and p:
        column, row = dense.T.nonzero(as_tuple=True)
        assert torch.equal(named["crow_t"].diff(), (dense != 0).sum(0)) and torch.equal(row, named["col_t"])
        assert torch.equal(column, named["row_t"]) and torch.equal(dense.T[column, row], values[named["order"]])
    assert torch.equal(values[named["order"]][named["order_t"]], values)
    back = pack(named["crow_t"], named["col_t"], q)
    assert all(torch.equal(a, b) for a, b in zip(back, [*pattern[4:], *pattern[:4]], strict=True))


@pytest.mark.parametrize(
    "crow,col,match",
    [
        ([0, 1], [5], "col must rise within each row, without repeats, and be 0 … 4"),
        ([0, 1], [-1], "col must rise"),
        ([0, 2], [1, 1], "col must rise"),
        ([0, 2], [3, 1], "col must rise"),
        ([0, 2, 1, 2], [3, 4], "crow must rise from 0"),
        ([1, 2], [3, 4], "crow must rise from 0 to the number of non-zeros, 2"),
        ([0, 3], [3, 4], "crow must rise from 0"),
        ([], [], r"crow must be \(q \+ 1,\)"),
        ([[0]], [], "crow must be one dimension of whole numbers"),
        ([0.0], [], "crow must be one dimension of whole numbers"),
    ],
)
def test_bad_patterns(crow, col, match):
    with pytest.raises(ShapeError, match=match):
        pack(torch.tensor(crow) if crow else torch.zeros(0, dtype=torch.long), torch.tensor(col, dtype=torch.long), 5)
