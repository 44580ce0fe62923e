"""Networks of each width are trained on the digits; pairs that are named are the widths themselves."""

from dataclasses import replace

import pytest

from stitchkern.studies import digits
from stitchkern.studies.catalogue import width


@pytest.fixture
def few_widths(monkeypatch):
    monkeypatch.setattr(width, "QUICK_WIDTHS", (0.25, 0.5))


def test_each_width_is_trained_once(study, table, asked, data, few_widths, monkeypatch):
    trained = []
    train = digits.train
    monkeypatch.setattr(
        digits, "train", lambda seed, *a, **k: trained.append((seed, k["width"])) or train(seed, *a, **k)
    )
    result = study("width")
    assert sorted(trained) == [(seed, w) for seed in (0, 1) for w in (0.25, 0.5)]
    assert result.made["Networks"].count("width=0.25") == 2
    rows = table(result, "widths")
    assert [row["Width"] for row in rows] == ["0.25", "0.5"]
    for row in rows:
        assert 0 < row["Accuracy of front and end"] <= 1 and row["bn3, task loss"] > 0


def test_named_networks_are_taken_as_they_are(study, table, networks, few_widths, monkeypatch):
    monkeypatch.setattr(digits, "train", None)
    rows = table(study("width", replace(networks, kind="")), "widths")
    assert len(rows) == 1 and rows[0]["Networks"].startswith("seed 0 → seed 1 (")


def test_channels_follow_the_width():
    assert digits.network(0, width=2).conv6.weight.shape == (96, 96, 3, 3)
    assert digits.network(0, width=1 / 16).conv1.weight.shape == (1, 1, 3, 3)
    with pytest.raises(ValueError, match="width must be"):
        digits.network(0, width=0.01)
