"""The CUDA kernels of the sparse 1×1 convolution, run on the CPU by the test executor (tests/executor/)."""

from __future__ import annotations

import pytest
import torch

from stitchkern import ops
from tests.executor import build
from tests.executor.play import ORDERS, SANITIZED, run_under_sanitizers
from tests.test_spconv import DTYPES, LAYOUTS, arguments, check, sparse

pytestmark = pytest.mark.skipif(not build.AVAILABLE, reason=f"needs a C++ compiler ({build.CXX})")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, executor, generator):
    executor.play(order="shuffled")
    check(*arguments(generator, 21, 35, 0.2, layout, dtype=dtype))
    check(*arguments(generator, 40, 9, 0.5, layout, dtype=dtype, bias=False))


@pytest.mark.parametrize("q,p", [(1, 1), (9, 1), (3, 100), (70, 3), (65, 40)])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_sizes(q, p, density, executor, generator):
    for layout in ("nchw-large", "nc"):
        check(*arguments(generator, q, p, density, layout))


@pytest.mark.parametrize("p", [300, 700, 1500, 2500])  # tiles of 64, 32, 16 and 8 positions at cc 8.6
@pytest.mark.parametrize("capability", [80, 86, 90])
def test_tiles(p, capability, executor, generator):
    executor.play(capability=capability)
    for layout in ("nchw", "channels_last"):
        check(*arguments(generator, 34, p, 0.01, layout))


def test_more_channels_than_fit(executor, generator):
    executor.play(capability=86)
    given = arguments(generator, 2, 4000, 0.01, "nc")
    with pytest.raises(RuntimeError, match="spconv: 4000 channels do not fit into the shared memory"):
        ops.spconv(*given)


@pytest.mark.parametrize("layout", ["nchw-large", "channels_last", "nc"])
def test_same_bits_in_every_order(layout, executor, generator):
    """Threads and blocks take turns in three orders: a missing barrier would show."""
    x, values, bias, pattern, dim = arguments(generator, 70, 40, 0.3, layout)
    grad, results = None, []
    for order in (*ORDERS, "forward"):
        executor.play(order=order)
        y = ops.spconv(x, values, bias, pattern, dim)
        grad = y if grad is None else grad
        results.append((y, ops.spconv_weight_grad(x, grad, pattern, dim)))
    assert all(t.isfinite().all() for t in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_entries_beyond_one_group(executor, generator):
    """More non-zeros than one block has in its registers, positions in several chunks and more than one flush."""
    values, pattern = sparse(generator, 70, 50, 0.9)
    check(torch.randn(2, 50, 9, 9, generator=generator), values, None, pattern, 1)
    executor.play(processors=1)
    values, pattern = sparse(generator, 3, 4, 1.0)
    check(torch.randn(1, 4, 90, 100, generator=generator), values, None, pattern, 1)


def test_nan_reaches_what_it_is_connected_to(executor, generator):
    x, values, bias, pattern, dim = arguments(generator, 21, 35, 0.2, "nchw")
    x[1, 3, 2, 2] = float("nan")
    y = ops.spconv(x, values, bias, pattern, dim)
    connected = torch.zeros(21, dtype=torch.bool)
    connected[pattern[2].long()[pattern[1] == 3]] = True
    assert connected.any() and torch.equal(y.isnan()[1, :, 2, 2], connected) and y.isnan().sum() == connected.sum()


@pytest.mark.skipif(SANITIZED, reason="runs once")
def test_kernels_under_sanitizers():
    run_under_sanitizers(
        __file__, "(test_layouts and (cropped or channels_last or no_) and not bfloat) or test_sizes and 65"
    )
