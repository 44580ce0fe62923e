"""Starts and structures: what is asked for is there from the start to the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.errors import ShapeError
from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.structure import trainee
from stitchkern.models import activations
from stitchkern.nn import LowRankStitch, Stitch
from tests.matching.task.networks import batches, conv


def features(p: int = 5, q: int = 4, dead: bool = False) -> tuple[Tensor, Tensor, sk.Statistics]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, p, generator=g, dtype=torch.float64) * torch.logspace(-3, 3, p, dtype=torch.float64) + 2
    if dead:
        x[:, 1], x[:, 2] = 1.0, x[:, 0]
    y = (x - 2) @ (torch.randn(p, q, generator=g, dtype=torch.float64) / torch.logspace(-3, 3, p)[:, None].double()) + 1
    y = y + torch.randn(80, q, generator=g, dtype=torch.float64)
    return x, y, sk.Statistics.of(sk.Moments(p, q, precision="float64").update(x, y))


def start(stats: sk.Statistics, **options: object) -> tuple[Tensor, Tensor]:
    made = trainee(TaskConfig(**options), stats, dtype=torch.float64, device=torch.device("cpu"))
    weight, bias = made.affine()
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("solver", [sk.least_squares, sk.procrustes, sk.permutation])
def test_starts_from_the_data_are_the_maps_of_the_solvers(solver) -> None:
    *_, stats = features()
    weight, bias = start(stats, init=solver.__name__)
    assert_close(weight, solver(stats).weight)
    assert_close(bias, solver(stats).bias)


@pytest.mark.parametrize("p, q", [(5, 4), (4, 5), (6, 6)])
def test_a_random_permutation_is_one(p: int, q: int) -> None:
    *_, stats = features(p, q)
    weight, bias = start(stats, init="random_permutation", seed=1)
    assert set(weight.unique().tolist()) <= {0.0, 1.0} and bool((bias == 0).all())
    assert weight.sum() == min(p, q) and weight.sum(0).max() == weight.sum(1).max() == 1
    assert not torch.equal(weight, start(stats, init="random_permutation", seed=2)[0])
    assert torch.equal(weight, start(stats, init="random_permutation", seed=1)[0])


def test_given_starts_are_taken_as_they_are() -> None:
    *_, stats = features()
    fit = sk.least_squares(stats)
    stitch, low = fit.to_module(dtype=torch.float64), fit.to_module(dtype=torch.float64, low_rank=True)
    for given in (fit, stitch, low, (fit.weight, fit.bias)):
        assert_close(start(stats, init=given)[0], fit.weight)
    weight, bias = start(stats, init=(fit.weight, None))
    assert torch.equal(weight, fit.weight) and bool((bias == 0).all())
    assert torch.equal(start(stats, init="random", seed=4)[0], start(stats, init="random", seed=4)[0])
    assert start(stats, init="random")[0].abs().max() <= 1 / 5**0.5


@pytest.mark.parametrize("dead", [False, True])
def test_least_squares_on_a_mask_is_least_squares_on_the_columns_that_it_leaves(dead: bool) -> None:
    x, y, stats = features(dead=dead)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(5)) < 0.6
    mask[0], mask[1] = False, True
    weight, bias = start(stats, mask=mask)
    assert bool((weight[~mask] == 0).all())
    for k in range(4):
        columns = mask[k].nonzero()[:, 0].numpy()
        design = np.hstack([x.numpy()[:, columns], np.ones((80, 1))])
        solution = np.linalg.lstsq(design, y[:, k].numpy(), rcond=None)[0]
        fitted = (x @ weight[k] + bias[k]).numpy()
        assert np.abs(fitted - design @ solution).max() < 1e-6 * y[:, k].abs().max().item()


@pytest.mark.parametrize("mask, solver, options", [
    ("correlation", sk.semi_matching, {}),
    ("absolute", sk.semi_matching, {"criterion": "absolute"}),
    ("permutation", sk.permutation, {"criterion": "correlation"}),
])  # fmt: skip
def test_masks_from_the_data_pick_what_the_matchings_pick(mask: str, solver, options: dict) -> None:
    *_, stats = features()
    matches = solver(stats, **options).matches
    weight, _ = start(stats, mask=mask, init="random")
    assert torch.equal(weight != 0, torch.nn.functional.one_hot(matches, 5).bool())


@pytest.mark.parametrize("init", ["least_squares", "random", "permutation"])
@pytest.mark.parametrize("layer", ["bn1", "bn2"])
def test_structures_survive_training(init: str, layer: str) -> None:
    front, end = conv(0), conv(1)
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(5)) < 0.5 if layer == "bn1" else "permutation"
    configs = [
        {"orthogonal": True}, {"rank": 2}, {"mask": mask}, {"mask": "correlation", "weight_decay": 0.1},
    ]  # fmt: skip
    found = sk.match_tasks(
        front, end, layer, batches(), [{"init": init, **config} for config in configs], epochs=3, learning_rate=0.05
    )
    rotation, low, masked, matched = (match.stitch for match in found)
    q = len(rotation.weight)
    assert type(rotation) is Stitch and [name for name, _ in rotation.named_parameters()] == ["weight", "bias"]
    assert_close(rotation.weight @ rotation.weight.T, torch.eye(q, dtype=torch.float64), rtol=0, atol=1e-10)
    assert isinstance(low, LowRankStitch) and torch.linalg.matrix_rank(low.up @ low.down) == 2
    if isinstance(mask, Tensor):
        assert bool((masked.weight[~mask] == 0).all())
        assert init == "permutation" or bool((masked.weight[mask] != 0).all())
    assert (matched.weight != 0).sum() == q or init == "permutation"
    assert all(match.history.distance[-1] > 0.01 for match in found)


def test_an_orthogonal_start_is_procrustes() -> None:
    for p, q in ((5, 4), (4, 5), (4, 4)):
        *_, stats = features(p, q)
        assert_close(start(stats, orthogonal=True)[0], sk.procrustes(stats).weight, rtol=0, atol=1e-9)


def test_a_start_of_lower_rank_than_the_bottleneck_can_still_learn() -> None:
    front, end = conv(0), conv(1)
    zero = (torch.zeros(4, 4), torch.ones(4))  # a bias, so that the ReLU that follows lets a gradient through
    found = sk.match_task(front, end, "bn1", batches(), init=zero, rank=3, epochs=5, learning_rate=0.05)
    assert found.history.loss[-1] < found.history.loss[0]
    assert torch.linalg.matrix_rank(found.stitch.up @ found.stitch.down) == 3


@pytest.mark.parametrize("options, message", [
    ({"init": "identity"}, r"init='identity' needs as many channels on both sides; got 5 and 4"),
    ({"init": (torch.eye(4), None)}, r"weight \(4, 5\) and bias \(4,\); got \(4, 4\) and \(4,\)"),
    ({"init": (torch.full((4, 5), torch.nan), None)}, "init holds NaN or Inf"),
    ({"rank": 5}, "rank must be 4 at most, the smaller channel count; got 5"),
    ({"mask": torch.ones(4, 5)}, r"mask must be \(4, 5\) torch.bool; got \(4, 5\) torch.float32"),
    ({"mask": torch.ones(5, 4, dtype=torch.bool)}, r"mask must be \(4, 5\) torch.bool; got \(5, 4\)"),
])  # fmt: skip
def test_what_does_not_fit_is_said(options: dict, message: str) -> None:
    *_, stats = features()
    with pytest.raises(ShapeError, match=message):
        start(stats, **options)


def test_activations_of_a_layer_feed_the_start() -> None:
    front, end = conv(0), conv(1)
    model = sk.match_task(front, end, ("relu1", "bn1"), batches(), epochs=0)
    x = torch.cat([activations(front, ["relu1"], i)["relu1"] for i, _ in batches()]).movedim(1, -1).flatten(0, -2)
    y = torch.cat([activations(end, ["bn1"], i)["bn1"] for i, _ in batches()]).movedim(1, -1).flatten(0, -2)
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    assert_close(model.stitch.weight, torch.linalg.lstsq(design, y).solution[:-1].T, rtol=1e-5, atol=1e-6)
