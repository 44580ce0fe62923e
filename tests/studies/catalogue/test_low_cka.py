"""A penalty on CKA lowers it, from next to the identity."""

from dataclasses import replace

import pytest


def test_the_penalty_lowers_cka_and_leaves_the_function(study, table, asked):
    result = study("low-cka", options=replace(asked, epochs=30))
    rows = {row["c"]: row for row in table(result, "penalties")}
    assert rows[0.0]["CKA"] > 0.9 and rows[0.0]["Relative accuracy"] == pytest.approx(1, abs=0.03)
    assert rows[1.0]["CKA"] < rows[0.1]["CKA"] < rows[0.0]["CKA"]
    assert rows[1.0]["CKA"] < rows[0.0]["CKA"] - 0.1
    assert rows[1.0]["Relative accuracy"] > 0.9
    (course,) = [curves for curves in result.curves if curves.name == "course"]
    starts = {line.y[0] for line in course.panels[0].lines}
    assert len(starts) == 1 and 0.99 < starts.pop() < 1  # off the identity, where CKA has no gradient


def test_other_layers(study, table, asked):
    result = study("low-cka", options=replace(asked, layers=["bn6", "bn1"]))
    assert [row["Layer"] for row in table(result, "penalties")] == ["bn6"] * 3 + ["bn1"] * 3


def test_layers_without_positions(data):
    from stitchkern.studies import digits
    from stitchkern.studies.catalogue.low_cka import _channels

    assert _channels(digits.network(0), "fc", data) == 10
    assert _channels(digits.network(0), "bn3", data) == 32
