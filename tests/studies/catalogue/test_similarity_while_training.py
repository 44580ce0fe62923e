"""The similarity that is reported is that of the stitch, and falls while the loss falls."""

import pytest
import torch

from stitchkern.matching import Evaluation, collect_moments, evaluate, match_direct


def test_before_is_the_least_squares_map(study, table, networks, data):
    rows = table(study("similarity-while-training"), "layers")
    pair = networks.pairs[0]
    assert [row["Layer"] for row in rows] == networks.some_layers(2)
    for row in rows:
        layer = row["Layer"]
        fit = match_direct(*pair.models, [layer], data.fit)[layer]
        assert row["R², before"] == pytest.approx(fit.r2, abs=1e-6)
        moments = collect_moments(*pair.models, [(layer, layer)], data.fit)[layer, layer]
        cov_xx, cov_xy, cov_yy = moments.cov_xx, moments.cov_xy, moments.cov_yy
        w = fit.weight
        cka = (w @ cov_xy).norm() ** 2 / ((w @ cov_xx @ w.T).norm() * cov_yy.norm())
        assert row["CKA, before"] == pytest.approx(float(cka), abs=1e-6)
        found: Evaluation = evaluate(*pair.models, {(layer, layer): fit.to_module()}, data.test)
        assert row["Relative accuracy, before"] == pytest.approx(found.relative[layer, layer])


def test_cross_entropy_is_to_the_ends_probabilities_over_all_data(study, table, networks, data):
    row = table(study("similarity-while-training"), "layers")[0]
    front, end = networks.pairs[0].models
    layer = row["Layer"]
    stitched = match_direct(front, end, [layer], data.fit)[layer].to_module()
    at = list(dict(front.named_children())).index(layer) + 1
    with torch.no_grad():
        logits = end[at:](stitched(front[:at](data.fit.inputs)))
        wanted = -(end(data.fit.inputs).softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert row["Cross-entropy, before"] == pytest.approx(float(wanted), rel=1e-5)


def test_it_falls(study, table):
    row = table(study("similarity-while-training"), "layers")[0]
    for what in ("Cross-entropy", "CKA", "R²"):
        assert row[f"{what}, after"] < row[f"{what}, before"]


def test_a_course_that_ended_early_keeps_its_last_value():
    from stitchkern.studies.catalogue.similarity_while_training import _mean_course

    assert _mean_course([{"cka": [1.0, 0.5]}, {"cka": [1.0, 0.7, 0.9]}], "cka", 3) == pytest.approx([1.0, 0.6, 0.7])
