"""Batched least squares against its definition: every size, hostile problems, bad input, on every device."""

from __future__ import annotations

import pytest
import torch

from stitchkern import ops, reference

UNIT = 2.0**-53
EXPLAINED, PIVOT, NORM, INVERSE, SIZE = range(5)


def problems(g: torch.Generator, b: int, p: int, q: int, k: int = 8, ridge: float = 0.0, condition: float = 1.0):
    """Arguments of lsq_solve. The lower triangles are full of NaN: nothing may look at them. `condition`: the singular
    values of x fall from 1 to its inverse."""
    n = 3 * p + 5
    x, y = (torch.randn(b, n, c, generator=g, dtype=torch.float64) for c in (p, q))
    if condition > 1:
        u, _, vt = torch.linalg.svd(x, full_matrices=False)
        x = u * torch.logspace(0, -torch.tensor(condition).log10().item(), p, dtype=torch.float64) @ vt
    c = (x.mT @ x) / n
    row, column = torch.tril_indices(p, p, -1)
    c[:, row, column] = float("nan")
    probes = torch.randint(0, 2, (p, k), generator=g).double() * 2 - 1
    mean = torch.randn(b, p, generator=g, dtype=torch.float64)
    return c, (x.mT @ y) / n, mean, torch.full((b,), ridge, dtype=torch.float64), probes


