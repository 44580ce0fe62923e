"""Lasso paths against their conditions of optimality in float64: every size, hostile problems, on every device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stitchkern import ops, reference

FIELD = {name: i for i, name in enumerate(ops.LASSO_SCORES)}


def problem(g: torch.Generator, p: int, q: int, n: int | None = None, condition: float = 1.0):
    """G (p, p), S (p, q), E y² (q,) of centred data; the singular values of x fall from 1 to 1 / `condition`."""
    n = n or 3 * p + 5
    x = torch.randn(n, p, generator=g, dtype=torch.float64)
    if condition > 1:
        u, _, vt = torch.linalg.svd(x, full_matrices=False)
        x = n**0.5 * u * torch.logspace(0, -torch.tensor(condition).log10().item(), u.shape[1]).double() @ vt
    x = x - x.mean(0)
    truth = torch.randn(p, q, generator=g, dtype=torch.float64) * (torch.rand(p, q, generator=g) < 0.4)
    y = x @ truth + x.std() * torch.randn(n, q, generator=g, dtype=torch.float64)
    y = y - y.mean(0)
    return x.T @ x / n, x.T @ y / n, y.square().mean(0)


def penalties(s: Tensor, count: int = 8, least: float = 1e-3, ratio: float = 1.0, grouped: bool = False):
    """l1, l2 (a, q), from above each target's largest down to `least` of it."""
    top = s.norm(dim=1).amax().expand(s.shape[1]) if grouped else s.abs().amax(0)
    alphas = 1.1 * torch.logspace(0, torch.tensor(least).log10().item(), count, dtype=torch.float64)[:, None] * top
    return alphas * ratio, alphas * (1 - ratio)


def check(
    gram, cross, energy, l1, l2, *, positive=False, grouped=False, tol=1e-7, device="cpu", start=None, sweeps=10**5
):
    """Every point of the path is optimal to tol, and its score is that of its coefficients."""
    p, q = cross.shape
    start = torch.zeros(q, p, dtype=torch.float64) if start is None else start
    arguments = [t.contiguous().to(device) for t in (gram, cross, energy, l1, l2, start)]
    found, score = (t.cpu() for t in ops.lasso_path(*arguments, positive, grouped, tol, sweeps))
    assert found.shape == (len(l1), q, p) and score.shape == (len(l1), q, len(FIELD)) and found.dtype == torch.float64
    assert found.isfinite().all() and score.isfinite().all()
    assert (found[:, :, gram.diagonal() == 0] == 0).all() and not (positive and (found < 0).any())
    assert torch.equal(score[..., FIELD["nonzero"]], (found != 0).sum(-1).double())
    for i in range(len(l1)):
        wanted = reference.lasso_score(gram, cross, energy, found[i], l1[i], l2[i], positive=positive, grouped=grouped)
        ours = {name: score[i, :, at] for name, at in FIELD.items()}
        # c = s − G w is a sum of terms this large
        terms = (cross.abs() + gram.abs() @ found[i].abs().T).amax(0) / cross.abs().amax(0).clamp(min=1e-300)
        noise = 64 * p * 2.0**-53 * (terms.amax() if grouped else terms)
        assert (wanted["violation"] <= tol + noise).all(), (i, wanted["violation"].max())
        assert ((ours["violation"] - wanted["violation"]).abs() <= noise).all()
        size = energy + (found[i].abs() * (cross.abs() + gram.abs() @ found[i].abs().T).T).sum(1) + l1[i] * ours["norm"]
        for name in ("explained", "norm", "squares"):
            assert ((ours[name] - wanted[name]).abs() <= 1e-11 * (wanted[name].abs() + size)).all(), name
        # what noise of c does to the dual point: to its length without l2, beyond l1 with it
        largest = cross.abs().amax(0)
        relative = (noise * largest / l1[i].clamp(min=1e-300)).clamp(max=1.0)
        beyond = (noise * largest.amax()) ** 2 * p / l2[i].clamp(min=1e-300) * (l2[i] > 0)
        blur = 4 * size * (relative + noise) + beyond
        assert ((ours["gap"] - wanted["gap"]).abs() <= blur).all(), "gap"
        assert ours["gap"].sum() >= -blur.sum()
    return found, score


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("q", [1, 5, 33])
@pytest.mark.parametrize("p", [1, 2, 3, 7, 8, 17, 64, 100])
def test_sizes(p, q, device, generator):
    g, s, e = problem(generator, p, q)
    found, _ = check(g, s, e, *penalties(s), device=device)
    assert (found[0] == 0).all() and (found[-1] != 0).any()


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_optimal_and_no_worse_than_plain_coordinate_descent(grouped, positive, ratio, device, generator):
    g, s, e = problem(generator, 8, 5)
    l1, l2 = penalties(s, 5, ratio=ratio, grouped=grouped)
    options = {"positive": positive, "grouped": grouped}
    found, _ = check(g, s, e, l1, l2, **options, tol=1e-11, device=device)
    for i in range(len(l1)):
        plain = reference.lasso(g, s, l1[i], l2[i], **options, sweeps=150)
        torch.testing.assert_close(found[i], plain, rtol=1e-7, atol=1e-8)
        ours, theirs = (
            reference.lasso_score(g, s, e, w, l1[i], l2[i], **options)["objective"].sum() for w in (found[i], plain)
        )
        assert ours <= theirs + 1e-12 * e.sum()


