"""Where a study's networks come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stitchkern.errors import SpecError
from stitchkern.studies import digits
from stitchkern.studies.data import fit_and_test
from stitchkern.studies.study import Networks, Work, digits_networks, kind_of, networks_from_specs, with_weights
from stitchkern.studies.study.networks import Network

SPEC = "stitchkern.studies.digits:network"


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=rng.random((20, 8, 8), "f4"), labels=rng.integers(0, 10, 20))
    return str(tmp_path / "data.npz")


def test_weights_in_natural_order(tmp_path):
    for seed in (10, 2, 1):
        torch.save(digits.network(seed).state_dict(), tmp_path / f"seed{seed}.pt")
    found = with_weights(SPEC, [f"{tmp_path}/seed*.pt"])
    assert [spec.rpartition("/")[2] for spec in found] == ["seed1.pt", "seed2.pt", "seed10.pt"]
    assert with_weights(SPEC, [f"{tmp_path}/seed2.pt"]) == [f"{SPEC}@{tmp_path}/seed2.pt"]
    with pytest.raises(SpecError, match="there is no such file"):
        with_weights(SPEC, [f"{tmp_path}/none*.pt"])
    with pytest.raises(SpecError, match="names its weights already"):
        with_weights(f"{SPEC}@a.pt", [f"{tmp_path}/seed2.pt"])


def test_named_networks(tmp_path, data):
    for seed in (0, 1):
        torch.save(digits.network(seed).state_dict(), tmp_path / f"seed{seed}.pt")
    specs = with_weights(SPEC, [f"{tmp_path}/seed*.pt"])
    networks = networks_from_specs(specs, fit_and_test(data))
    assert [network.name for network in networks.all] == ["seed0", "seed1"] and networks.layers == digits.LAYERS
    assert networks.kind == "" and [pair.name for pair in networks.pairs] == ["seed0 → seed1"]
    assert networks_from_specs(specs, fit_and_test(data), layers=["bn2"]).layers == ["bn2"]
    other = networks_from_specs(specs, fit_and_test(data, limit=10))
    assert other.data_key != networks.data_key  # other samples are held out
    with pytest.raises(SpecError, match="named once"):
        networks_from_specs([specs[0], specs[0]], fit_and_test(data))
    with pytest.raises(SpecError, match="at least one"):
        networks_from_specs([], fit_and_test(data))


def test_pairs_need_an_even_number():
    networks = Networks([Network(str(i), torch.nn.Identity(), "", "") for i in range(3)], ["a"], "", "")
    with pytest.raises(SpecError, match="takes pairs of networks; 3 are given"):
        _ = networks.pairs


def test_some_layers_are_spread_and_distinct():
    for count in range(1, 12):
        layers = [f"l{i}" for i in range(count)]
        networks = Networks([], layers, "", "")
        for some in range(1, count + 2):
            found = networks.some_layers(some)
            assert len(found) == len(set(found)) == min(some, count) and found == sorted(found, key=layers.index)
    assert Networks([], ["a", "b", "c", "d", "e", "f"], "", "").some_layers(2) == ["b", "e"]


def test_kinds():
    assert kind_of(digits.network()) == ""
    tiny = torch.nn.Sequential()
    tiny.add_module("conv8", torch.nn.Conv2d(64, 64, 1))
    tiny.add_module("fc", torch.nn.Linear(64, 10))
    assert kind_of(tiny) == "Tiny-10"


def test_digits_are_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr("stitchkern.studies.study.networks.QUICK_EPOCHS", 1)
    work = Work(tmp_path)
    stages = []
    first, data = digits_networks(work, quick=True, progress=lambda stage, done, total: stages.append(stage))
    assert work.computed == 2 and set(stages) == {"train seed 0", "train seed 1"}
    again, _ = digits_networks(work, quick=True)
    assert work.computed == 2 and [n.key for n in again.all] == [n.key for n in first.all]
    train, _ = digits.digits()
    expected = digits.train(1, train, epochs=1)
    inputs = next(iter(data.test))[0]
    assert torch.equal(expected(inputs), again.all[1].model(inputs))
