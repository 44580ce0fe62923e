"""The CUDA kernels of the Lasso path, run on the CPU by the test executor (tests/executor/)."""

from __future__ import annotations

import sys

import pytest
import torch

from stitchkern import ops
from tests.executor import build
from tests.executor.play import ORDERS, SANITIZED, run_under_sanitizers
from tests.test_lasso_op import check, penalties, problem

pytestmark = pytest.mark.skipif(not build.AVAILABLE, reason=f"needs a C++ compiler ({build.CXX})")


@pytest.mark.parametrize("q", [1, 5, 9])
@pytest.mark.parametrize("p", [1, 2, 31, 32, 33, 70])
@pytest.mark.parametrize("grouped", [False, True])
def test_sizes(grouped, p, q, executor, generator):
    executor.play(order="shuffled")
    g, s, e = problem(generator, p, q)
    check(g, s, e, *penalties(s, 3, least=0.05, grouped=grouped), grouped=grouped, tol=1e-6)


def test_one_warp_to_a_block(executor, generator):
    g, s, e = problem(generator, 1025, 2, n=2000)
    check(g, s, e, *penalties(s, 2, least=0.5), tol=1e-6)


def test_more_targets_than_threads(executor, generator):
    g, s, e = problem(generator, 3, 600)
    check(g, s, e, *penalties(s, 2, least=0.2, grouped=True), grouped=True, tol=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
def test_same_bits_in_every_order(grouped, executor, generator):
    """Threads and blocks take turns in three orders: a missing barrier would show."""
    g, s, e = problem(generator, 40, 9)
    results = []
    for order in (*ORDERS, "forward"):
        executor.play(order=order)
        results.append(check(g, s, e, *penalties(s, 3, least=0.05, grouped=grouped), grouped=grouped, tol=1e-6))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_elastic_net_and_deficient_features(grouped, positive, executor, generator):
    g, s, e = problem(generator, 20, 5)
    g[3], g[:, 3], s[3] = 0, 0, 0
    g[5], s[5] = g[11], s[11]
    g[:, 5] = g[:, 11]
    for ratio in (1.0, 0.5, 0.0):
        l1, l2 = penalties(s, 3, least=0.02, ratio=ratio, grouped=grouped)
        check(g, s, e, l1, l2, positive=positive, grouped=grouped, tol=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
def test_any_start_and_no_penalty(grouped, executor, generator):
    g, s, e = problem(generator, 10, 4)
    start = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    found, _ = check(g, s, e, zero, zero, grouped=grouped, start=start, tol=1e-9)
    torch.testing.assert_close(found[0], torch.linalg.solve(g, s).T, rtol=1e-5, atol=1e-6)
    check(g, s, e, zero, zero, grouped=grouped, start=start, tol=1e-9, positive=True)


@pytest.mark.parametrize("grouped", [False, True])
def test_stops_where_it_must(grouped, executor, generator):
    g, s, e = problem(generator, 30, 4, condition=1e3)
    l1, l2 = penalties(s, 2, least=1e-3, grouped=grouped)
    arguments = [t.contiguous() for t in (g, s, e, l1, l2, torch.zeros_like(s.T))]
    _, score = ops.lasso_path(*arguments, False, grouped, 1e-7, 3)
    assert (score[..., 5] <= 3).all() and (score[1, :, 0] > 1e-7).any()
    for spoilt in range(6):
        bad = [t.clone() for t in arguments]
        bad[spoilt].view(-1)[1] = float("nan")
        ops.lasso_path(*bad, False, grouped, 1e-7, 10)


def test_too_many_features(executor):
    t = torch.zeros(4097, 4097, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="x may have 4096 features; got 4097"):
        ops.lasso_path(t, t[:, :1].contiguous(), one[0], one, one, t[:1].contiguous(), False, False, 1e-6, 10)


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="runs once, on Linux")
def test_kernels_under_sanitizers():
    run_under_sanitizers(__file__, "(test_sizes and 33 and not 9) or test_more_targets or test_elastic")
