"""Permutation tests: the roads against calls of the index, p-values against their definition and their promise."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.similarity import unpermuted
from stitchkern.similarity.measure import Measure, two_sided
from stitchkern.similarity.significance import _exchangeable, _permuted
from tests.similarity.conftest import torture
from tests.similarity.test_torture import INDICES

KNOWN = {name: i for name, i in INDICES.items() if Measure.of(i.ours).name} | {"cca": INDICES["cca"]}
#: neither a function of products nor of pairs, or not yet
NO_ROAD = {
    "correlation_match",
    "cycle_knn",
    "eigenspace_overlap",
    "rank_similarity",
    "second_order_cosine",
    "soft_matching_distance",
}


def ours(name):
    return sk.cca if name == "cca" else KNOWN[name].ours


def related(n, p, q, seed=0, share=1.0):
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, c, generator=g, dtype=torch.float64) for c in (p, q))
    k = min(p, q)
    y[:, :k] += share * x[:, :k]
    return x, y


@pytest.mark.parametrize("case", ["plain", "n < p", "low rank", "offset 1000", "dead"])
@pytest.mark.parametrize("name", KNOWN)
def test_roads_give_what_the_index_gives(name, case, device):
    x, y = (t.double().to(device) for t in torture(case, samples=80))
    index = ours(name)
    found = sk.permutation_test(index, x, y, permutations=6)
    called = sk.permutation_test(lambda a, b: index(a, b), x, y, permutations=6)
    assert called.road == "index" and found.value == called.value
    one = name.startswith("rsm_norm") and name != "rsm_norm linear"
    assert (found.road == "index") == (one or name.split()[0] in NO_ROAD)
    allowed = 1e-9 * float(called.null.abs().max())
    if case == "n < p" and name in ("shape_distance alpha=0", "gulp"):
        allowed = 1e-6  # all distances are 0, a root of rounding
    torch.testing.assert_close(found.null, called.null, rtol=0, atol=allowed)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("gather", [1e-9, 1e9])
def test_pairs_and_products_agree(kernel, unbiased, gather, monkeypatch):
    """Which of the two is quicker depends on the sizes; both are the same index."""
    monkeypatch.setattr(unpermuted, "_GATHER", gather)
    x, y = related(70, 8, 90)
    for index in (sk.cka, sk.hsic):
        found = sk.permutation_test(partial(index, kernel=kernel, unbiased=unbiased), x, y, permutations=5)
        assert found.road == ("products" if kernel == "linear" and gather > 1 else "pairs")
        called = sk.permutation_test(
            lambda a, b, f=index: f(a, b, kernel=kernel, unbiased=unbiased), x, y, permutations=5
        )
        torch.testing.assert_close(found.null, called.null, rtol=1e-9, atol=1e-12)


def test_many_samples_take_the_index(monkeypatch):
    x, y = related(40, 3, 2)
    indices = [sk.rsa, "mutual_knn", partial(sk.cka, kernel="rbf"), sk.distance_correlation, sk.cknna]
    before = [sk.permutation_test(index, x, y, permutations=5) for index in indices]
    monkeypatch.setattr(unpermuted, "_MEMORY", 1000)
    for index, expected in zip(indices, before, strict=True):
        found = sk.permutation_test(index, x, y, permutations=5)
        assert found.road == "index" != expected.road
        torch.testing.assert_close(found.null, expected.null, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_samples_at_a_time_change_nothing(steps, monkeypatch):
    x, y = related(30, 5, 4)
    for index in (sk.cka, sk.rsa, sk.mutual_knn, sk.procrustes_distance):
        expected = sk.permutation_test(index, x, y, permutations=7)
        kind = type(unpermuted.road_of(Measure.of(index), x, y, torch.tensor(float(index(x, y))))[0])
        with monkeypatch.context() as m:
            m.setattr(kind, "step", steps)
            torch.testing.assert_close(sk.permutation_test(index, x, y, permutations=7).null, expected.null)


def test_ties_between_neighbours_take_the_index():
    """Duplicates: who counts as a neighbour depends on the order of the samples."""
    x, _ = related(20, 3, 3)
    twice = torch.cat([x, x])
    found = sk.permutation_test(partial(sk.mutual_knn, k=3), twice, twice, permutations=5)
    assert found.road == "neighbours"  # the nearest is the duplicate, and no tie lies at the edge
    for index in (partial(sk.mutual_knn, k=4), partial(sk.jaccard, k=4), partial(sk.cknna, k=4)):
        assert sk.permutation_test(index, twice, twice, permutations=2).road == "index"


def test_p_values_are_those_of_all_permutations():
    x, y = related(5, 2, 2, seed=3)
    for index in (sk.cka, sk.procrustes_distance, partial(sk.rsa, comparison="spearman")):
        found = sk.permutation_test(index, x, y, permutations=1000)
        every = [Measure.of(index)(x, y[list(order)]).item() for order in itertools.permutations(range(5))]
        sign = -1 if found.alternative == "less" else 1
        exact = np.mean([sign * v >= sign * found.value - 1e-9 for v in every])
        assert abs(found.p_value - exact) < 4 * math.sqrt(exact * (1 - exact) / 1000) + 1e-3
        assert found.null_mean == pytest.approx(np.mean(every), abs=5 * np.std(every) / 1000**0.5)
        assert found.null_std == pytest.approx(np.std(every), rel=0.1)


def test_p_value_and_its_alternatives():
    x, y = related(40, 3, 3)
    found = sk.permutation_test("cka", x, y, permutations=99)
    assert found.p_value == 0.01 and found.alternative == "greater" and found.value == sk.cka(x, y)
    assert found.z_score == pytest.approx((found.value - found.null.mean().item()) / found.null.std().item())
    less = sk.permutation_test("cka", x, y, permutations=99, alternative="less")
    assert less.p_value == 1 and torch.equal(less.null, found.null)
    assert sk.permutation_test("cka", x, y, permutations=99, alternative="two-sided").p_value == 0.02
    distance = sk.permutation_test("procrustes_distance", x, y, permutations=99)
    assert distance.alternative == "less" and distance.p_value == 0.01 and distance.z_score < -3
    x, y = related(40, 3, 3, share=0)
    assert sk.permutation_test("cka", x, y, permutations=99).p_value > 0.01


def test_the_better_direction_is_that_of_the_torture_table():
    for name in two_sided():
        same = {index.same for key, index in INDICES.items() if key.split()[0] == name}
        assert {Measure.of(name).best} == same and Measure.of(name).is_distance == (same == {0.0}), name


def test_level_is_kept():
    """Unrelated sides: p ≤ 0.1 one time in ten."""
    for index in (sk.cka, sk.mutual_knn):
        hits = 0
        for seed in range(150):
            x, y = related(24, 30, 3, seed=seed, share=0)
            hits += sk.permutation_test(index, x, y, permutations=39, seed=seed).p_value <= 0.1
        assert 4 <= hits <= 27  # of 150 at 0.1 four standard errors


def test_groups_move_together():
    """Positions of one image are alike: single positions cannot be exchanged, images can."""
    single, whole = 0, 0
    labels = torch.arange(12).repeat_interleave(8)
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(12, 3, generator=g).repeat_interleave(8, 0) for _ in "xy")
        x, y = (t + 0.3 * torch.randn(96, 3, generator=g) for t in (x, y))
        single += sk.permutation_test("cka", x, y, permutations=39).p_value <= 0.05
        whole += sk.permutation_test("cka", x, y, permutations=39, groups=labels).p_value <= 0.05
    assert single > 30 and whole <= 9
    # the same as an index of (n, positions, channels)
    found = sk.permutation_test("cka", x, y, permutations=5, groups=labels)
    tensors = x.reshape(12, 8, 3), y.reshape(12, 8, 3)
    again = sk.permutation_test(lambda a, b: sk.cka(a.flatten(0, 1), b.flatten(0, 1)), *tensors, permutations=5)
    torch.testing.assert_close(found.null, again.null, rtol=1e-6, atol=1e-9)


def test_permutations_of_groups():
    labels = np.array(["a", "b", "a", "c", "b", "c", "d", "e", "f"])
    units = _exchangeable(labels, 9)
    g, seen = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        order = _permuted(units, 9, g).tolist()
        assert sorted(order) == list(range(9))
        pairs = [tuple(order[i] for i in members) for members in ((0, 2), (1, 4), (3, 5))]
        assert sorted(pairs) == [(0, 2), (1, 4), (3, 5)] and sorted(order[6:]) == [6, 7, 8]
        seen.add(tuple(order))
    assert len(seen) == 36


def test_calibrated_scores():
    """Wide unrelated sides look alike; on the calibrated scale they do not, and equal sides still are."""
    scores = {}
    for width in (3, 300):
        x, y = related(40, width, width, seed=1, share=0)
        test = sk.permutation_test("cka", x, y, permutations=99)
        scores[width] = (test.value, test.calibrated())
        assert sk.permutation_test("cka", x, x, permutations=99).calibrated() == pytest.approx(1, abs=1e-12)
        assert sk.permutation_test("procrustes_distance", x, x, permutations=99).calibrated() == pytest.approx(
            1, abs=1e-6
        )
    assert scores[300][0] > 0.8 > 0.3 > scores[3][0] and scores[300][1] < 0.02
    x, y = related(40, 5, 5, share=0.6)
    for index in (sk.cka, sk.procrustes_distance):
        test = sk.permutation_test(index, x, y, permutations=99)
        sign = 1 if test.alternative == "greater" else -1
        for level in (0.05, 0.5):
            critical = (
                sign * sorted([sign * v for v in (*test.null.tolist(), test.value)])[round((1 - level) * 100) - 1]
            )
            expected = max((test.value - critical) / (test.best - critical), 0)
            assert test.calibrated(level=level) == pytest.approx(expected) and 0 < expected < 1
    own = sk.permutation_test(lambda a, b: 2 * sk.cka(a, b), x, y, permutations=99)
    plain = sk.permutation_test("cka", x, y, permutations=99)
    assert own.calibrated(best=2) == pytest.approx(plain.calibrated(), abs=1e-6)
    for match, call in [
        ("best must be given", own.calibrated),
        ("best must be given", sk.permutation_test("hsic", x, y, permutations=9).calibrated),
        ("better than chance", lambda: own.calibrated(best=-1)),
        ("level must be", lambda: own.calibrated(level=0, best=2)),
        ("two-sided", sk.permutation_test("cka", x, y, permutations=9, alternative="two-sided").calibrated),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


def test_several_values_share_their_permutations():
    x, y = related(40, 4, 3)
    widths = [0.5, 1.0, 2.0]
    found = sk.permutation_test(partial(sk.cka, kernel="rbf", bandwidth=widths), x, y, permutations=19)
    assert found.null.shape == (19, 3) and found.p_value.shape == (3,) and found.z_score.shape == (3,)
    for i, width in enumerate(widths):
        one = sk.permutation_test(partial(sk.cka, kernel="rbf", bandwidth=width), x, y, permutations=19)
        torch.testing.assert_close(one.null, found.null[:, i], rtol=1e-9, atol=1e-12)
        assert one.p_value == found.p_value[i] and one.road == "pairs"
        assert one.calibrated() == pytest.approx(found.calibrated()[i].item())
    largest = sk.permutation_test(
        lambda a, b: sk.cka(a, b, kernel="rbf", bandwidth=widths).max(), x, y, permutations=19
    )
    torch.testing.assert_close(largest.null, found.null.amax(1))
    assert "values=(3,)" in repr(found) and "null=0.8" in repr(largest)


def test_same_seed_same_test_and_progress():
    x, y = related(30, 3, 3)
    done = []
    for index in ("cka", "rsa", lambda a, b: sk.cka(a, b)):
        first = sk.permutation_test(index, x, y, permutations=40, seed=5, progress=lambda *a: done.append(a))
        assert done[-1] == (40, 40)
        assert torch.equal(first.null, sk.permutation_test(index, x, y, permutations=40, seed=5).null)
        assert not torch.equal(first.null, sk.permutation_test(index, x, y, permutations=40, seed=6).null)
    arrays = sk.permutation_test("cka", x.numpy(), y.numpy(), permutations=40, seed=5)
    assert torch.equal(arrays.null, sk.permutation_test("cka", x, y, permutations=40, seed=5).null)
    own = sk.permutation_test(lambda a, b: np.corrcoef(a[:, 0], b[:, 0])[0, 1], x.numpy(), y.numpy(), permutations=5)
    assert own.null.shape == (5,)


def test_an_index_that_no_permutation_changes():
    x, y = related(30, 3, 3)
    for index in (partial(sk.bures, of="covariances"), partial(sk.mutual_knn, k=29)):
        found = sk.permutation_test(index, x, y, permutations=19)
        assert found.p_value == 1
        with pytest.raises(StatisticsError, match="same for all permutations"):
            found.z_score  # noqa: B018
    x, y = related(20, 40, 40, share=0)  # all canonical correlations are 1, but for rounding
    assert sk.permutation_test("cca", x, y, permutations=19).p_value == 1


def test_bad_input_is_an_error():
    x, y = related(12, 3, 3)
    for error, match, call in [
        (ValueError, "index must be one of .*cka", lambda: sk.permutation_test("ckaa", x, y)),
        (ValueError, "index must be one of", lambda: sk.permutation_test("magnitude", x, y)),
        (TypeError, "index must be a name or a callable", lambda: sk.permutation_test(3, x, y)),
        (
            TypeError,
            "a number, or a tensor",
            lambda: sk.permutation_test(partial(sk.linear_r2, direction="both"), x, y),
        ),
        (StatisticsError, "not finite", lambda: sk.permutation_test(lambda a, b: math.nan, x, y)),
        (ValueError, "alternative must be", lambda: sk.permutation_test("cka", x, y, alternative="larger")),
        (ValueError, "permutations must be", lambda: sk.permutation_test("cka", x, y, permutations=0)),
        (ShapeError, "same samples; got 12 and 11", lambda: sk.permutation_test("cka", x, y[1:])),
        (ShapeError, "at least two samples", lambda: sk.permutation_test("cka", x[:1], y[:1])),
        (ShapeError, r"groups must be \(12,\)", lambda: sk.permutation_test("cka", x, y, groups=[1, 2])),
        (
            ValueError,
            "nothing to permute",
            lambda: sk.permutation_test("cka", x, y, groups=[0] * 5 + [1] * 7),
        ),
        (TypeError, "y must be a torch tensor", lambda: sk.permutation_test("cka", x, [1.0])),
        (NotFiniteError, "y holds NaN", lambda: sk.permutation_test("svcca", x, y / 0)),
    ]:
        with pytest.raises(error, match=match):
            call()
