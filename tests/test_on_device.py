"""Whole jobs with models and data on each device: what a CPU says in float64, every device says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.matching import along_path, behaviour, collect_moments, evaluate
from tests.matching.task.networks import PLAIN, batches, conv

LAYERS = ["bn1", "bn2", "fc"]
OPTIONS: dict[str, Any] = {**PLAIN, "epochs": 3}


def data(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [(inputs.to(device), labels.to(device)) for inputs, labels in batches()]


def same(found: Any, expected: Any, device: torch.device, tolerance: float = 1e-7) -> None:
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.device.type == device.type or found.ndim == 0 or not isinstance(found, Tensor)
    assert_close(found.detach().cpu().double(), expected.detach().double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def pair(device: torch.device) -> tuple[Any, Any]:
    return conv(0).to(device), conv(1).to(device)


def test_moments_and_every_map(pair, device) -> None:
    here = collect_moments(conv(0), conv(1), [("bn1", "bn1")], batches(), precision="float64")["bn1", "bn1"]
    there = collect_moments(*pair, [("bn1", "bn1")], data(device), precision="float64")["bn1", "bn1"]
    same(there.cov_xy, here.cov_xy, device)
    for solve in (
        sk.least_squares, sk.procrustes, sk.permutation, lambda m: sk.reduced_rank_path(m).at(2),
        lambda m: sk.lasso_path(m, n_alphas=5).at(r2=0.3),
    ):  # fmt: skip
        same(solve(there).weight, solve(here).weight, device, 1e-5)
    same(sk.cca(there).correlations, sk.cca(here).correlations, device)
    for index in (sk.cka, sk.procrustes_distance, sk.linear_r2):
        assert float(index(there)) == pytest.approx(float(index(here)), rel=1e-7)


def test_direct_matching_evaluation_and_behaviour(pair, device) -> None:
    def job(front: Any, end: Any, given: Any) -> tuple[Any, ...]:
        maps = sk.match_direct(front, end, LAYERS, given, precision="float64")
        stitches = {(name, name): maps[name].to_module(dtype=torch.float64).to(given[0][0].device) for name in LAYERS}
        told = behaviour(front, end, stitches, given)
        path = along_path(front, end, "bn1", [maps["bn1"], maps["bn1"]], given)
        return maps, evaluate(front, end, stitches, given), told, path

    maps, tested, told, path = job(*pair, data(device))
    expected = job(conv(0), conv(1), batches())
    for name in LAYERS:
        same(maps[name].weight, expected[0][name].weight, device)
        assert tested.relative[name, name] == pytest.approx(expected[1].relative[name, name])
        assert told[name, name].penalty == pytest.approx(expected[2][name, name].penalty, rel=1e-6, abs=1e-9)
    same(path.accuracy, expected[3].accuracy, torch.device("cpu"))


def test_task_loss_matching_of_every_kind(pair, device) -> None:
    configs = [
        {}, {"target": "hard", "l1": 0.01}, {"target": "latent"}, {"target": "hint"}, {"rank": 2},
        {"orthogonal": True}, {"mask": "permutation"}, {"cka": 0.3}, {"layer": ("conv1", "bn1")}, {"layer": "bn2"},
        {"init": "random_permutation", "target": "soft_mean"},
    ]  # fmt: skip

    def job(front: Any, end: Any, given: Any) -> list[Any]:
        return sk.match_tasks(front, end, "bn1", given, configs, validation=given, precision="float64", **OPTIONS)

    for found, expected in zip(job(*pair, data(device)), job(conv(0), conv(1), batches()), strict=True):
        for name, t in expected.stitch.state_dict().items():
            same(found.stitch.state_dict()[name], t, device, 1e-6)
        assert found.history.loss == pytest.approx(expected.history.loss, rel=1e-5, nan_ok=True)
        assert found.history.cka == pytest.approx(expected.history.cka, rel=1e-5)


def test_checkpoints_and_disk_caches(pair, device, tmp_path) -> None:
    whole = sk.match_task(*pair, "bn1", data(device), memory=0, folder=tmp_path, **OPTIONS)

    def stop(step: int, *_: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sk.match_task(
            *pair, "bn1", data(device), checkpoint=tmp_path / "run.pt", save_every=0, callback=stop, **OPTIONS
        )
    resumed = sk.match_task(*pair, "bn1", data(device), checkpoint=tmp_path / "run.pt", **OPTIONS)
    assert torch.equal(whole.stitch.weight, resumed.stitch.weight)


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_all_layer_pairs(estimator, pair, device) -> None:
    options = {"layers_a": LAYERS, "layers_b": LAYERS, "estimator": estimator}
    found = sk.compare(*pair, data(device), **options)
    expected = sk.compare(conv(0), conv(1), batches(), **options)
    assert_close(torch.as_tensor(found.values).cpu().double(), torch.as_tensor(expected.values).double())


def test_all_layer_pairs_of_stored_features(device) -> None:
    x = [torch.randn(50, c, generator=torch.Generator().manual_seed(c)) for c in (3, 7)]
    found = sk.cka_matrix([t.to(device) for t in x], kernel="rbf", bandwidth=2.0)
    same(torch.as_tensor(found).cpu(), sk.cka_matrix(x, kernel="rbf", bandwidth=2.0), torch.device("cpu"), 1e-6)
