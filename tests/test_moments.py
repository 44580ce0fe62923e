"""Moments against their definition: every layout, type, precision and kind of hostile data, on every device."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

import stitchkern as sk
from stitchkern import _C, ops, reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from tests.conftest import layouts

LAYOUTS = layouts()
# Largest error of a covariance, relative to the two standard deviations. Products of float32 numbers carry a relative
# rounding of 2^-24, and sums of up to 256 of them in float32 add a random walk of that; 1e-6 is 16 such roundings.
TOLERANCE = {"highest": 1e-6, "high": 1e-5, "medium": 2e-2, "float64": 1e-12}


def rows_view(t: torch.Tensor) -> torch.Tensor:
    t = t.movedim(1 if t.ndim == 4 else -1, -1)
    while t.ndim < 4:
        t = t.unsqueeze(1)
    return t


def expected(x, y=None, weight=None):
    x4, y4 = rows_view(x.cpu()), None if y is None else rows_view(y.cpu())
    if weight is not None:
        weight = weight.cpu().double()
        weight = (weight.reshape(-1, 1, 1) if weight.ndim == 1 else weight).expand(x4.shape[:3])
    return reference.moments(x4, y4, weight)


def check(m: sk.Moments, r: dict, tolerance: float) -> None:
    """Every statistic of m against the reference; tolerance is relative to the spread of the features."""
    p, deviation = m.p, r["cov"].diagonal().sqrt()
    scale = torch.outer(deviation, deviation)

    def close(name, ours, theirs, scale, tolerance):
        error = (ours.cpu() - theirs).abs()
        assert (error <= tolerance * scale + 1e-300).all(), f"{name}: {(error / scale.clamp_min(1e-300)).max():.2e}"

    close("mean_x", m.mean_x, r["mean"][:p], deviation[:p] + 2**-50 * r["mean"][:p].abs(), tolerance)
    close("cov_xx", m.cov_xx, r["cov"][:p, :p], scale[:p, :p], tolerance)
    assert torch.equal(m.cov_xx, m.cov_xx.T)
    assert m.rows == r["totals"][0]
    assert m.count == pytest.approx(r["totals"][1].item(), rel=1e-12)
    if m.q is not None:
        close("mean_y", m.mean_y, r["mean"][p:], deviation[p:] + 2**-50 * r["mean"][p:].abs(), tolerance)
        close("cov_xy", m.cov_xy, r["cov"][:p, p:], scale[:p, p:], tolerance)
        close("cov_yy", m.cov_yy, r["cov"][p:, p:], scale[p:, p:], tolerance)
        close(
            "norms",
            m.centred_norms(),
            r["norms"],
            r["norms"],
            max(tolerance, 1e-6 if tolerance > 1e-9 else 0),
        )


@pytest.mark.parametrize("n,p,q", [(1, 1, 1), (2, 3, 1), (7, 5, 33), (129, 64, 17), (300, 130, 49)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, n, p, q, device, generator):
    x, y = (LAYOUTS[layout](generator, n, c).to(device) for c in (p, q))
    m = sk.Moments(p, q).update(x, y)
    if m.rows < 2:
        with pytest.raises(StatisticsError, match="at least two samples"):
            _ = m.cov_xx
    else:
        check(m, expected(x, y), TOLERANCE["highest"])


@pytest.mark.parametrize("layout", ["nc", "nchw-49", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(cpu_path, layout, dtype, generator):
    x, y = (LAYOUTS[layout](generator, 150, c).to(dtype) for c in (37, 21))
    weight = torch.rand(150, generator=generator)
    check(sk.Moments(37, 21).update(x, y, weight=weight), expected(x, y, weight), TOLERANCE["highest"])


@pytest.mark.parametrize("precision", ops.PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, precision, device, generator):
    x, y = (torch.randn(500, c, generator=generator).to(device, dtype) for c in (40, 24))
    exact = dtype == torch.float64 or precision == "float64"
    m = sk.Moments(40, 24, precision=precision).update(x, y)
    check(m, expected(x, y), TOLERANCE["float64" if exact else precision])


def test_special_half_values_are_widened_exactly(device):
    values = torch.tensor([0.0, -0.0, 6e-8, 6.1e-5, 1.0, -2.5, 65504.0, -1e-7], dtype=torch.float16, device=device)
    x = values[:, None].repeat(1, 3)
    check(sk.Moments(3, precision="float64").update(x), expected(x), 1e-12)
    bad = torch.tensor([[1.0], [float("inf")]], dtype=torch.float16, device=device)
    with pytest.raises(NotFiniteError, match="x holds NaN or Inf"):
        _ = sk.Moments(1).update(bad).rows


def hostile(name: str, g: torch.Generator, n: int, c: int) -> torch.Tensor:
    x = torch.randn(n, c, generator=g)
    match name:
        case "offset-100":
            return x + 100
        case "offset-1000":
            return x * 0.5 - 1000
        case "tiny":
            return x * 1e-20
        case "huge":
            return x * 1e25
        case "mixed scales":
            return x * torch.logspace(-20, 15, c)
        case "dead and duplicated":
            x[:, 0], x[:, 1], x[:, 2] = 0, 7.25, x[:, 3]
            return x
        case "outlier":
            x[n // 2, 0] = 1e6
            return x
        case "sorted by class":
            return x + 10 * torch.arange(n)[:, None].div(n / 10, rounding_mode="floor")
    raise AssertionError(name)


HOSTILE = [
    "offset-100",
    "offset-1000",
    "tiny",
    "huge",
    "mixed scales",
    "dead and duplicated",
    "outlier",
    "sorted by class",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data(name, device, generator):
    x, y = (hostile(name, generator, 3000, c).to(device) for c in (30, 9))
    m = sk.Moments(30, 9)
    for i in range(0, 3000, 700):
        m.update(x[i : i + 700], y[i : i + 700])
    check(m, expected(x, y), TOLERANCE["highest"])


def test_first_batch_far_from_the_rest(device, generator):
    x = torch.randn(4000, 20, generator=generator) + 1000
    x[:50] = 0
    x = x.to(device)
    m = sk.Moments(20).update(x[:50]).update(x[50:])
    check(m, expected(x), TOLERANCE["highest"])
    only_late = sk.Moments(20).update(x[50:])
    assert (only_late.cov_xx.cpu() - torch.eye(20)).abs().max() < 0.2


def test_better_than_plain_torch_at_mean_over_std_100(device, generator):
    x = (torch.randn(20000, 64, generator=generator) + 100).to(device)
    r = expected(x)["cov"]
    ours = (sk.Moments(64).update(x).cov_xx.cpu() - r).abs().max() / r.diagonal().max()
    mean = x.mean(0)
    plain = ((x.T @ x / len(x) - torch.outer(mean, mean)).cpu().double() - r).abs().max() / r.diagonal().max()
    assert ours <= 1e-6 and ours < plain / 100


@pytest.mark.parametrize("kind", ["per sample", "per row", "mask", "zeros"])
@pytest.mark.parametrize("layout", ["nc", "nchw-49", "channels_last"])
def test_weights(kind, layout, device, generator):
    x, y = (LAYOUTS[layout](generator, 40, c).to(device) for c in (6, 11))
    shape = rows_view(x).shape[:3]
    weight = torch.rand(40 if kind != "per row" else shape, generator=generator, dtype=torch.float64).to(device)
    if kind == "mask":
        weight = (weight > 0.3).double()
        x[weight == 0] = float("nan")  # what is masked out is not looked at
        m = sk.Moments(6, 11).update(x, y, weight=weight)
        kept = weight != 0
        r = expected(x[kept], y[kept])
        r["totals"][0] = m.rows
        check(m, r, TOLERANCE["highest"])
        assert m.effective_count == pytest.approx(m.count)
        return
    if kind == "zeros":
        m = sk.Moments(6, 11).update(x, y, weight=torch.zeros_like(weight))
        with pytest.raises(StatisticsError, match="weight zero"):
            _ = m.mean_x
        return
    flat = weight if weight.ndim > 1 else weight[:, None, None]
    if kind == "per row":
        weight = weight.reshape(-1) if x.ndim == 2 else weight.reshape(40, *x.shape[2:])
    m = sk.Moments(6, 11).update(x, y, weight=weight)
    check(m, expected(x, y, flat.expand(shape)), TOLERANCE["highest"])


def test_batches_of_any_size_add_up(device, generator):
    x, y = (torch.randn(5000, c, generator=generator).to(device) * 3 + 5 for c in (33, 20))
    whole = sk.Moments(33, 20).update(x, y)
    parts = sk.Moments(33, 20)
    for a, b in zip([0, 0, 1, 8, 3000], [0, 1, 8, 3000, 5000], strict=True):
        parts.update(x[a:b], y[a:b])
    for m in (whole, parts):
        check(m, expected(x, y), TOLERANCE["highest"])
    assert sk.Moments(33, 20).update(x[:0], y[:0]).rows == 0


def test_same_bits_whatever_the_threads(generator):
    x, y = torch.randn(3000, 70, generator=generator), torch.randn(3000, 200, generator=generator)
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            m = sk.Moments(70, 200)
            for i in range(0, 3000, 1100):
                m.update(x[i : i + 1100], y[i : i + 1100])
            states.append(m._state())
    finally:
        torch.set_num_threads(before)
    for state in states[1:]:
        assert all(torch.equal(state[k], states[0][k]) for k in state)


def test_merge_is_exact(device, generator):
    x, y = (torch.randn(4000, c, generator=generator, dtype=torch.float64).to(device) + 3 for c in (20, 30))
    parts = [sk.Moments(20, 30).update(x[a : a + 1000] * 1, y[a : a + 1000]) for a in range(0, 4000, 1000)]
    merged = sk.Moments(20, 30)
    for part in parts:
        assert merged.merge(part) is merged
    check(merged, expected(x, y), 1e-13)
    merged.merge(sk.Moments(20, 30))
    assert merged.rows == 4000
    with pytest.raises(StatisticsError, match="p=20, q=30"):
        merged.merge(sk.Moments(20, 31))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_inputs_are_not_copied(generator):
    """One pass over 64 MiB in either layout may take only a fraction of that: peak memory, in a process of its own."""
    code = """
