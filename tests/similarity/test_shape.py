"""Procrustes distances, shape metrics and Bures against the data and its n × n matrices."""

from __future__ import annotations

import math

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

ALPHAS = (0.0, 0.3, 1.0)


def moments(x, y, **options):
    m = sk.Moments(x.shape[1], y.shape[1], **options)
    for a in range(0, len(x), 150):
        m.update(x[a : a + 150], y[a : a + 150])
    return m


def centred(t):
    return t.double() - t.double().mean(0)


INDICES = {
    "normalized": lambda *a: sk.procrustes_distance(*a),
    "angular": lambda *a: sk.procrustes_distance(*a, kind="angular"),
    "euclidean": lambda *a: sk.procrustes_distance(*a, kind="euclidean"),
    "similarity": sk.procrustes_similarity,
    "bures": sk.bures,
    "bures distance": sk.bures_distance,
    **{f"shape {a}": lambda *s, a=a: sk.shape_distance(*s, alpha=a) for a in ALPHAS},
}


@pytest.mark.parametrize("source", ["features", "moments"])
def test_procrustes_and_shapes_against_reference(case, source, device):
    name, x, y = case
    near = name == "identical"  # a root of rounding: √ε
    tolerance = 1e-6 if not near else 1e-7 if source == "features" else 2e-3
    # of moments a distance is as good as its square: 1e-7 / d
    a = (x.to(device), y.to(device)) if source == "features" else (moments(x.to(device), y.to(device)),)
    s = reference.shape_cosine(x, y).item()
    if not near:
        assert 0 < s < 0.98
    assert sk.procrustes_similarity(*a) == pytest.approx(s, abs=1e-6)
    s = min(s, 1.0)
    assert sk.procrustes_distance(*a) == pytest.approx(math.sqrt(2 - 2 * s), abs=tolerance)
    assert sk.procrustes_distance(*a, kind="angular") == pytest.approx(math.acos(s), abs=tolerance)
    for alpha in ALPHAS:
        expected = math.acos(min(reference.shape_cosine(x, y, alpha).item(), 1.0))
        whitens = name == "n < p" and alpha == 0  # whose distance is 0 as well
        assert sk.shape_distance(*a, alpha=alpha) == pytest.approx(
            expected, abs=max(tolerance, 2e-3 if source == "moments" else 1e-7) if whitens else tolerance
        )
    x, y = centred(x), centred(y)
    direct = (x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x.T @ y).sum()) / len(x)
    size = ((x.square().sum() + y.square().sum()) / len(x)).sqrt().item()
    expected = direct.clamp(min=0).sqrt().item()
    assert sk.procrustes_distance(*a, kind="euclidean") == pytest.approx(expected, abs=tolerance * size)
    assert sk.bures_distance(*a) == pytest.approx(expected, abs=tolerance * size)


def test_bures_is_the_fidelity_of_the_matrices(case):
    name, x, y = case
    k, l = (centred(t) @ centred(t).T / len(t) for t in (x, y))
    expected = (reference.fidelity(k, l) / (k.trace() * l.trace()).sqrt()).item()
    for a in ((x, y), (moments(x, y),)):
        assert sk.bures(*a) == pytest.approx(expected, abs=1e-6)
    square = (k.trace() + l.trace() - 2 * reference.fidelity(k, l)).item()
    scale = (k.trace() + l.trace()).item()
    assert sk.bures_distance(x, y) ** 2 == pytest.approx(square, abs=1e-6 * scale)

    x = x[:, : y.shape[1]]
    a, b = (centred(t).T @ centred(t) / len(t) for t in (x, y))
    expected = reference.fidelity(a, b)
    similarity = (expected / (a.trace() * b.trace()).sqrt()).item()
    for s in ((x, y), (moments(x, y),)):
        assert sk.bures(*s, of="covariances") == pytest.approx(similarity, abs=1e-6)
    square = (a.trace() + b.trace() - 2 * expected).item()
    found = sk.bures_distance(x, y, of="covariances") ** 2
    assert found == pytest.approx(square, abs=1e-6 * (a.trace() + b.trace()).item())
    # samples need not correspond
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert sk.bures(x, shuffled, of="covariances") == pytest.approx(similarity, abs=1e-9) or name == "identical"


def test_self_similarity_is_one(case):
    name, x, _ = case
    for a in ((x, x), (moments(x, x, precision="float64"),)):
        assert sk.procrustes_similarity(*a) == pytest.approx(1, abs=1e-12)
        assert sk.bures(*a) == pytest.approx(1, abs=1e-12)
        assert sk.bures(*a, of="covariances") == pytest.approx(1, abs=1e-12)
        for index in ("normalized", "angular", "shape 0.0", "shape 0.3", "shape 1.0"):
            graded = name == "outlier" and index in ("shape 0.0", "shape 0.3")  # 1 : 1e8 in variance is whitened
            assert INDICES[index](*a) < (1e-5 if graded else 2e-7), index


