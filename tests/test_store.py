"""Features of all samples, in memory and in files."""

from __future__ import annotations

import pytest
import torch

from stitchkern.errors import ShapeError
from stitchkern.store import FeatureStore

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def batches() -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [[torch.randn(n, 2 * (i + 1), generator=g).to(t)[:, ::2] for i, t in enumerate(TYPES)] for n in (5, 1, 4)]


@pytest.mark.parametrize("memory", [None, 10**6, 200, 0])  # all in memory, or from some batch on in files
def test_what_went_in_comes_out(memory, tmp_path) -> None:
    labels = [str(t) for t in TYPES]
    with FeatureStore(memory, tmp_path) as store:
        for features in batches():
            store.add(features, labels)
            for t in features:
                t.zero_()  # the store has its own copy
        assert store.rows == 10
        assert store.on_disk == (memory in (200, 0)) == bool(list(tmp_path.iterdir()))
        for found, wanted in zip(
            store.matrices(), (torch.cat(parts) for parts in zip(*batches(), strict=True)), strict=True
        ):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    assert not list(tmp_path.iterdir())


def test_features_must_stay_what_they_were(tmp_path) -> None:
    with FeatureStore() as store:
        store.add([torch.zeros(3, 2)], ["layer 'x'"])
        with pytest.raises(ShapeError, match=r"layer 'x' gives 3 features \(torch.float32\) after 2"):
            store.add([torch.zeros(3, 3)], ["layer 'x'"])
        with pytest.raises(ShapeError, match=r"layer 'x' gives 2 features \(torch.float64\) after 2 \(torch.float32\)"):
            store.add([torch.zeros(3, 2).double()], ["layer 'x'"])
