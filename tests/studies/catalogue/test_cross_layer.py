"""Every layer into every layer: resampled where sizes differ, trained where the front's layer is no later."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stitchkern.errors import LayerError
from stitchkern.matching import match_direct


def test_all_pairs(study, table, networks, data):
    result = study("cross-layer")
    matrices = {matrix.name: torch.tensor(matrix.values) for matrix in result.matrices}
    layers = networks.some_layers(3)
    assert result.matrices[0].rows == result.matrices[0].columns == layers
    assert matrices["direct"].isfinite().all() and matrices["r2"].isfinite().all()
    assert torch.equal(matrices["task"].isfinite(), torch.ones(3, 3).triu().bool())
    pair = networks.pairs[0]
    own = match_direct(*pair.models, layers, data.fit)
    assert matrices["r2"].diagonal().tolist() == pytest.approx([own[layer].r2 for layer in layers])


def test_what_is_resampled_is_what_is_tested(study, networks, data, asked):
    layers = ["bn2", "bn4"]  # 8 × 8 and 4 × 4
    result = study("cross-layer", options=replace(asked, layers=layers))
    (direct,) = [matrix for matrix in result.matrices if matrix.name == "direct"]
    front, end = networks.pairs[0].models
    fit = match_direct(front, end, [("bn2", "bn4")], data.fit, resize="bilinear")["bn2", "bn4"].to_module()
    names = list(dict(front.named_children()))
    with torch.no_grad():
        x = F.interpolate(front[: names.index("bn2") + 1](data.test.inputs), size=(4, 4), mode="bilinear")
        right = end[names.index("bn4") + 1 :](fit(x)).argmax(1) == data.test.labels
        own = end(data.test.inputs).argmax(1) == data.test.labels
    assert direct.values[0][1] == pytest.approx(float(right.sum() / own.sum()))


def test_layers_that_cannot_be_stitched_are_left_out(study, asked):
    result = study("cross-layer", options=replace(asked, layers=["bn6", "fc"]))
    (direct,) = [matrix for matrix in result.matrices if matrix.name == "direct"]
    finite = [[value == value for value in row] for row in direct.values]
    assert finite == [[True, False], [False, True]]  # images and vectors
    with pytest.raises(LayerError, match="'nowhere'"):
        study("cross-layer", options=replace(asked, layers=["nowhere"]))