@pytest.mark.parametrize("rows", [300, 30])
def test_invariance_and_symmetry(rows):
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, c, generator=g, dtype=torch.float64) for c in (40, 6))
    y = y + x[:, :6]
    turn = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64)).Q
    for name, ours in INDICES.items():
        value = ours(x, y)
        assert ours(y, x) == pytest.approx(value, abs=1e-9), name
        assert ours(x @ turn + 1e3, y - 11) == pytest.approx(value, abs=1e-9), name
        padded = torch.cat([y, torch.full((rows, 3), 5.0)], dim=1)
        assert ours(x, padded) == pytest.approx(value, abs=1e-9), name
        if name not in ("euclidean", "bures distance"):
            assert ours(3e5 * x, 1e-4 * y) == pytest.approx(value, abs=1e-9), name
    assert sk.procrustes_distance(x, x @ turn) < 1e-7
    if rows > 40:
        skew = torch.randn(40, 40, generator=g, dtype=torch.float64)
        assert sk.shape_distance(x @ skew, y, alpha=0) == pytest.approx(sk.shape_distance(x, y, alpha=0), abs=1e-9)
        rho = sk.cca(x, y).correlations.sum().item()
        assert sk.shape_distance(x, y, alpha=0) == pytest.approx(math.acos(rho / 240**0.5), abs=1e-9)


@pytest.mark.parametrize("index", ["normalized", "angular", "euclidean", "shape 0.0", "shape 0.3"])
def test_triangle_inequality(index):
    ours = INDICES[index]
    g = torch.Generator().manual_seed(2)
    for _ in range(10):
        a, b, c = (torch.randn(20, k, generator=g, dtype=torch.float64) for k in (4, 4, 4))
        b = a + 0.3 * b
        assert ours(a, c) <= ours(a, b) + ours(b, c) + 1e-12


def test_known_values():
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    y = x * torch.tensor([1.0, 0])
    assert sk.procrustes_similarity(x, y) == pytest.approx(0.5**0.5)
    assert sk.procrustes_distance(x, y, kind="angular") == pytest.approx(math.pi / 4)
    assert sk.procrustes_distance(x, y, kind="euclidean") == pytest.approx(0.5**0.5)
    assert sk.procrustes_distance(x, y, kind="euclidean") == pytest.approx(sk.procrustes(moments(x, y)).distance)
    x, y = torch.diag(torch.tensor([4.0, 9.0])), torch.diag(torch.tensor([1.0, 16.0]))  # √: 2, 3 and 1, 4
    stats = sk.Statistics.given(x, torch.zeros(2, 2), y)
    assert sk.bures_distance(stats, of="covariances") == pytest.approx(2**0.5)
    assert sk.bures(stats, of="covariances") == pytest.approx(14 / (13 * 17) ** 0.5)


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for ours in INDICES.values():
        expected = torch.tensor([ours(m) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(ours(source), expected, rtol=0, atol=1e-12)
        assert ours(stats.reshape(3, 1)).shape == (3, 1) and ours(stats[0]).shape == ()
    square = [sk.Moments(8, 8).update(torch.randn(30, 8), torch.randn(30, 8)) for _ in range(3)]
    expected = [sk.bures(m, of="covariances") for m in square]
    assert sk.bures(square, of="covariances").tolist() == pytest.approx(expected, abs=1e-12)


def test_numpy_and_bfloat16():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(50, 9, generator=g), torch.randn(50, 7, generator=g)
    for ours in INDICES.values():
        assert ours(x.numpy(), y.numpy()) == ours(x, y)
        half = x.bfloat16(), y.bfloat16()
        assert ours(*half) == pytest.approx(ours(half[0].double(), half[1].double()), abs=1e-12)


def test_bad_input_is_an_error():
    x = torch.randn(10, 3)
    for name, ours in INDICES.items():
        constant = torch.full((10, 2), 0.1)
        if name in ("euclidean", "bures distance"):
            assert ours(x, constant) == pytest.approx(centred(x).square().sum(1).mean().sqrt().item())
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
    for match, call in [
        ("kind must be", lambda: sk.procrustes_distance(x, x, kind="squared")),
        ("alpha must be", lambda: sk.shape_distance(x, x, alpha=1.5)),
        ("of must be", lambda: sk.bures(x, x, of="kernels")),
        ("as many features; got 3, 2", lambda: sk.bures(x, x[:, :2], of="covariances")),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    eye = torch.eye(2)
    impossible = sk.Statistics.given(eye, torch.tensor([[0.9, 0.9], [-0.9, 0.9]]), eye)
    with pytest.raises(StatisticsError, match="together they are indefinite"):
        sk.procrustes_distance(impossible)
