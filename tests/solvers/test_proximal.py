"""Proximal steps solve the problem that they are the solution of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stitchkern.solvers.proximal import group_soft_threshold, soft_threshold


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_soft_threshold_meets_its_optimality_conditions(scale: float) -> None:
    w, t = randn(7, 5) * scale, randn(7, 5).abs().flip(0) * scale
    v = soft_threshold(w, t)
    inside = w.abs() <= t
    assert 0 < inside.sum() < w.numel()
    assert bool((v[inside] == 0).all())
    assert_close((v - w)[~inside] / scale, (-t * v.sign())[~inside] / scale)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])  # of the steps of one group, in powers of ten
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_groups_meet_theirs(dim: int, spread: float, scale: float) -> None:
    w = randn(40, 40)
    t = 10 ** (spread * (torch.rand(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5))
    w = w * torch.logspace(-1, 1, 40, dtype=torch.float64).unsqueeze(dim) * t / 6
    v = group_soft_threshold(w * scale, t * scale, dim) / scale
    size = v.square().sum(dim, keepdim=True).sqrt()
    dead = (size == 0).expand_as(v)
    assert 0 < dead.sum() < v.numel()
    assert bool(((w / t).square().sum(dim, keepdim=True) <= 1 + 1e-9).expand_as(v)[dead].all())
    residual = (v - w) + t * v / torch.where(size > 0, size, 1.0)
    reach = (w.abs() + t)[~dead]
    assert (residual[~dead].abs() / reach).max() < 1e-9


def test_one_step_for_a_group_is_the_known_formula() -> None:
    w = randn(6, 9)
    norm = w.square().sum(0).sqrt()
    assert_close(group_soft_threshold(w, 2.0), w * (1 - 2.0 / norm).clamp(min=0))


def test_no_step_changes_nothing_and_zeros_stay() -> None:
    w = randn(4, 3)
    w[:, 1] = 0
    for step in (soft_threshold, group_soft_threshold):
        assert_close(step(w, 0.0), w)
        assert bool((step(w, 0.3)[:, 1] == 0).all())
