"""Weights of 1 are least squares; every rule is tested as `match_direct` fits it."""

import pytest

from stitchkern.matching import evaluate, match_direct
from stitchkern.weighting import power


def test_relative_accuracy_of_each_rule(study, table, networks, data):
    rows = table(study("weighted"), "layers")
    assert [row["Layer"] for row in rows] == [*networks.layers, "mean"]
    pair = networks.pairs[0]
    for column, weighting in (("1", None), ("y⁴", power(4))):
        maps = match_direct(*pair.models, ["bn4"], data.fit, weighting=weighting)
        found = evaluate(*pair.models, {("bn4", "bn4"): maps["bn4"].to_module()}, data.test)
        assert rows[3][column] == pytest.approx(found.relative["bn4", "bn4"])
    for column in ("1", "|y|", "y⁴"):
        assert rows[-1][column] == pytest.approx(sum(row[column] for row in rows[:-1]) / len(networks.layers))