def test_every_instruction_set(cpu_path, generator):
    for p, q in ((1, 1), (7, 5), (9, 11), (33, 25), (70, 9)):
        g, s, e = problem(generator, p, q)
        check(g, s, e, *penalties(s))
        check(g, s, e, *penalties(s, ratio=0.5), positive=True)
        check(g, s, e, *penalties(s, grouped=True), grouped=True)


def test_same_bits_for_any_number_of_threads(generator):
    g, s, e = problem(generator, 60, 150)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(check(g, s, e, *penalties(s, 20)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


# ------------------------------------------------------------------------------------------------ hostile problems


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_ill_conditioned(condition, device, generator):
    """Singular values; the condition of G is the square of theirs."""
    g, s, e = problem(generator, 40, 10, condition=condition)
    exact = device.type == "cpu"  # coordinate descent takes its time
    check(g, s, e, *penalties(s, 6, least=1e-4 if exact else 1e-2), tol=1e-7 if exact else 1e-4, device=device)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["dead", "duplicated", "mirrored", "rank 3", "n < p"])
@pytest.mark.parametrize("grouped", [False, True])
def test_deficient(kind, grouped, positive, device, generator):
    p, q = 24, 9
    g, s, e = problem(generator, p, q, n=11 if kind == "n < p" else None)
    mix = torch.eye(p, dtype=torch.float64)
    if kind == "dead":
        mix[:, [0, 7, 23]] = 0
    if kind == "duplicated":
        mix[:, [3, 4, 20]] = mix[:, [11]]
    if kind == "mirrored":
        mix[:, 3], mix[:, 4] = -mix[:, 11], 2 * mix[:, 12]
    if kind == "rank 3":
        mix[3:] = 0
        mix[:3] = torch.randn(3, p, generator=generator, dtype=torch.float64)
    g, s = mix.T @ g @ mix, mix.T @ s
    g = (g + g.T) / 2
    l1, l2 = penalties(s, 12, grouped=grouped)
    check(g, s, e, l1, l2, positive=positive, grouped=grouped, tol=1e-6, device=device)


def test_many_equal_features(device, generator):
    """Features drawn with repetition: equal ones want to join at once, and depend on what joins beside them."""
    for seed in range(40):
        g = generator.manual_seed(seed)
        p, n = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((10, 60), (12, 150)))
        gram, s, e = problem(g, p, 6, n)
        at = torch.randint(0, p, (p,), generator=g)
        l1, l2 = penalties(s[at], 25 if device.type == "cpu" else 4, least=1e-5 if device.type == "cpu" else 0.05)
        check(gram[at][:, at], s[at], e, l1, l2, positive=seed % 2 == 1, device=device)


def test_without_a_penalty(device, generator):
    """α = 0 at the end of a path is least squares; a path may come back from it."""
    g, s, e = problem(generator, 20, 6)
    l1, l2 = penalties(s, 4)
    l1 = torch.cat([l1, torch.zeros_like(l1[:1]), l1[2:3]])
    l2 = torch.zeros_like(l1)
    found, _ = check(g, s, e, l1, l2, tol=1e-11, device=device)
    torch.testing.assert_close(found[4], torch.linalg.solve(g, s).T, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found[5], found[2], rtol=1e-7, atol=1e-8)
    check(g, s, e, l1, l2, positive=True, device=device)


