"""The CUDA kernel of the batched least squares, run on the CPU by the test executor (tests/executor/)."""

from __future__ import annotations

import sys

import pytest
import torch

from stitchkern import ops
from tests.executor import build
from tests.executor.play import ORDERS, SANITIZED, run_under_sanitizers
from tests.test_lsq import SPOILT, check, check_spoilt, problems

pytestmark = pytest.mark.skipif(not build.AVAILABLE, reason=f"needs a C++ compiler ({build.CXX})")


@pytest.mark.parametrize("q", [1, 5, 33, 70])
@pytest.mark.parametrize("p", [1, 2, 7, 8, 9, 33, 64])
def test_sizes(p, q, executor, generator):
    executor.play(order="shuffled")
    for k in (0, 8):
        check(problems(generator, 2, p, q, k))


@pytest.mark.parametrize("capability", [80, 86, 90])  # room for 8 strips of right-hand sides, for 3, for 8
def test_most_features(capability, executor, generator):
    executor.play(capability=capability)
    check(problems(generator, 1, 128, 75, 3))


@pytest.mark.parametrize("p", [9, 100, 128])
def test_same_bits_in_every_order(p, executor, generator):
    """Threads and blocks take turns in three orders: a missing barrier would show."""
    arguments = problems(generator, 2, p, 70, ridge=0.01)
    results = []
    for order in (*ORDERS, "forward"):
        executor.play(order=order)
        results.append(ops.lsq_solve(*arguments))
    assert all(t.isfinite().all() for t in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("k", range(9))
def test_probes(k, executor, generator):
    for q in (1, 6, 15):
        check(problems(generator, 1, 10, q, k))


def test_batches(executor, generator):
    for b in (0, 1, 5):
        check(problems(generator, b, 12, 7))
    c, s, mean, _, probes = problems(generator, 1, 20, 9)
    check(
        (
            c.expand(4, -1, -1),
            s.expand(4, -1, -1),
            mean.expand(4, -1),
            torch.logspace(-6, 2, 4, dtype=torch.float64),
            probes,
        )
    )


@pytest.mark.parametrize("p,at", [(2, 1), (20, 0), (20, 7), (20, 8), (20, 19), (70, 69)])
@pytest.mark.parametrize("name", SPOILT)
def test_unsolvable(name, p, at, executor, generator):
    check_spoilt(name, at, p, "cpu", generator)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_dead_features(ridge, executor, generator):
    c, s, mean, r, probes = problems(generator, 2, 20, 6)
    c[1, 9, 9:], c[1, :9, 9], s[1, 9] = 0, 0, 0
    *_, score = check((c, s, mean, r + ridge, probes))
    assert (score[:, 1] > 0).all()


def test_ill_conditioned_and_any_scale(executor, generator):
    c, s, mean, ridge, probes = problems(generator, 2, 40, 10, condition=1e6)
    check((c, s, mean, ridge, probes))
    check((c * 1e-250, s * 1e-125, mean, ridge, probes))
    check((c * 1e250, s * 1e125, mean, ridge + 1e240, probes))


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="runs once, on Linux")
def test_kernel_under_sanitizers():
    run_under_sanitizers(
        __file__, "(test_sizes and not 64) or most_features or test_batches or (test_unsolvable and 20-8)"
    )
