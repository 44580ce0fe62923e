"""The loss of every map along a path is that of its stitched network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stitchkern.matching import along_path
from stitchkern.models import StitchedModel
from stitchkern.nn import Stitch
from tests.matching.task.networks import batches, conv


@pytest.mark.parametrize("skip", [False, True])  # with a skip connection the end is not cut
@pytest.mark.filterwarnings("ignore:Conv is not cut")
def test_loss_is_the_cross_entropy_to_the_labels(skip):
    front, end = conv(0), conv(1, skip=skip)
    torch.manual_seed(0)
    maps = [Stitch(4, 4, dtype=torch.float64) for _ in range(300)]  # more than go through the end at once
    data = batches()
    found = along_path(front, end, "bn1", maps, data)
    for at in (0, 7, 299):
        model = StitchedModel(front, end, "bn1", "bn1", maps[at])
        with torch.no_grad():
            logits = torch.cat([model(inputs) for inputs, _ in data])
        labels = torch.cat([labels for _, labels in data])
        assert float(found.loss[at]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-12)
        assert float(found.accuracy[at]) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_outputs_that_are_not_finite_have_infinite_loss():
    maps = [Stitch.identity(4).double(), Stitch.from_affine(torch.full((4, 4), 1e308, dtype=torch.float64))]
    loss = along_path(conv(0), conv(0), "bn1", maps, batches()).loss
    assert math.isfinite(loss[0]) and loss[1] == math.inf
