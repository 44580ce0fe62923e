"""CCA, SVCCA and PWCCA against principal angles of the data itself."""

from __future__ import annotations

import warnings

import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError

INDICES = {
    "cca": (lambda *a: sk.cca(*a).mean, lambda x, y: reference.canonical_correlations(x, y).mean()),
    "svcca": (sk.svcca, reference.svcca),
    "pwcca": (sk.pwcca, reference.pwcca),
}


def moments(x, y, **options):
    m = sk.Moments(x.shape[1], y.shape[1], **options)
    for a in range(0, len(x), 150):
        m.update(x[a : a + 150], y[a : a + 150])
    return m


@pytest.mark.parametrize("index", INDICES)
def test_against_reference(index, case, device):
    name, x, y = case
    ours, theirs = INDICES[index]
    expected = theirs(x, y).item()
    x, y = x.to(device), y.to(device)
    assert ours(x, y) == pytest.approx(expected, abs=1e-6)
    if name != "low rank":  # whose rounding to float32 is data, once it is called float64
        assert ours(x.double(), y.double()) == pytest.approx(expected, abs=1e-6)
    assert ours(moments(x, y)) == pytest.approx(expected, abs=1e-6)
    if name == "plain":
        assert 0.3 < expected < 0.95
    if name == "n < p" and index != "svcca":
        assert ours(x, y) == pytest.approx(1, abs=1e-12)
    if index != "pwcca":
        assert ours(y, x) == pytest.approx(ours(x, y), abs=1e-10)


@pytest.mark.parametrize("index", INDICES)
def test_self_similarity_is_one(index, case):
    _, x, _ = case
    ours = INDICES[index][0]
    assert ours(x, x) == pytest.approx(1, abs=1e-12)
    assert ours(moments(x, x, precision="float64")) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("rows", [400, 30])
def test_invariance(index, rows):
    ours = INDICES[index][0]
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, c, generator=g, dtype=torch.float64) for c in (40, 6))
    y = y + x[:, :6]
    value = ours(x, y)
    assert ours(3e5 * x + 7e3, 1e-4 * y - 11) == pytest.approx(value, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    assert ours(x, y @ turn) == pytest.approx(value, abs=1e-9)
    if index == "cca":
        assert ours(x @ (torch.eye(40) + torch.ones(40, 40)).double(), y) == pytest.approx(value, abs=1e-9)


def test_all_correlations_and_their_summaries():
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randn(200, c, generator=g, dtype=torch.float64) for c in (7, 5))
    x[:, 3], y[:, 2] = 4, y[:, 0] - y[:, 1]
    found, rho = sk.cca(x, y), reference.canonical_correlations(x, y)
    assert (found.rank_x, found.rank_y) == (6, 4) and found.correlations.shape == (4,)
    torch.testing.assert_close(found.correlations, rho, rtol=0, atol=1e-12)
    squares = rho.square().sum().item()
    assert found.mean == pytest.approx(rho.mean().item()) and found.pillai == pytest.approx(squares)
    assert found.r2 == pytest.approx(squares / 4) and found.yanai == pytest.approx(squares / 24**0.5)
    again = sk.cca(x[:, [0, 1, 2, 4, 5, 6]], y[:, :2])  # what was dead or collinear changes nothing
    assert again.correlations[0] <= found.correlations[0] + 1e-12 and again.rank_x == 6