import re, torch, stitchkern as sk
def kib(name):
    return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
x = torch.randn(64, 64, 64, 64)
z = x.to(memory_format=torch.channels_last)
sk.Moments(64).update(x[:1])
open("/proc/self/clear_refs", "w").write("5")  # peak := now
before = kib("VmRSS")
sk.Moments(64).update(x); sk.Moments(64, 64).update(x, z); sk.Moments(64).update(x[:, :, 1:, 1:])
print((kib("VmHWM") - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) < 24, f"{out} MiB beyond the inputs"


def test_masked_tokens_do_not_hide_the_mean(device, generator):
    """The rows that the pilot looks at must have weight, wherever a mask lies."""
    x = torch.randn(128, 8, 3, generator=generator).to(device) + 1000
    weight = torch.ones(128, 8, device=device)
    weight[:, 0] = 0
    check(sk.Moments(3).update(x, weight=weight), expected(x, None, weight.cpu()[:, None]), TOLERANCE["highest"])
    empty_first = sk.Moments(3).update(x[:5], weight=torch.zeros(5, device=device)).update(x)
    check(empty_first, {**expected(x), "totals": torch.tensor([133 * 8, 128 * 8, 0.0])}, TOLERANCE["highest"])
    other = sk.Moments(3).update(x[:5], weight=torch.zeros(5, device=device)).merge(sk.Moments(3).update(x))
    check(other, {**expected(x), "totals": torch.tensor([133 * 8, 128 * 8, 0.0])}, TOLERANCE["highest"])


@pytest.mark.parametrize("scale", [1e-90, 1e-30, 1e38, 1e60])
def test_weights_of_any_size(scale, generator):
    x, w = torch.randn(500, 3, generator=generator), torch.rand(500, generator=generator, dtype=torch.float64)
    m = sk.Moments(3).update(x, weight=w * scale)
    r = expected(x, None, w)
    assert (m.cov_xx - r["cov"]).abs().max() < 1e-6
    assert m.effective_count == pytest.approx(w.sum().item() ** 2 / w.square().sum().item())


def test_finite_data_is_never_called_infinite():
    x = torch.tensor([[3.4e38], [3.4e38], [3.4e38], [-3.4e38]])
    assert sk.Moments(1).update(x).cov_xx.item() == pytest.approx(x.double().var(correction=0).item())


def test_overflow_of_float64_is_an_error():
    with pytest.raises(StatisticsError, match="overflow float64"):
        _ = sk.Moments(1).update(torch.tensor([[1e200], [-1e200]], dtype=torch.float64)).cov_xx


@pytest.mark.parametrize("value", [0.1, 12345.678, -1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_have_no_variance_at_all(value, dtype, generator):
    x = torch.randn(300, 4, generator=generator).to(dtype)
    x[:, 2] = value
    m = sk.Moments(4, 4)
    for i in range(0, 300, 37):
        m.update(x[i : i + 37], x[i : i + 37])
    assert (m.cov_xx[2] == 0).all() and (m.cov_xy[:, 2] == 0).all() and m.cov_xx[1, 1] > 0.5


def test_few_distinct_rows_keep_their_rank(generator):
    """Equal rows round alike, so their errors do not average out: embeddings of a small vocabulary."""
    words = torch.randn(5, 256, generator=generator) + 3 * torch.randn(256, generator=generator)
    x = words[torch.randint(0, 5, (20000,), generator=generator)]
    c = sk.Moments(256).update(x).cov_xx
    error = torch.linalg.matrix_norm(c - expected(x)["cov"], 2) / torch.linalg.matrix_norm(c, 2)
    assert error < 3e-7


def test_epsilon_follows_what_was_multiplied(generator):
    x = torch.randn(10, 2, generator=generator)
    m = sk.Moments(2, precision="medium")
    assert m.update(x.double()).epsilon == 2**-53
    assert m.update(x).epsilon == 2**-24  # a CPU always multiplies as at "highest"
    assert m.reset().epsilon == 2**-53
    assert m.merge(sk.Moments(2).update(x)).epsilon == 2**-24


def test_made_in_inference_mode(generator):
    with torch.inference_mode():
        m = sk.Moments(2).update(torch.randn(9, 2, generator=generator))
    m.merge(sk.Moments(2).update(torch.randn(9, 2, generator=generator)))
    with pytest.raises(NotFiniteError):
        m.update(torch.full((3, 2), float("nan")))
    assert m.rows == 18 and m.reset().rows == 0


# ------------------------------------------------------------------------------------------------ keeping


def test_save_load_pickle_copy(tmp_path, device, generator):
    pytest.importorskip("safetensors")
    x, y = (torch.randn(100, c, generator=generator).to(device) for c in (4, 5))
    m = sk.Moments(4, 5, precision="high").update(x, y)
    m.save(tmp_path / "m.safetensors")
    for other in (
        sk.Moments.load(tmp_path / "m.safetensors"),
        pickle.loads(pickle.dumps(m)),
        copy.deepcopy(m),
    ):
        assert (other.p, other.q, other.precision, other.epsilon) == (4, 5, "high", m.epsilon)
        assert torch.equal(other.cov_xy.cpu(), m.cov_xy.cpu())
        other.to(device).update(x, y)
        assert (other.rows, m.rows) == (200, 100)


def test_damaged_files(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "m.safetensors"
    sk.Moments(4, 5).update(torch.randn(10, 4), torch.randn(10, 5)).save(path)
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="no statistics file"):
        sk.Moments.load(tmp_path / "none")
    for name, content in {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello" * 100,
    }.items():
        path.write_bytes(content)
        with pytest.raises(StatisticsError, match="cannot be read as a statistics file"):
            sk.Moments.load(path)
        assert name
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(StatisticsError, match="no statistics file of stitchkern"):
        sk.Moments.load(path)
    meta = {"format": "stitchkern-moments-1", "p": "100000", "q": "0", "precision": "high", "epsilon": "1e-7"}
    save_file({"a": torch.zeros(3)}, path, meta)
    with pytest.raises(StatisticsError, match="do not fit p=100000"):
        sk.Moments.load(path)
    state = {k: v.clone() for k, v in sk.Moments(1)._state().items()}
    state["first"][0] = float("nan")
    save_file(state, path, {**meta, "p": "1"})
    with pytest.raises(StatisticsError, match="impossible values"):
        sk.Moments.load(path)
    with pytest.raises(StatisticsError, match="it is no file"):
        sk.Moments.load(tmp_path)
    save_file({"a": torch.zeros(3)}, path, {"format": "stitchkern-moments-1", "p": "4"})
    with pytest.raises(StatisticsError, match="damaged"):
        sk.Moments.load(path)


WORKER = """
import os, sys, torch, torch.distributed as dist, stitchkern as sk
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
g = torch.Generator().manual_seed(0)
x, y = torch.randn(999, 12, generator=g) + 50, torch.randn(999, 7, generator=g)
whole = sk.Moments(12, 7).update(x, y)
mine = sk.Moments(12, 7)
for i in range(rank, 9 if rank else 0, world):
    pass
if rank == 0:
    mine.update(x[:333], y[:333])
else:
    mine.update(x[333:600], y[333:600]).update(x[600:], y[600:])
mine.all_reduce()
assert mine.rows == 999
for a, b in ((mine.cov_xx, whole.cov_xx), (mine.cov_xy, whole.cov_xy), (mine.mean_y, whole.mean_y)):
    assert (a - b).abs().max() < 1e-6, (a - b).abs().max()
assert ((mine.centred_norms() - whole.centred_norms()) / whole.centred_norms()).abs().max() < 1e-6
empty = sk.Moments(12, 7)
if rank == 1:
    empty.update(x, y)
empty.all_reduce()
assert empty.rows == 999 and (empty.cov_xy - whole.cov_xy).abs().max() < 1e-12
print("agreed", rank)
dist.destroy_process_group()
"""


def test_all_reduce_over_two_processes(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("agreed") == 2


# ------------------------------------------------------------------------------------------------ bad input


def state_of(m: sk.Moments) -> dict:
    return {k: v.clone() for k, v in m._state().items()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("row", [0, 20000, -1])  # in the first, a middle and the last stage of the pass
def test_not_finite(bad, side, row, device, generator):
    m = sk.Moments(20, 3).update(torch.randn(9, 20).to(device), torch.randn(9, 3).to(device))
    before = state_of(m)
    x, y = torch.randn(60000, 20, generator=generator), torch.randn(60000, 3, generator=generator)
    (x if side == "x" else y)[row, 1] = bad
    with pytest.raises(NotFiniteError, match=f"{side} holds NaN or Inf; the batch was left out"):
        _ = m.update(x.to(device), y.to(device)).count
    after = state_of(m)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert m.rows == 9


def test_not_finite_check_can_be_switched_off(device):
    x = torch.randn(10, 2, device=device)
    x[3, 0] = float("nan")
    m = sk.Moments(2, check_finite=False).update(x)
    assert m.rows == 10 and m.cov_xx[0, 0].isnan() and m.cov_xx[1, 1].isfinite()


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_weights(bad, device):
    m = sk.Moments(2)
    weight = torch.ones(10, device=device)
    weight[4] = bad
    with pytest.raises(NotFiniteError, match="weight holds a negative, NaN or infinite value"):
        _ = m.update(torch.randn(10, 2, device=device), weight=weight).count
    assert m.rows == 0


def test_wrong_arguments():
    x, y = torch.randn(10, 4), torch.randn(10, 5)
    m = sk.Moments(4, 5)
    for error, match, call in [
        (ShapeError, r"x must have 4 channels in dimension -1; got 5 in \(10, 5\)", lambda: m.update(y, y)),
        (ShapeError, "x and y must hold the same samples; got 10 and 9", lambda: m.update(x, y[:9])),
        (ShapeError, "same positions", lambda: m.update(torch.randn(2, 4, 3, 3), torch.randn(2, 5, 3, 4))),
        (
            ShapeError,
            r"x must be \(n, c\), \(n, t, c\) or \(n, c, h, w\); got \(3,\)",
            lambda: m.update(x[0, :3], y),
        ),
        (
            TypeError,
            "x must be float64, float32, bfloat16 or float16; got torch.int64",
            lambda: m.update(x.long(), y),
        ),
        (TypeError, "x must be a torch tensor; got ndarray", lambda: m.update(x.numpy(), y)),
        (ValueError, "y is missing", lambda: m.update(x)),
        (ValueError, "one-sided", lambda: sk.Moments(4).update(x, y)),
        (ShapeError, r"weight must be \(n,\) = \(10,\)", lambda: m.update(x, y, weight=torch.ones(9))),
        (ShapeError, "channel_dim must name", lambda: m.update(x, y, channel_dim=0)),
        (ValueError, "x and y must be on one device", lambda: m.update(x, y.to("meta"))),
        (ValueError, "x must be on a CPU or a CUDA device", lambda: m.update(x.to("meta"), y.to("meta"))),
        (TypeError, "x must be a dense tensor; got layout torch.sparse_coo", lambda: m.update(x.to_sparse(), y)),
        (TypeError, "integer", lambda: sk.Moments(2.5)),
        (ShapeError, "same positions", lambda: m.update(torch.randn(2, 4, 3, 5), torch.randn(2, 5, 5, 3))),
        (ShapeError, "weight must be", lambda: sk.Moments(4).update(torch.randn(2, 3, 4), weight=torch.ones(2, 1, 3))),
        (ValueError, "at least 1", lambda: sk.Moments(0)),
        (
            ValueError,
            "precision must be one of medium, high, highest, float64",
            lambda: sk.Moments(1, precision="x"),
        ),
        (StatisticsError, "no samples", lambda: m.mean_x),
        (StatisticsError, "one-sided", lambda: sk.Moments(4).update(x).cov_xy),
    ]:
        with pytest.raises(error, match=match):
            call()
        assert m.rows == 0


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@cuda
@pytest.mark.parametrize("kind,tolerance", list(enumerate([1e-12, 1e-12, 2e-2, 3e-5, 2e-6])))  # moments_plan.h: Kind
@pytest.mark.parametrize("layout", ["nc", "nchw", "nchw-49", "cropped"])
def test_every_cuda_kernel(kind, tolerance, layout, generator):
    x, y = (LAYOUTS[layout](generator, 200, c).cuda() for c in (130, 33))
    weight = torch.rand(200, generator=generator).cuda()
    try:
        _C.force_moments_kernel(kind)
        states = [sk.Moments(130, 33).update(x, y, weight=weight)._state() for _ in range(3)]
        check(sk.Moments(130, 33).update(x, y, weight=weight), expected(x, y, weight), tolerance)
    finally:
        _C.force_moments_kernel(-1)
    assert all(torch.equal(states[0][k], other[k]) for other in states[1:] for k in other)


@cuda
def test_cuda_graph_capture_and_streams(generator):
    x = torch.randn(1000, 40, generator=generator).cuda()
    m = sk.Moments(40).update(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        m.update(x)
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    check(m, expected(x.repeat(3, 1)), TOLERANCE["highest"])
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        other = sk.Moments(40).update(x)
    side.synchronize()
    check(other, expected(x), TOLERANCE["highest"])


def test_ops_are_well_formed(device):
    m = sk.Moments(3, 2, device=device)
    x, y = torch.randn(5, 1, 1, 3, device=device), torch.randn(5, 1, 1, 2, device=device)
    w = torch.rand(5, 1, 1, dtype=torch.float64, device=device)
    for rest in ({"y": y, "weight": w, "precision": 2}, {"y": y, "weight": None, "precision": 3}):
        arguments = {**m._state(), "x": x, **rest, "check_finite": True}
        torch.library.opcheck(torch.ops.stitchkern.moments_update_, (), arguments)


def test_op_checks_its_arguments(device):
    state = sk.Moments(3, device=device)._state()
    rest = {"y": None, "weight": None, "precision": 2, "check_finite": True}
    x = torch.randn(5, 1, 1, 3, device=device)
    with pytest.raises(RuntimeError, match="second must be contiguous float64 with 9 elements"):
        ops.moments_update_(**{**state, "second": state["first"]}, x=x, **rest)
    with pytest.raises(RuntimeError, match="x must be float64, float32"):
        ops.moments_update_(**state, x=x.long(), **rest)
    with pytest.raises(RuntimeError, match=r"x must be \(n, h, w, c\)"):
        ops.moments_update_(**state, x=x[0], **rest)
