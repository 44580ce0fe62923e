"""Units are computed once, and never taken up where anything that they depend on is another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stitchkern.studies import digits
from stitchkern.studies.study import Options, Work, fingerprint
from stitchkern.studies.study.networks import Network


def test_a_unit_is_computed_once(tmp_path):
    calls = []

    def compute(checkpoint):
        checkpoint.write_text("half way")
        calls.append(checkpoint)
        return {"weight": torch.eye(2, dtype=torch.float64), "points": [(0.5, 1.0)], "by rank": {4: 0.5}}

    done = []
    work = Work(tmp_path / "work", done.append)
    first = work.keep({"layer": "bn1"}, compute)
    assert not calls[0].exists()  # its own state is of no use any more
    again = Work(tmp_path / "work").keep({"layer": "bn1"}, compute)
    assert len(calls) == 1 and done == [1]
    assert torch.equal(again.pop("weight"), first.pop("weight")) and again == first
    work.keep({"layer": "bn2"}, compute)
    assert len(calls) == 2 and (work.computed, work.taken_up) == (2, 0)


def test_what_cannot_be_read_is_computed_anew(tmp_path):
    work = Work(tmp_path)
    work.keep({"a": 1}, lambda _: 1)
    (path,) = tmp_path.glob("*.pt")
    for damaged in (b"", b"nonsense", path.read_bytes()[:100]):
        path.write_bytes(damaged)
        assert Work(tmp_path).keep({"a": 1}, lambda _: 2) == 2
    torch.save({"key": "of another unit", "value": 3}, path)
    assert Work(tmp_path).keep({"a": 1}, lambda _: 4) == 4
    assert [file.suffix for file in tmp_path.iterdir()] == [".pt"]


def test_an_interruption_keeps_the_checkpoint_and_nothing_else(tmp_path):
    def stopped(checkpoint):
        checkpoint.write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Work(tmp_path).keep({"a": 1}, stopped)
    assert Work(tmp_path).keep({"a": 1}, lambda checkpoint: checkpoint.read_text()) == "half way"


def test_options_make_the_key(tmp_path):
    work = Work(tmp_path)
    models = [digits.network(seed) for seed in (0, 1)]
    networks = [Network("a network", model, "", fingerprint(model)) for model in models]
    options = Options(work, key={"study": "some"})

    def kept(options, network=networks[0], **key):
        before = work.computed
        options.keep(network, lambda _: 1, **key)
        return work.computed == before

    assert not kept(options, layer="bn1") and kept(options, layer="bn1")
    assert not kept(options, layer="bn2") and not kept(options, networks[1], layer="bn1")
    for other in ({"epochs": 3}, {"quick": True}, {"key": {"study": "another"}}):
        assert not kept(Options(work, **{"key": {"study": "some"}, **other}), layer="bn1")
    assert kept(Options(work, layers=["bn1"], key={"study": "some"}), layer="bn1")
    with pytest.raises(ValueError, match="'epochs' is part of every key"):
        options.keep(networks[0], lambda _: 1, epochs=3)


def test_fingerprints():
    model = digits.network(0)
    assert fingerprint(model) == fingerprint(digits.network(0)) != fingerprint(digits.network(1))
    before = fingerprint(model)
    with torch.no_grad():
        model.bn3.running_mean[0] += 1e-6
    assert fingerprint(model) != before
    assert fingerprint(nn.Sequential(nn.ReLU())) != fingerprint(nn.Sequential(nn.Tanh()))


def test_networks_are_trained_once(tmp_path):
    def train():
        trained.append(digits.network(1))
        with torch.no_grad():
            trained[0].bn1.running_mean.fill_(0.25)
        return trained[0]

    trained: list[nn.Module] = []
    found = [Work(tmp_path).train({"seed": 1}, lambda: digits.network(7), train) for _ in range(2)]
    assert len(trained) == 1 and not found[1].training
    assert fingerprint(found[0]) == fingerprint(found[1]) == fingerprint(trained[0])