def scales(c: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    v = c.diagonal(dim1=1, dim2=2) + ridge[:, None]
    return torch.where((v > 0) & v.isfinite(), v, 1.0).sqrt()


def check(arguments, device="cpu", results=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """lsq_solve on the device against the reference, within the error bound of a Cholesky solution: the unit roundoff
    times a small multiple of p times the condition of the correlations."""
    solution, sums, score = (t.cpu() for t in results or ops.lsq_solve(*(t.to(device) for t in arguments)))
    wanted, wanted_sums, wanted_score = reference.lsq_solve(*arguments)
    c, s, mean, ridge, _ = arguments
    assert solution.shape == s.shape and solution.dtype == score.dtype == torch.float64 and score.shape == (len(c), 5)
    assert sums.shape == wanted_sums.shape
    for i, d in enumerate(scales(c, ridge)):
        if wanted_score[i, INVERSE].isinf():  # a pivot failed
            assert (solution[i] == 0).all() and (sums[i] == 0).all()
            assert score[i, EXPLAINED] == score[i, SIZE] == 0 and score[i, INVERSE].isinf()
            torch.testing.assert_close(score[i], wanted_score[i], rtol=1e-9, atol=1e-12, equal_nan=True)
            continue
        p = len(d)
        a = (c[i].triu() + c[i].triu(1).T + ridge[i] * torch.eye(p, dtype=torch.float64)) / d[:, None] / d
        bound = 16 * p * UNIT * torch.linalg.cond(a)
        ours, theirs = d[:, None] * solution[i], d[:, None] * wanted[i]
        assert ((ours - theirs).norm(dim=0) <= bound * theirs.norm(dim=0)).all()
        assert abs(score[i, NORM] - wanted_score[i, NORM]) <= 4 * p * UNIT * wanted_score[i, NORM]
        for ours, x, by in zip(sums[i], (wanted[i], wanted[i].abs()), (mean[i], c[i].diagonal().sqrt()), strict=True):
            reach = (d * by.abs() / d**2) @ (d[:, None] * wanted[i]).abs()  # what an error of X acts on
            assert (
                (ours - by @ x).abs() <= (bound + p * UNIT) * reach.clamp(min=theirs.norm() * (by / d).abs().max())
            ).all()
        for entry in (EXPLAINED, PIVOT, INVERSE, SIZE):
            error = abs(score[i, entry] - wanted_score[i, entry])
            assert error <= bound * abs(wanted_score[i, entry]), (entry, score[i], wanted_score[i])
    return solution, sums, score


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("q", [1, 5, 32, 33, 64, 200])
@pytest.mark.parametrize("p", [1, 2, 7, 8, 9, 33, 64, 100, 128, 201, 256])
def test_sizes(p, q, device, generator):
    if p > ops.LSQ_MAX_FEATURES[device.type]:
        pytest.skip("more than a block's shared memory holds")
    for k in (0, 8):
        check(problems(generator, 2, p, q, k), device)


@pytest.mark.parametrize("k", range(9))
def test_probes(k, device, generator):
    """Also where S and the probes share a vector of columns."""
    for q in (1, 6, 23):
        check(problems(generator, 1, 10, q, k), device)


@pytest.mark.parametrize("b", [0, 1, 5, 300])
def test_batches(b, device, generator):
    solution, _, score = check(problems(generator, b, 12, 7), device)
    assert solution.is_contiguous() and score.is_contiguous()


def test_one_problem_many_ridges(device, generator):
    """Expanded batches, as a curve over ridges asks for; slices of larger batches."""
    c, s, mean, _, probes = problems(generator, 1, 20, 9)
    ridge = torch.logspace(-6, 2, 7, dtype=torch.float64)
    check((c.expand(7, -1, -1), s.expand(7, -1, -1), mean.expand(7, -1), ridge, probes), device)
    c, s, mean, _, probes = problems(generator, 7, 20, 9)
    check((c[::2], s[1::2][[0, 1, 2, 0]], mean[::2], ridge[::2], probes), device)
    check((c, s, mean, ridge[:1].expand(7), probes), device)


def test_every_instruction_set(cpu_path, generator):
    for p, q in ((1, 1), (2, 3), (7, 5), (9, 11), (16, 17), (33, 25), (70, 40), (256, 9)):
        check(problems(generator, 3, p, q, ridge=0.01))
        check(problems(generator, 1, p, q, 0))


def test_same_bits_for_any_number_of_threads(generator):
    arguments = problems(generator, 150, 33, 40)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(ops.lsq_solve(*arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


# ------------------------------------------------------------------------------------------------ hostile problems


@pytest.mark.parametrize("ridge", [0.0, 1e-8, 0.1, 1e6])
def test_ridge(ridge, device, generator):
    *_, score = check(problems(generator, 3, 40, 20, ridge=ridge), device)
    assert (score[:, PIVOT] > 0).all()


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("p", [9, 64, 128])
def test_ill_conditioned(p, condition, device, generator):
    arguments = problems(generator, 2, p, 17, condition=condition)
    *_, score = check(arguments, device)
    c = arguments[0][0]
    d = c.diagonal().sqrt()
    exact = torch.linalg.matrix_norm(torch.linalg.inv((c.triu() + c.triu(1).T) / d[:, None] / d))
    assert 0.1 < score[0, INVERSE] / exact < 10  # 8 probes: a chi-squared of at least 8 degrees of freedom, nearly


def test_inverse_is_unbiased(device, generator):
    c, s, mean, ridge, _ = (t[:1] for t in problems(generator, 1, 6, 1))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6).T  # all 64 of them
    found = [
        ops.lsq_solve(*(t.to(device) for t in (c, s, mean, ridge, signs[:, i : i + 8].contiguous())))[-1][
            0, INVERSE
        ].cpu()
        for i in range(0, 64, 8)
    ]
    d = scales(c, ridge)[0]
    exact = torch.linalg.inv((c[0].triu() + c[0].triu(1).T) / d[:, None] / d).norm()
    assert torch.stack(found).square().mean().sqrt() == pytest.approx(exact.item(), rel=1e-9)


def test_scales(device, generator):
    """Features from 1e-150 to 1e150: the same problem, in other units."""
    c, s, mean, ridge, probes = problems(generator, 2, 30, 11)
    plain, plain_sums, plain_score = check((c, s, mean, ridge, probes), device)
    unit = 2.0 ** torch.linspace(-498, 498, 30, dtype=torch.float64).round()[torch.randperm(30, generator=generator)]
    arguments = (c * unit[:, None] * unit, s * unit[:, None], mean * unit, ridge, probes)
    solution, sums, score = (t.cpu() for t in ops.lsq_solve(*(t.to(device) for t in arguments)))
    torch.testing.assert_close(solution * unit[:, None], plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sums, plain_sums, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(score, plain_score, rtol=1e-10, atol=0)
    check((c * 1e-250, s * 1e-125, mean, ridge + 1e-252, probes), device)
    check((c * 1e250, s * 1e125, mean, ridge + 1e240, probes), device)


@pytest.mark.parametrize("at", [0, 8, 19])
def test_dead_features(at, device, generator):
    c, s, mean, ridge, probes = problems(generator, 3, 20, 6)
    c[1, at, at:], c[1, :at, at], s[1, at] = 0, 0, 0
    solution, _, score = check((c, s, mean, ridge, probes), device)
    assert (solution[1, at] == 0).all() and (score[:, PIVOT] > 0).all() and (solution[1].abs().sum(1) > 0).sum() == 19
    solution, _, score = check((c, s, mean, ridge + 0.3, probes), device)
    assert (solution[1, at] == 0).all() and (score[:, PIVOT] > 0).all() and (solution[1].abs().sum(1) > 0).sum() == 19


def spoil(name: str, c: torch.Tensor, s: torch.Tensor, ridge: torch.Tensor, at: int) -> None:
    """Makes problem 1 of the batch one that cannot be solved."""
    other = at - 1 if at else 1
    row, column = sorted((at, other))
    match name:
        case "indefinite":
            c[1, row, column] = 3 * (c[1, row, row] * c[1, column, column]).sqrt()
        case "negative":
            c[1, at, at] = -1
        case "nan on the diagonal":
            c[1, at, at] = float("nan")
        case "nan beside it":
            c[1, row, column] = float("nan")
        case "inf":
            c[1, at, at] = float("inf")
        case "nan ridge":
            ridge[1] = float("nan")
        case "inf ridge":
            ridge[1] = float("inf")


SPOILT = [
    "indefinite",
    "negative",
    "nan on the diagonal",
    "nan beside it",
    "inf",
    "nan ridge",
    "inf ridge",
]


def check_spoilt(name: str, at: int, p: int, device, generator) -> None:
    c, s, mean, ridge, probes = problems(generator, 3, p, 9, ridge=0.125)
    good = ops.lsq_solve(*(t.to(device) for t in (c, s, mean, ridge, probes)))
    spoil(name, c, s, ridge, at)
    results = ops.lsq_solve(*(t.to(device) for t in (c, s, mean, ridge, probes)))
    solution, _, score = check((c, s, mean, ridge, probes), results=results)
    assert (solution[1] == 0).all() and score[1, EXPLAINED] == 0 and score[1, INVERSE] == float("inf")
    assert not (score[1, PIVOT] > 0 and score[1, PIVOT].isfinite())
    for ours, alone in zip(results, good, strict=True):  # the others never notice
        assert torch.equal(ours[::2], alone[::2])


@pytest.mark.parametrize("p,at", [(2, 1), (20, 0), (20, 7), (20, 8), (20, 19), (64, 63), (128, 100)])
@pytest.mark.parametrize("name", SPOILT)
def test_unsolvable(name, p, at, device, generator):
    check_spoilt(name, at, p, device, generator)


# ------------------------------------------------------------------------------------------------ the op


def test_ops_are_well_formed(device, generator):
    for b, p, q, k in ((3, 5, 4, 2), (0, 5, 4, 2), (2, 9, 1, 0)):
        arguments = tuple(t.to(device) for t in problems(generator, b, p, q, k, ridge=0.1))
        torch.library.opcheck(torch.ops.stitchkern.lsq_solve, arguments)


def test_op_checks_its_arguments(device, generator):
    c, s, mean, ridge, probes = (t.to(device) for t in problems(generator, 3, 5, 4, 2))
    most = ops.LSQ_MAX_FEATURES[device.type]
    large = torch.zeros(1, most + 1, most + 1, dtype=torch.float64, device=device)
    too_many = (large, large, large[:, 0], ridge[:1], large[0, :, :1].contiguous())
    for match, arguments in [
        (r"cov_xx must be \(b, p, p\) float64", (c.float(), s, mean, ridge, probes)),
        (r"cov_xy must be \(b, p, q\) float64; got 2 dimensions", (c, s[0], mean, ridge, probes)),
        (r"mean_x must be \(b, p\) float64; got 1 dimensions", (c, s, mean[0], ridge, probes)),
        (r"ridge must be \(b,\) float64", (c, s, mean, ridge[:, None], probes)),
        (r"probes must be \(p, k\) float64; got 2 dimensions of another type", (c, s, mean, ridge, probes.int())),
        (r"cov_xx must be \(b, p, p\); got \(3, 5, 4\)", (c[:, :, :4].contiguous(), s, mean, ridge, probes)),
        (r"cov_xy must be \(b, p, q\) = \(3, 5, 1 or more\); got \(2, 5, 4\)", (c, s[:2], mean, ridge, probes)),
        (r"cov_xy must be \(b, p, q\) = \(3, 5, 1 or more\); got \(3, 5, 0\)", (c, s[:, :, :0], mean, ridge, probes)),
        (r"mean_x must be \(b, p\) = \(3, 5\); got \(2, 5\)", (c, s, mean[:2], ridge, probes)),
        (r"ridge must be \(b,\) = \(3,\); got \(2,\)", (c, s, mean, ridge[:2], probes)),
        (r"probes must be \(p, k\) = \(5, 0 … 8\); got \(4, 2\)", (c, s, mean, ridge, probes[:4])),
        (r"probes must be \(p, k\) = \(5, 0 … 8\); got \(5, 9\)", (c, s, mean, ridge, probes[:, :1].repeat(1, 9))),
        (rf"cov_xx must have 1 … {most} features; got {most + 1}", too_many),
        (rf"cov_xx must have 1 … {most} features; got 0", (c[:, :0, :0], s[:, :0], mean[:, :0], ridge, probes[:0])),
        (r"cov_xx must be .* contiguous; dimension 2 has stride 5", (c.mT, s, mean, ridge, probes)),
        (r"cov_xy must be .* contiguous; dimension 1 has stride 4, not 3", (c, s[:, :, :3], mean, ridge, probes)),
        (r"mean_x must be .* contiguous; dimension 1 has stride 2", (c, s, mean.repeat(1, 2)[:, ::2], ridge, probes)),
        (r"probes must be .* contiguous; dimension 0 has stride 2, not 1", (c, s, mean, ridge, probes[:, :1])),
    ]:
        with pytest.raises(RuntimeError, match=match):
            ops.lsq_solve(*arguments)
    assert ops.LSQ_MAX_FEATURES == {"cpu": 256, "cuda": 128} and ops.LSQ_MAX_PROBES == 8


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@cuda
def test_one_cuda_device(generator):
    c, s, mean, ridge, probes = problems(generator, 3, 5, 4, 2)
    with pytest.raises(RuntimeError, match="cov_xx and ridge must be on one device"):
        ops.lsq_solve(c.cuda(), s.cuda(), mean.cuda(), ridge, probes.cuda())


@cuda
def test_cuda_graph_capture_streams_and_bits(generator):
    arguments = problems(generator, 50, 64, 70)
    there = [t.cuda() for t in arguments]
    first = ops.lsq_solve(*there)
    check(arguments, results=first)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(ops.lsq_solve(*there), first, strict=True))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.lsq_solve(*there)
    there[1].mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured[0], 2 * first[0], rtol=1e-12, atol=0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        other = ops.lsq_solve(*there)
    side.synchronize()
    assert torch.equal(other[0], captured[0])
