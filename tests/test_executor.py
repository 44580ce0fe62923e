"""The CUDA kernels, run on the CPU by the test executor (tests/executor/).

Every kernel on every layout, type and kind of hostile data, through the whole Moments class; and the executor itself on
kernels that are wrong on purpose.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys

import pytest
import torch

import stitchkern as sk
from stitchkern import ops
from stitchkern.errors import NotFiniteError
from tests.conftest import layouts
from tests.executor import build
from tests.executor.play import KINDS, ORDERS, SANITIZED, run_under_sanitizers
from tests.test_moments import HOSTILE, check, expected, hostile, rows_view

pytestmark = pytest.mark.skipif(not build.AVAILABLE, reason=f"needs a C++ compiler ({build.CXX})")

LAYOUTS = layouts()
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Largest error of a covariance, relative to the two standard deviations, reached only where few rows count.
# float64 products: as the reference itself. bfloat16 rounds by up to 2^-8. One product: two roundings. Three:
# u = hi + lo leaves 2^-16 of each factor, and the product of the two lo is dropped, another 2^-16; 48 truncated
# sums between promotions add up to less than 2^-18. Six: the parts are exact; what is dropped is at most 2^-23,
# and 24 truncations add up to 2^-20.
TOLERANCE = {"plain": 1e-12, "float64": 1e-12, "bf16x1": 2.1 * 2**-8, "bf16x3": 3.25 * 2**-16, "bf16x6": 1.2 * 2**-20}


def tolerance(kind: str, dtype: torch.dtype = torch.float32) -> float:
    return TOLERANCE["float64" if dtype == torch.float64 else kind]


def state_of(m: sk.Moments) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in m._state().items()}


# ------------------------------------------------------------------------------------------------ every kernel


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(kind, layout, size, executor, generator):
    n, p, q = {"small": (7, 5, 33), "large": (17, 130, 64)}[size]
    executor.play(kind)
    x, y = (LAYOUTS[layout](generator, n, c) for c in (p, q))
    check(sk.Moments(p, q).update(x, y), expected(x, y), tolerance(kind))


@pytest.mark.parametrize("layout", ["nc", "nchw", "nchw-49", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_types_and_weights(kind, dtype, layout, executor, generator):
    executor.play(kind, order="reverse")
    n = 160 if layout == "nc" else 9
    x, y = (LAYOUTS[layout](generator, n, c).to(dtype) for c in (36, 70))
    weight = torch.rand(rows_view(x).shape[:3], generator=generator, dtype=torch.float64)
    weight[::3] = 0
    x[::3], y[::3] = float("nan"), float("inf")  # of weight zero: not looked at
    kept = torch.arange(n) % 3 != 0
    r = expected(x[kept], y[kept], weight[kept])
    m = sk.Moments(36, 70).update(x, y, weight=weight if x.ndim == 4 else weight[:, 0, 0])
    assert m.rows == rows_view(x).shape[:3].numel()
    r["totals"][0] = m.rows
    check(m, r, tolerance(kind, dtype))
    assert m.effective_count == pytest.approx((r["totals"][1] ** 2 / r["totals"][2]).item(), rel=1e-12)


@pytest.mark.parametrize("p", [1, 5, 33, 130])
@pytest.mark.parametrize("rows", [1, 2, 7, 129, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind, rows, p, executor, generator):
    executor.play(kind, order="shuffled")
    x = torch.randn(rows, p, generator=generator)
    m = sk.Moments(p).update(x)
    assert m.rows == rows
    if rows > 1:
        check(m, expected(x), tolerance(kind))
    else:
        assert torch.equal(m.mean_x, x[0].double())


@pytest.mark.parametrize("kind", KINDS)
def test_many_features(kind, executor, generator):
    """More than one tile row to a side, more than one block of features."""
    executor.play(kind)
    x, y = (torch.randn(70, c, generator=generator) for c in (260, 135))
    check(sk.Moments(260, 135).update(x, y), expected(x, y), tolerance(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows(kind, executor, generator):
    """Several chunks of weights, several groups of rows in a chunk of norms, several promotions in a split."""
    executor.play(kind)
    x, y = (torch.randn(5000, c, generator=generator) for c in (3, 2))
    weight = torch.rand(5000, generator=generator, dtype=torch.float64)
    check(sk.Moments(3, 2).update(x, y, weight=weight), expected(x, y, weight), tolerance(kind))


def test_no_rows_change_nothing(executor):
    m = sk.Moments(3, 2).update(torch.ones(4, 3), torch.ones(4, 2))
    before = state_of(m)
    m.update(torch.ones(0, 3), torch.ones(0, 2))
    assert all(torch.equal(before[k], v) for k, v in m._state().items())


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_data(kind, name, executor, generator):
    executor.play(kind)
    x, y = (hostile(name, generator, 700, c) for c in (30, 9))
    m = sk.Moments(30, 9)
    for begin in range(0, 700, 250):
        m.update(x[begin : begin + 250], y[begin : begin + 250])
    check(m, expected(x, y), tolerance(kind))
    if name == "dead and duplicated":
        assert (m.cov_xx[:2] == 0).all() and m.mean_x[1] == 7.25


@pytest.mark.parametrize("kind", KINDS)
def test_first_batch_zero_then_far_away(kind, executor, generator):
    executor.play(kind)
    x = torch.randn(450, 20, generator=generator) + 1000
    x[:50] = 0
    m = sk.Moments(20).update(x[:50]).update(x[50:])
    # about the origin the spread is that of the two groups: 1000 standard deviations of the second, squared
    check(m, expected(x), tolerance(kind))
    late = sk.Moments(20).update(torch.zeros(50, 20), weight=torch.full((50,), 1e-30)).update(x[50:])
    error = (late.cov_xx - expected(x[50:])["cov"]).abs().max()
    assert error < tolerance(kind) * 2 + 2**-53 * 1000**2 * 64


@pytest.mark.parametrize("kind", ["float64", "bf16x6"])
def test_weights_of_any_size(kind, executor, generator):
    executor.play(kind)
    x = torch.randn(200, 6, generator=generator)
    weight = torch.rand(200, generator=generator, dtype=torch.float64) * 1e-60
    check(sk.Moments(6).update(x, weight=weight), expected(x, weight=weight), tolerance(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_add_up_and_merge(kind, executor, generator):
    executor.play(kind)
    x, y = (torch.randn(400, c, generator=generator) * 3 + 5 for c in (33, 20))
    whole, rest = sk.Moments(33, 20), sk.Moments(33, 20).update(x[180:], y[180:])
    for a, b in ((0, 1), (1, 8), (8, 180)):
        whole.update(x[a:b], y[a:b])
    check(whole.merge(rest), expected(x, y), tolerance(kind))


# ------------------------------------------------------------------------------------------------ same bits, bad input


@pytest.mark.parametrize("layout", ["nc", "nchw-49"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_in_every_order(kind, layout, executor, generator):
    """Threads and blocks take turns in three orders: a missing barrier, or blocks that share data, would show."""
    x, y = (LAYOUTS[layout](generator, 150 if layout == "nc" else 4, c) for c in (140, 40))
    weight = torch.rand(len(x), generator=generator)
    states = []
    for order in (*ORDERS, "forward"):
        executor.play(kind, order=order)
        states.append(state_of(sk.Moments(140, 40).update(x, y, weight=weight).update(x, y)))
    assert states[0]["second"].triu().isfinite().all()
    for state in states[1:]:
        assert all(torch.equal(state[k], states[0][k]) for k in state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["x", "y", "weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_batch_changes_nothing(kind, what, bad, executor, generator):
    executor.play(kind)
    x, y = (torch.randn(300, c, generator=generator) for c in (140, 3))
    weight = torch.ones(300)
    m = sk.Moments(140, 3).update(x, y)
    before = state_of(m)
    for row, column in ((0, 0), (299, 2)):
        given = {"x": x.clone(), "y": y.clone(), "weight": weight.clone()}
        given[what][(row, column) if what != "weight" else row] = bad if what != "weight" or bad > 0 else -1.0
        with pytest.raises(
            NotFiniteError, match="negative, NaN or infinite" if what == "weight" else f"{what} holds NaN or Inf"
        ):
            m.update(given["x"], given["y"], weight=given["weight"])
        assert all(torch.equal(before[k], v) for k, v in m._state().items())


def test_finds_are_counted_until_cleared(executor):
    buffers = sk.Moments(2, 1)._buffers
    x, y = torch.randn(5, 1, 1, 2), torch.full((5, 1, 1, 1), float("nan"))
    for _ in range(3):
        ops.moments_update_(**buffers, x=x, y=y, weight=None, precision=0, check_finite=True)
    totals = {k: buffers["totals"][i].item() for k, i in ops.TOTALS.items()}
    assert totals == {**dict.fromkeys(ops.TOTALS, 0.0), "bad_y": 3.0}


@pytest.mark.parametrize("kind", KINDS)
def test_check_finite_can_be_switched_off(kind, executor):
    executor.play(kind)
    x = torch.randn(10, 2)
    x[3, 0] = float("nan")
    m = sk.Moments(2, check_finite=False).update(x)
    assert m.rows == 10 and m.cov_xx[0, 0].isnan() and m.cov_xx[1, 1].isfinite()


def test_one_dtype(executor):
    with pytest.raises(RuntimeError, match="x and y must have one dtype"):
        sk.Moments(2, 2).update(torch.randn(5, 2), torch.randn(5, 2).half())


# ------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize(
    "capability,highest", [(80, "float64"), (86, "bf16x6"), (89, "bf16x6"), (90, "float64"), (120, "bf16x6")]
)
def test_which_kernel(capability, highest, executor):
    device = {"capability": capability, "processors": 100}
    wanted = {"float64": "float64", "highest": highest, "high": "bf16x3", "medium": "bf16x1"}
    for precision, kind in wanted.items():
        assert executor.plan(1000, 64, 0, float64=False, precision=precision, **device)["kind"] == kind
        assert executor.plan(1000, 64, 0, float64=True, precision=precision, **device)["kind"] == "float64"


@pytest.mark.parametrize("rows", [1, 63, 64, 1000, 2**20, 256 * 56 * 56 * 100])
@pytest.mark.parametrize("p,q", [(1, 0), (64, 64), (512, 0), (2048, 2048), (4000, 7)])
def test_plan_covers_the_rows_in_bounded_memory(rows, p, q, executor):
    plan = executor.plan(rows, p, q, float64=False, precision="high", capability=90, processors=132)
    assert (plan["splits"] - 1) * plan["split_rows"] < rows <= plan["splits"] * plan["split_rows"]
    assert plan["split_rows"] % 32 == 0
    one_split = plan["pairs"] * 128 * 64 * 8
    assert plan["bytes"] <= max(256 << 20, one_split) + (64 << 20)
    if rows * (p + q) >= 2**27 and p + q <= 1024:  # enough work: every multiprocessor gets some
        assert plan["pairs"] * plan["splits"] >= 0.9 * 132


# ------------------------------------------------------------------------------------------------ the executor itself


class Faults:
    def __init__(self) -> None:
        self.native = ctypes.CDLL(str(build.build_faults(SANITIZED)))

    def run(self, name: str, order: str = "forward") -> tuple[str, list[float]]:
        message, out = ctypes.create_string_buffer(256), (ctypes.c_float * 64)()
        self.native.run_fault(name.encode(), ORDERS[order], out, message)
        return message.value.decode(), list(out)


@pytest.mark.parametrize(
    "name,message",
    [
        ("leave", "leave, block 0: threads part ways: thread 0 waits in __syncthreads:.*, thread 5 has left"),
        ("barriers", "barriers, block 0: threads part ways: thread 0 waits in __syncthreads:.*, thread 32 waits in"),
        ("lane", "lane, block 0: threads part ways: thread 0 waits in shuffle_xor, thread 7 has left"),
        ("shared", "shared, block 0: a shared array lies beyond the shared memory that was asked for"),
    ],
)
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_executor_reports(name, message, order):
    assert re.match(message, Faults().run(name, order)[0])


def test_a_missing_barrier_changes_the_result():
    faults = Faults()
    good = [float((i + 1) % 64) for i in range(64)]
    for order in ORDERS:
        assert faults.run("good", order) == ("", good)
        assert faults.run("race", order) != ("", good)


# ------------------------------------------------------------------------------------------------ sanitizers

OVERRUN = """
import ctypes, sys
out, message = (ctypes.c_float * 64)(), ctypes.create_string_buffer(256)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ctypes.CDLL(sys.argv[1]).run_fault(sys.argv[2].encode(), 0, ctypes.c_void_p(libc.malloc(64 * 4)), message)
print("done", message.value.decode())
"""


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="runs once, on Linux")
def test_the_sanitizer_sees_overruns():
    library = str(build.build_faults(sanitize=True))
    for name in ("good", "shared-overrun", "global-overrun"):
        command = [sys.executable, "-c", OVERRUN, library, name]
        run = subprocess.run(command, capture_output=True, text=True, env=build.sanitizer_environment())
        if name == "good":
            assert run.returncode == 0 and "done" in run.stdout, run.stderr
        else:
            assert run.returncode != 0 and "heap-buffer-overflow" in run.stderr and "writes_at" in run.stderr


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="runs once, on Linux")
def test_kernels_under_sanitizers():
    selection = " or ".join(
        f"({part})"
        for part in (
            "test_layouts and small",
            "test_types and nchw and not 49",
            "test_sizes and 33",
            "hostile and tiny",
            "no_rows",
        )
    )
    run_under_sanitizers(__file__, selection)