def test_hidden_correlations_are_found():
    """Data whose canonical correlations are known by construction."""
    g = torch.Generator().manual_seed(3)
    basis = torch.randn(300, 6, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(basis - basis.mean(0)).Q
    rho = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    y = rho * basis[:, :3] + (1 - rho**2).sqrt() * basis[:, 3:]
    mix = [torch.randn(3, 3, generator=g, dtype=torch.float64) for _ in "xy"]
    x, y = basis[:, :3] @ mix[0], y @ mix[1]
    torch.testing.assert_close(sk.cca(x, y).correlations, rho, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [600, 601, 602])
def test_small_directions_of_nearly_square_features_are_data(n):
    g = torch.Generator().manual_seed(6)
    x, y = torch.randn(n, 600, generator=g) + 3, torch.randn(n, 20, generator=g)
    found = sk.cca(x, y)
    assert (found.rank_x, found.rank_y) == (min(n - 1, 600), 20)
    expected = reference.canonical_correlations(x, y, tolerance=1e-9).mean().item()
    assert found.mean == pytest.approx(expected, abs=1e-8)
    assert n == 602 or found.mean == pytest.approx(1, abs=1e-8)


def test_pwcca_weights_x_and_svcca_counts_variance():
    g = torch.Generator().manual_seed(4)
    x, y = (torch.randn(500, 2, generator=g, dtype=torch.float64) for _ in "xy")
    y[:, 0] = x[:, 0]
    x[:, 0] *= 100  # nearly all of x is the direction that y shares
    assert sk.pwcca(x, y) > 0.95 > 0.8 > sk.pwcca(y, x)
    # σ = 10, 1: the first direction has 99.01 % of σ² but 91 % of σ
    q = torch.linalg.qr(x - x.mean(0)).Q
    x = q * torch.tensor([10.0, 1.0], dtype=torch.float64)
    first = sk.svcca(x, y)
    assert first == pytest.approx(sk.cca(q[:, :1], y).mean, abs=1e-12)
    assert sk.svcca(x, y, threshold=1) == pytest.approx(sk.cca(x, y).mean, abs=1e-12)


def test_batches_equal_one_by_one(blocks):
    stats = sk.Statistics.of(blocks)
    for ours, _ in INDICES.values():
        expected = torch.tensor([ours(m) for m in blocks], dtype=torch.float64)
        for source in (stats, blocks):
            torch.testing.assert_close(ours(source), expected, rtol=0, atol=1e-12)
        assert ours(stats.reshape(3, 1)).shape == (3, 1) and ours(stats[0]).shape == ()
    assert sk.cca(stats).correlations.shape == (3, 32)
    assert sk.bootstrap(blocks, sk.pwcca, resamples=20).value.shape == ()


def test_problems_of_different_rank_in_one_batch():
    g = torch.Generator().manual_seed(5)
    sources = []
    for k in (6, 2, 4):
        x = torch.randn(100, k, generator=g, dtype=torch.float64) @ torch.randn(k, 6, generator=g, dtype=torch.float64)
        sources.append(moments(x, x[:, :3] + torch.randn(100, 3, generator=g, dtype=torch.float64)))
    found = sk.cca(sources)
    assert found.rank_x.tolist() == [6, 2, 4] and found.correlations[1, 2] == 0
    assert found.mean.tolist() == pytest.approx([sk.cca(m).mean for m in sources], abs=1e-12)
    for ours in (sk.pwcca, sk.svcca):
        assert ours(sources).tolist() == pytest.approx([ours(m) for m in sources], abs=1e-10)


def test_other_sources():
    g = torch.Generator().manual_seed(7)
    x, y = (torch.randn(60, c, generator=g, dtype=torch.float64) for c in (5, 4))
    weight = torch.randint(0, 3, (60,), generator=g).double()
    repeated = [t.repeat_interleave(weight.long(), dim=0) for t in (x, y)]
    for ours, _ in INDICES.values():
        assert ours(sk.StreamingQR(5, 4).update(x, y)) == pytest.approx(ours(x, y), abs=1e-12)
        weighted = sk.Moments(5, 4).update(x, y, weight=weight)
        assert ours(weighted) == pytest.approx(ours(*repeated), abs=1e-12)
        whole = (10 * x).round().int(), (10 * y).round().numpy().astype("int16")
        locked = x.numpy().copy()
        locked.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ours(locked, y) == ours(x, y)
        assert ours(x.numpy()[::-1], y.numpy()[::-1]) == pytest.approx(ours(x, y), abs=1e-12)
        assert ours(*whole) == pytest.approx(ours(whole[0].double(), torch.as_tensor(whole[1]).double()), abs=1e-12)


def test_numpy_and_bfloat16(case):
    name, x, y = case
    for ours, _ in INDICES.values():
        assert ours(x.numpy(), y.numpy()) == ours(x, y)
    if name == "offset 1000":  # where bfloat16 is four apart
        return
    x, y = x.bfloat16(), y.bfloat16()
    fine = x.double(), y.double()
    rounded = {"tolerance": 2e-3}  # of low rank, σ = 4e-4 is what rounding to bfloat16 added
    assert sk.cca(x, y).mean == pytest.approx(
        reference.canonical_correlations(*fine, **rounded).mean().item(), abs=1e-6
    )
    assert sk.pwcca(x, y) == pytest.approx(reference.pwcca(*fine, **rounded).item(), abs=1e-6)
    assert sk.svcca(x, y) == pytest.approx(reference.svcca(*fine).item(), abs=1e-6)


@pytest.mark.parametrize("index", INDICES)
def test_undefined_is_an_error(index):
    ours = INDICES[index][0]
    x = torch.randn(10, 3)
    for error, match, call in [
        (StatisticsError, "y does not vary", lambda: ours(x, torch.full((10, 2), 0.1))),
        (StatisticsError, "x does not vary", lambda: ours(torch.zeros(10, 20), x)),
        (StatisticsError, "x does not vary", lambda: ours(moments(torch.ones(10, 2), x))),
        (StatisticsError, "at least 2 samples; got 1", lambda: ours(x[:1], x[:1])),
        (ShapeError, "same n", lambda: ours(x, x[:9])),
        (ShapeError, "same n", lambda: ours(x[0], x[0])),
        (NotFiniteError, "y holds NaN", lambda: ours(x, x / 0 - x / 0)),
        (ValueError, "y is missing", lambda: ours(x)),
        (ValueError, "hold both sides", lambda: ours(moments(x, x), x)),
        (StatisticsError, "one-sided", lambda: ours(sk.Moments(3).update(x))),
        (TypeError, "y must be a torch tensor", lambda: ours(x, [1.0])),
    ]:
        with pytest.raises(error, match=match):
            call()
    with pytest.raises(ValueError, match="threshold must be"):
        sk.svcca(x, x, threshold=0)
