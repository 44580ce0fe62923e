"""Matched features against the correlations of the data and the linear programme of transport."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

MATCHES = {
    "hard": lambda *a: sk.correlation_match(*a),
    "soft": lambda *a: sk.correlation_match(*a, kind="soft"),
}
DISTANCES = {
    "distance": sk.soft_matching_distance,
    "standardized": lambda *a: sk.soft_matching_distance(*a, standardize=True),
}
INDICES = MATCHES | DISTANCES


def moments(x, y, **options):
    return sk.Moments(x.shape[1], y.shape[1], **options).update(x, y)


@pytest.mark.parametrize("kind", MATCHES)
def test_match_against_reference(kind, case, device):
    name, x, y = case
    expected = reference.correlation_match(x, y, kind)
    ours = MATCHES[kind]
    x, y = x.to(device), y.to(device)
    for a in ((x, y), (x.double(), y.double()), (moments(x, y),)):
        assert ours(*a) == pytest.approx(expected, abs=1e-6)
    assert ours(y, x) == pytest.approx(expected, abs=1e-6)
    assert name == "identical" or 0 < expected < 0.9


@pytest.mark.parametrize("index", DISTANCES)
def test_distance_against_reference(index, case, device):
    name, x, y = case
    x, y = x[:, :48], y[:, :48]  # the reference's programme is slow
    expected = reference.soft_matching_distance(x, y, standardize=index == "standardized")
    size = 1.0 if index == "standardized" else max(t.double().std(0).max().item() for t in (x, y))
    x, y = x.to(device), y.to(device)
    # a root of rounding where nothing lies between the sides
    for a, floor in (((x, y), 1e-7), ((moments(x, y),), 2e-3)):
        allowed = floor if name == "identical" else 1e-6
        assert INDICES[index](*a) == pytest.approx(expected, abs=allowed * size)
    assert INDICES[index](y, x) == pytest.approx(INDICES[index](x, y), abs=1e-7 * size)


@pytest.mark.parametrize("kind", MATCHES)
def test_self_similarity_is_one(kind, case):
    _, x, _ = case
    assert MATCHES[kind](x, x) == pytest.approx(1, abs=1e-12)
    assert MATCHES[kind](moments(x, x, precision="float64")) == pytest.approx(1, abs=1e-12)
    for ours in DISTANCES.values():
        assert ours(x[:, :48], x[:, :48]) <= 1e-7 * x.double().std(0).max()


def test_hard_match_is_the_best_permutation(generator):
    x, y = torch.randn(30, 5, generator=generator), torch.randn(30, 4, generator=generator)
    r = torch.corrcoef(torch.cat([x, y], 1).T)[:5, 5:].double()
    every = [sum(float(r[j, k]) for k, j in enumerate(order)) / 4 for order in permutations(range(5), 4)]
    assert sk.correlation_match(x, y) == pytest.approx(max(every), abs=1e-6)
    signs = [sum(abs(float(r[j, k])) for k, j in enumerate(order)) / 4 for order in permutations(range(5), 4)]
    assert sk.correlation_match(x, y, absolute=True) == pytest.approx(max(signs), abs=1e-6)
    assert sk.correlation_match(x, -x, absolute=True) == pytest.approx(1, abs=1e-12)
    assert sk.correlation_match(x, -x, kind="soft") < 0.7


def test_soft_matching_of_equal_width_is_a_permutation(generator):
    x, y = torch.randn(60, 4, generator=generator).double(), torch.randn(60, 4, generator=generator).double()
    a, b = x - x.mean(0), y - y.mean(0)
    every = [(a[:, list(order)] - b).square().mean(0).mean() for order in permutations(range(4))]
    assert sk.soft_matching_distance(x, y) == pytest.approx(torch.stack(every).min().sqrt().item(), abs=1e-12)
    assert sk.soft_matching_distance(x, y) == pytest.approx(sk.soft_matching(moments(x, y)).distance, abs=1e-12)
    # each feature twice is the same distribution of features
    assert sk.soft_matching_distance(x, torch.cat([x, x + 5], 1)) < 1e-7


@pytest.mark.parametrize("index", INDICES)
def test_invariance(index, generator):
    ours = INDICES[index]
    x, y = (torch.randn(70, c, generator=generator, dtype=torch.float64) for c in (9, 6))
    y = y + x[:, :6]
    value = ours(x, y)
    order = torch.randperm(9, generator=generator)
    assert ours(x[:, order] + 1e3, y - 11) == pytest.approx(value, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    assert abs(ours(x @ turn, y) - value) > 1e-3
    if index != "distance":
        scale = torch.logspace(-4, 4, 9, dtype=torch.float64)
        assert ours(x * scale, 7 * y) == pytest.approx(value, abs=1e-9)
        dead = torch.cat([x, torch.full((70, 2), 0.1, dtype=torch.float64)], 1)
        assert ours(dead, y) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("index", DISTANCES)
def test_triangle_inequality(index, generator):
    for _ in range(5):
        a, b, c = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (4, 6, 3))
        b = b.clone()
        b[:, :4] += a
        ours = DISTANCES[index]
        assert ours(a, c) <= ours(a, b) + ours(b, c) + 1e-9


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for ours in INDICES.values():
        expected = torch.tensor([ours(m) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(ours(source), expected, rtol=0, atol=1e-12)
        assert ours(stats.reshape(3, 1)).shape == (3, 1) and ours(stats[0]).shape == ()
    assert sk.bootstrap(blocks, sk.correlation_match, resamples=20).value.shape == ()


def test_numpy_and_bfloat16(generator):
    x, y = torch.randn(50, 9, generator=generator), torch.randn(50, 7, generator=generator)
    half = x.bfloat16(), y.bfloat16()
    for ours in INDICES.values():
        assert ours(x.numpy(), y.numpy()) == ours(x, y)
        assert ours(*half) == pytest.approx(ours(half[0].double(), half[1].double()), abs=1e-12)


@pytest.mark.parametrize("index", INDICES)
def test_bad_input_is_an_error(index):
    ours = INDICES[index]
    x, constant = torch.randn(10, 3), torch.full((10, 2), 0.1)
    if index == "distance":  # features that do not vary are as far as the others spread
        expected = x.double().var(0, correction=0).mean().sqrt().item()
        assert ours(x, constant) == pytest.approx(expected, abs=1e-9)
    else:
        with pytest.raises(StatisticsError, match="y does not vary"):
            ours(x, constant)
    for error, match, a in [
        (StatisticsError, "at least 2 samples; got 1", (x[:1], x[:1])),
        (ShapeError, "same n", (x, x[:9])),
        (NotFiniteError, "x holds NaN", (x / 0, x)),
        (ValueError, "y is missing", (x,)),
        (ValueError, "hold both sides", (moments(x, x), x)),
    ]:
        with pytest.raises(error, match=match):
            ours(*a)
    with pytest.raises(ValueError, match="kind must be"):
        sk.correlation_match(x, x, kind="bipartite")
