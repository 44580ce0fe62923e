"""Every case is trained as it says: on halves without a common sample, with SGD, without BatchNorm."""

from dataclasses import replace

import pytest
import torch

from stitchkern.errors import SpecError
from stitchkern.studies import digits
from stitchkern.studies.catalogue.training_set import CASES


def test_recipes(study, table, data, monkeypatch):
    seen = []
    train = digits.train
    monkeypatch.setattr(digits, "train", lambda seed, batches, **k: seen.append((seed, batches, k)) or train(
        seed, batches, **{**k, "epochs": 1}))  # fmt: skip
    result = study("training-set")
    rows = table(result, "cases")
    assert [row["Front → end"] for row in rows] == list(CASES)
    assert "optimizer=sgd" in result.made["Networks"] and "first half" in result.made["Networks"]
    halves = [batches.inputs for _, batches, _ in seen if len(batches.inputs) < len(data.fit.inputs)]
    assert len(halves) == 2 and sum(map(len, halves)) == len(data.fit.inputs)
    images = [{tuple(image.flatten().tolist()) for image in half} for half in halves]
    assert not images[0] & images[1]
    assert {k.get("optimizer", "adam") for *_, k in seen} == {"adam", "sgd"}
    assert [k.get("batch_norm", True) for *_, k in seen].count(False) == 1
    steps = {-(-len(batches.inputs) // 64) * k["epochs"] for _, batches, k in seen}
    assert len(steps) == 1  # halves are seen twice as often


def test_named_networks_are_the_cases(study, table, networks, monkeypatch):
    monkeypatch.setattr(digits, "train", None)
    rows = table(study("training-set", replace(networks, kind="")), "cases")
    assert [row["Front → end"] for row in rows] == ["seed 0 → seed 1"]
    with pytest.raises(SpecError, match="pairs of networks; 1"):
        study("training-set", replace(networks, kind="", all=networks.all[:1]))


def test_networks_without_batch_norm_and_with_sgd():
    plain = digits.network(0, batch_norm=False)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    assert plain.conv1.bias is not None and plain(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert [name for name, _ in plain.named_children()] == [name for name, _ in digits.network(0).named_children()]
    train, test = digits.digits()
    model = digits.train(0, train, epochs=6, optimizer="sgd")
    with torch.no_grad():
        assert (model(test.inputs).argmax(1) == test.labels).double().mean() > 0.9
    with pytest.raises(ValueError, match="optimizer must be one of adam, sgd; got 'lion'"):
        digits.train(0, train, optimizer="lion")