@pytest.mark.parametrize("kind", ["good", "wrong signs", "far", "dense"])
def test_any_start(kind, device, generator):
    g, s, e = problem(generator, 30, 8)
    l1, l2 = penalties(s, 5)
    found, _ = check(g, s, e, l1, l2, tol=1e-10, device=device)
    start = {
        "good": found[2],
        "wrong signs": -found[4],
        "far": 1e6 * torch.randn(8, 30, generator=generator, dtype=torch.float64),
        "dense": torch.randn(8, 30, generator=generator, dtype=torch.float64),
    }[kind]
    again, _ = check(g, s, e, l1, l2, tol=1e-10, device=device, start=start)
    torch.testing.assert_close(again, found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("grouped", [False, True])
def test_scales_of_features(grouped, device, generator):
    """Features from 1e-6 to 1e6: the penalty treats them differently, the solver must not."""
    g, s, e = problem(generator, 20, 5)
    unit = torch.logspace(-6, 6, 20, dtype=torch.float64)[torch.randperm(20, generator=generator)]
    g, s = g * unit[:, None] * unit, s * unit[:, None]
    check(g, s, e, *penalties(s, 10, least=1e-9, grouped=grouped), grouped=grouped, tol=1e-10, device=device)


@pytest.mark.parametrize("grouped", [False, True])
def test_nothing_to_explain(grouped, device, generator):
    g, s, e = problem(generator, 10, 4)
    l1, l2 = penalties(s, 5, grouped=grouped)
    found, score = check(g, s * 0, e, l1, l2, grouped=grouped, device=device)
    assert (found == 0).all() and (score[..., 0] == 0).all()
    found, _ = check(g * 0, s * 0, e, l1, l2, grouped=grouped, device=device)
    assert (found == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_stops_where_it_must(grouped, device, generator):
    """One sweep is not enough, and the score says so; a tolerance out of reach ends all the same."""
    g, s, e = problem(generator, 40, 6, condition=1e3)
    l1, l2 = penalties(s, 2, least=1e-4, grouped=grouped)
    arguments = [t.contiguous().to(device) for t in (g, s, e, l1, l2, torch.zeros_like(s.T))]
    found, score = (t.cpu() for t in ops.lasso_path(*arguments, False, grouped, 1e-7, 1))
    assert (score[..., FIELD["sweeps"]] <= 1).all() and (score[1, :, 0] > 1e-7).any()
    wanted = reference.lasso_score(g, s, e, found[1], l1[1], l2[1], grouped=grouped)
    torch.testing.assert_close(score[1, :, 0], wanted["violation"], rtol=1e-6, atol=1e-12)
    _, score = ops.lasso_path(*arguments, False, grouped, 1e-30, 300)
    assert (score[..., FIELD["sweeps"]] <= 300).all() and score.isfinite().all()


@pytest.mark.parametrize("what", range(6))
def test_not_finite_never_hangs(what, device, generator):
    """The callers refuse such statistics; the op must come back from them."""
    g, s, e = problem(generator, 10, 3)
    l1, l2 = penalties(s, 3)
    arguments = [t.contiguous() for t in (g, s, e, l1, l2, torch.zeros_like(s.T))]
    arguments[what].view(-1)[1] = float("nan")
    ops.lasso_path(*(t.to(device) for t in arguments), False, False, 1e-7, 100)
    arguments[3] = arguments[3][:, :1].expand_as(l1).contiguous()
    ops.lasso_path(*(t.to(device) for t in arguments), False, True, 1e-7, 100)


# ------------------------------------------------------------------------------------------------ the op


def test_op_is_well_formed(device, generator):
    g, s, e = problem(generator, 9, 4)
    l1, l2 = penalties(s, 3, grouped=True)
    arguments = tuple(t.contiguous().to(device) for t in (g, s, e, l1, l2, torch.zeros_like(s.T)))
    for grouped in (False, True):
        torch.library.opcheck(torch.ops.stitchkern.lasso_path, (*arguments, False, grouped, 1e-6, 100))
    empty = (*arguments[:3], arguments[3][:0], arguments[4][:0], arguments[5], False, False, 1e-6, 100)
    assert [len(t) for t in torch.ops.stitchkern.lasso_path(*empty)] == [0, 0]


def test_op_checks_its_arguments(device, generator):
    g, s, e = problem(generator, 5, 4)
    l1, l2 = penalties(s, 3)
    good = [t.contiguous().to(device) for t in (g, s, e, l1, l2, torch.zeros_like(s.T))]
    for at, bad, match in [
        (0, good[0].float(), r"gram must be \(p, p\) contiguous float64, 5 in its last dimension; .* of another type"),
        (0, good[0][:, :4].contiguous(), r"gram must be \(p, p\) .* got 2 dimensions, the last of 4"),
        (1, good[1].T, r"must be \(p, p\)"),
        (1, good[1][0], r"cross must be \(p, q\) and l1 \(a, q\); got 1 and 2 dimensions"),
        (1, good[1][:, :0], r"at least one of each; got \(5, 0\)"),
        (2, good[2][:3], r"energy must be \(q,\) contiguous float64, 4 in its last dimension"),
        (3, good[3][:, :3], r"l1 must be \(a, q\)"),
        (4, good[4][:2], r"l2 must be \(a, q\)"),
        (5, good[5].T, r"start must be \(q, p\)"),
    ]:
        arguments = [*good]
        arguments[at] = bad
        with pytest.raises(RuntimeError, match=match):
            ops.lasso_path(*arguments, False, False, 1e-6, 10)
    for tol, sweeps in ((0.0, 10), (1e-6, 0)):
        with pytest.raises(RuntimeError, match="tol must be positive and max_sweeps"):
            ops.lasso_path(*good, False, False, tol, sweeps)
