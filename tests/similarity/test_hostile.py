"""Features made to mislead the indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import stitchkern as sk
from stitchkern import reference
from stitchkern.similarity import distances


def test_rounded_features_of_low_rank_with_more_features_than_samples(generator):
    """Beyond the true rank a rotation leaves axes of pure rounding: they are no directions."""

    def low() -> torch.Tensor:
        return (torch.randn(40, 4, generator=generator) @ torch.randn(4, 256, generator=generator)).half()

    x, y = low(), low()
    found = sk.cca(x, y)
    assert (found.rank_x, found.rank_y) == (4, 4) and found.mean < 0.7
    assert sk.svcca(x, y, threshold=1) == pytest.approx(found.mean, abs=1e-5)
    expected = math.acos(float(found.correlations.sum()) / 4)
    assert sk.shape_distance(x, y, alpha=0) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_shape_distance_of_equal_shapes_in_bad_condition(alpha, generator):
    for seed in range(10):
        g = generator.manual_seed(seed)
        x = torch.randn(200, 16, dtype=torch.float64, generator=g) * torch.arange(1, 17) ** -3.0
        turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=g)).Q
        assert sk.shape_distance(x, x @ turn, alpha=alpha) < 1e-4


def test_nearly_collinear_features_keep_correlations_at_one(generator):
    a = torch.randn(200, 1, generator=generator).double()
    for near in (1e-3, 1e-5, 1e-6):
        x = torch.cat([a, a + near * torch.randn(200, 1, generator=generator).double()], 1)
        y = x @ torch.randn(2, 2, generator=generator).double()
        assert (sk.cca(x, y).correlations - 1).abs().max() < 1e-8
        assert sk.cca(x, x).mean == pytest.approx(1, abs=1e-12)


def test_neighbour_alignment_far_from_zero(generator):
    x, y = (torch.randn(60, 5, generator=generator).double() for _ in range(2))
    for offset, allowed in ((0, 1e-12), (1e3, 1e-9), (1e6, 1e-4)):
        far = x + offset
        assert sk.cknna(far, y) == pytest.approx(float(reference.cknna(far, y, 10)), abs=max(allowed, 1e-9)), offset


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_small_angles_are_still_angles(metric, generator):
    base = torch.randn(1, 50, generator=generator).double()
    x, y = base + 1e-6 * torch.randn(60, 50, generator=generator).double(), torch.randn(60, 5, generator=generator)
    assert -1 < sk.rsa(x, y, metric=metric) < 1
    with pytest.raises(sk.errors.StatisticsError, match=r"equally far apart|point the same way"):
        sk.rsa(base.expand(60, 50), y, metric=metric)


def test_kinds_of_arrays(generator, tmp_path):
    x = np.random.default_rng(0).standard_normal((30, 4))
    np.save(tmp_path / "x.npy", x)
    value = sk.cca(x, x[:, ::-1] ** 3).mean
    for same in (np.load(tmp_path / "x.npy", mmap_mode="r"), x.astype(">f8"), np.asfortranarray(x)):
        assert sk.cca(same, x[:, ::-1] ** 3).mean == pytest.approx(value, rel=1e-12)
    for wrong, match in ((np.ma.masked_array(x), "masked"), (x.astype(np.longdouble), "64 bits"), (x + 0j, "real")):
        with pytest.raises(TypeError, match=match):
            sk.cca(wrong, x)


def test_a_coarse_side_does_not_coarsen_the_other(generator):
    """bfloat16 far from zero leaves much rounding in y; the small directions of x in float64 are data all the same."""
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    x[:, 1] = x[:, 0] + 5e-3 * x[:, 1]
    y = (100 * (x[:, :1] - x[:, 1:2]) + torch.randn(400, 4, generator=generator, dtype=torch.float64) + 10).bfloat16()
    found = sk.cca(x, y)
    assert found.rank_x == 12
    expected = reference.canonical_correlations(x, y.double(), tolerance=1e-6).mean().item()
    assert found.mean == pytest.approx(expected, abs=1e-9)
    assert sk.svcca(x, y, threshold=1) == pytest.approx(found.mean, abs=1e-9)


def test_one_huge_outlier_moves_no_origin(generator):
    x, y = (torch.randn(300, 8, generator=generator).double() + 5 for _ in range(2))
    x[17] = 1e9
    rows = distances.about_median(x)
    others = torch.arange(300) != 17
    assert rows[others].abs().max() < 10
    found, direct = distances.squared(rows, rows)[others][:, others], reference.distances(x[others]).square()
    assert (found[0, 1:] / direct[0, 1:] - 1).abs().max() < 1e-12
    for k in (1, 10):
        expected = reference.mutual_knn(x, y, k, "euclidean")
        assert sk.mutual_knn(x, y, k=k, metric="euclidean") == pytest.approx(expected, abs=1e-12)
    assert (distances.about_median(torch.full((5, 2), 0.1, dtype=torch.float64)) == 0).all()


def test_covariances_of_no_data(generator):
    """Each entry is possible beside its variances, all of them together are not."""
    eye = torch.eye(2).double()
    for beyond in (1e-6, 1e-2, 0.3):
        # singular values 1 + beyond and 0.1, along directions where no correlation exceeds 1
        turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double() / 2**0.5
        cross = turn @ torch.diag(torch.tensor([1 + beyond, 0.1])).double()
        for scale in (eye, torch.diag(torch.tensor([1e3, 1e-3])).double()):
            stats = sk.Statistics.given(scale @ scale, scale @ cross, eye)
            whitened = [sk.cca, sk.pwcca]
            if scale is eye:  # not in correlation form, where a feature of 1e-12 of the variance keeps few digits
                whitened.append(lambda s: sk.svcca(s, threshold=1))
            for ours in whitened:
                with pytest.raises(sk.errors.StatisticsError, match="does not fit"):
                    ours(stats)
    near = sk.Statistics.given(eye, (1 + 4e-14) * eye, eye)  # what rounding explains
    assert sk.cca(near).mean == pytest.approx(1, abs=1e-12) and sk.procrustes_similarity(near) == pytest.approx(1)
    impossible = sk.Statistics.given(eye, torch.tensor([[0.9, 0.9], [-0.9, 0.9]]).double(), eye)
    for ours in (sk.bures, sk.procrustes_similarity, sk.svcca, sk.linear_r2):
        with pytest.raises(sk.errors.StatisticsError, match="indefinite"):
            ours(impossible)


@pytest.mark.parametrize("n", [12, 41, 60, 400])
def test_statistics_of_data_always_fit(n, generator):
    """In float32 moments, of sides that are one another's image, x is rounded apart from y."""
    for seed in range(5):
        g = generator.manual_seed(seed)
        x = torch.randn(n, 40, generator=g) * torch.logspace(0, -3, 40) + 30
        y = x @ torch.randn(40, 8, generator=g)
        for other in (x, y, 1e3 * x + 1):
            m = sk.Moments(40, other.shape[1]).update(x, other)
            for ours in (sk.pwcca, sk.svcca, sk.procrustes_similarity, sk.bures, sk.linear_r2):
                assert 0 <= ours(m) < 1.01
            assert sk.cca(m).mean < 1.01


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("sides", [2, 3])
def test_unbiased_cka_with_one_far_sample(size, sides, generator):
    """Which makes biased HSIC about size² times the unbiased one: float32 products would not do for covariances."""
    found = [torch.randn(60, p, generator=generator) for p in (4, 3, 2)[:sides]]
    found[1][:, 0] += found[0][:, 0]
    found[0][0] *= size
    wanted = sk.cka(found[0].double(), found[1].double(), unbiased=True, space="samples")
    assert sk.cka(*found[:2], unbiased=True) == pytest.approx(wanted, abs=1e-9)
    leaf = found[0].clone().requires_grad_()
    value = sk.cka_matrix([leaf, *found[1:]], unbiased=True, space="features")[0, 1]
    assert value.item() == pytest.approx(wanted, abs=1e-9)
    (gradient,) = torch.autograd.grad(value, leaf)
    exact = found[0].double().requires_grad_()
    (other,) = torch.autograd.grad(sk.cka(exact, found[1].double(), unbiased=True, space="samples"), exact)
    assert (gradient - other).abs().max() <= 1e-6 * other.abs().max()
