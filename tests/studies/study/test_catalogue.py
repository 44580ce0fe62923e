"""Every study of the catalogue runs on the digits, takes up its own work, and makes a whole page."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from stitchkern.errors import SpecError
from stitchkern.report import study
from stitchkern.studies.catalogue.sparsity import _at
from stitchkern.studies.study import Network, StudyResult, Work, run_study, study_names, study_title
from tests.page import check_alone


@pytest.mark.parametrize("name", study_names())
def test_a_study(name, digits_pair, options, tmp_path):
    networks, data = digits_pair
    result = run_study(name, networks, data, options, made={"Command": f"stitchkern study {name}"})
    assert result.study == name and result.headline.endswith(".") and result.tables and result.curves + result.matrices
    assert result.title == study_title(name) and name in result.made["Command"] and "seed 0" in result.made["Networks"]
    for parts in ([*result.curves, *result.matrices], result.tables):  # each is a file
        names = [part.name for part in parts]
        assert len(names) == len(set(names))
    page = study.write(result, tmp_path)
    found = check_alone(page.read_text(encoding="utf-8"))
    assert result.headline in found.text and "nan" not in found.text.lower().split()

    work = Work(options.work.folder)
    again = run_study(name, networks, data, replace(options, work=work))
    assert work.computed == 0 and work.taken_up > 0 and "taken up from an earlier run" in again.made["Time"]
    kept = StudyResult.load(tmp_path / "result.json")
    assert replace(again, made={}).to_json() == replace(kept, made={}).to_json()


def test_unknown_studies():
    with pytest.raises(SpecError, match="no study 'sparcity'; nearest: sparsity"):
        study_title("sparcity")


def rows(result, table):
    found = next(one for one in result.tables if one.name == table)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_both_stitches_are_what_they_are_called(digits_pair, options):
    """Least squares explains more, task loss keeps more of the accuracy."""
    networks, data = digits_pair
    result = run_study("direct-vs-task", networks, data, options)
    beyond = {(row["Layer"], row["Stitch"]): row for row in rows(result, "behaviour")}
    for layer in ("bn3", "bn5"):
        assert beyond[layer, "Least squares"]["R²"] > beyond[layer, "Task loss"]["R²"]
        assert beyond[layer, "Least squares"]["Stitching penalty"] > beyond[layer, "Task loss"]["Stitching penalty"]
    accuracy = {row["Layer"]: row for row in rows(result, "layers")}
    assert accuracy["bn3"]["Task loss"] > accuracy["bn3"]["Least squares"] + 0.05


def test_sparsity_and_rank_end_at_least_squares(digits_pair, options):
    networks, data = digits_pair
    options = replace(options, layers=["bn3"])
    direct = rows(run_study("direct-vs-task", networks, data, options), "layers")[0]["Least squares"]
    sparse = run_study("sparsity", networks, data, options)
    first = rows(sparse, "sparsity")[0]
    assert first["Share of zeros"] == 0 and first["Lasso path"] == first["Lasso path, debiased"]
    assert first["Lasso path"] == pytest.approx(direct, abs=0.01)
    by_rank = run_study("rank", networks, data, options)
    assert rows(by_rank, "direct")[0]["Full rank"] == pytest.approx(direct, abs=0.01)
    for line in next(one for one in sparse.curves if one.name == "r2").panels[0].lines[:2]:
        assert line.x == sorted(line.x) and line.x[0] < 0.01 and line.x[-1] == 1.0
        assert line.y == sorted(line.y, reverse=True) and line.y[-1] == pytest.approx(0, abs=1e-9)


def test_shares_between_and_beyond_the_points_of_a_curve():
    found = [{"task": [(0.002, 0.9, 1.0), (0.5, 0.5, 0.5)]}, {"task": [(0.0, 0.7, 1.0), (0.75, 0.1, 0.0)]}]
    values = _at(found, "task", [0.0, 0.25, 0.6])
    assert values[0] == pytest.approx(0.8) and math.isnan(values[2])  # the densest stands for no zeros
    assert values[1] == pytest.approx(((0.9 - 0.4 * 0.248 / 0.498) + 0.5) / 2)


def test_more_channels_keep_more(digits_pair, options):
    networks, data = digits_pair
    result = run_study("rank", networks, data, replace(options, layers=["bn5"]))
    (row,) = rows(result, "direct")
    assert row["Rank 4"] < row["Rank 8"] < row["Full rank"] + 0.02
    (trained,) = rows(result, "task")
    assert trained["Rank 4"] > row["Rank 4"]  # which is where it starts


def test_random_starts_end_below_least_squares_when_there_is_no_time(digits_pair, options):
    networks, data = digits_pair
    found = {row["Start"]: row for row in rows(run_study("initialisation", networks, data, options), "starts")}
    assert found["Random"]["Mean"] < found["Least squares"]["Mean"] - 0.2
    assert found["Random"]["Bad runs"] == 1 and found["Least squares"]["Bad runs"] == 0
    assert found["Random"]["Std. dev."] > 0


def test_one_channel_has_no_rank_to_choose(digits_pair, options):
    networks, data = digits_pair
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Flatten(), torch.nn.Linear(36, 10)).eval()
    alone = [Network(name, model, "", name) for name in "ab"]
    with pytest.raises(SpecError, match="layer '0' has one channel"):
        run_study("rank", replace(networks, all=alone, layers=["0"]), data, options)
