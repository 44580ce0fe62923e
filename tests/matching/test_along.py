"""Many maps of one pair in one pass give what each of them gives by itself."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.errors import ShapeError
from stitchkern.matching import along, along_path, collect_moments, evaluate
from tests.matching.task.networks import batches, conv, tokens


def maps_of(front, end, data, layer="bn1"):
    moments = collect_moments(front, end, [(layer, layer)], data)[layer, layer]
    return sk.lasso_path(moments, n_alphas=9), sk.reduced_rank_path(moments)


def balanced(end, data):
    """The end with outputs whose largest is not always the same, and data with its own answers as labels."""
    inputs = torch.cat([x for x, _ in data])
    with torch.no_grad():
        end.fc.bias -= end(inputs).mean(0)
        return end, [(x, end(x).argmax(1)) for x, _ in data]


@pytest.mark.parametrize("skip", [False, True], ids=["cut", "uncut"])
@pytest.mark.parametrize("at_once", [1, 50, 10_000])
@pytest.mark.filterwarnings("ignore:Conv is not cut")
def test_every_map_gets_what_evaluate_gives_it(monkeypatch, skip, at_once):
    monkeypatch.setattr(along, "_AT_ONCE", at_once)
    front, (end, data) = conv(0), balanced(conv(1, skip=skip), batches())
    lasso, ranks = maps_of(front, end, data)
    maps = [*(lasso[i] for i in range(9)), ranks.at(1).to_module(low_rank=True, dtype=torch.float64), ranks.at(2)]
    found = along_path(front, end, "bn1", maps, data)
    modules = [m if isinstance(m, torch.nn.Module) else m.to_module(dtype=torch.float64) for m in maps]
    one = evaluate(front, end, {("bn1", "bn1", i): m for i, m in enumerate(modules)}, data)
    assert found.count == one.count == 48 and found.end_accuracy == one.end_accuracy
    assert len(set(found.accuracy.tolist())) > 3  # or it would not show if maps changed places
    for name in ("accuracy", "relative", "relative_se"):
        expected = torch.tensor(list(getattr(one, name).values()), dtype=torch.float64)
        assert_close(getattr(found, name), expected)


def test_a_path_goes_in_as_it_is_and_models_are_left_alone():
    front, end, data = conv(0).train(), conv(1), batches()
    path, _ = maps_of(front, end, data)
    found = along_path(front, end, ("bn1", "bn1"), path, data)
    listed = along_path(front, end, "bn1", [path[i] for i in range(len(path))], data)
    assert_close(found.relative, listed.relative)
    assert front.training and not end.training and all(p.requires_grad for p in end.parameters())


def test_tokens_and_features():
    g = torch.Generator().manual_seed(0)
    front, end = tokens(0), tokens(1)
    data = [
        (torch.randn(20, 1, 5, 6, generator=g, dtype=torch.float64), torch.randint(3, (20,), generator=g))
        for _ in range(3)
    ]
    for layer in ("mix", "pooled"):
        path, _ = maps_of(front, end, data, layer)
        found = along_path(front, end, layer, path, data)
        one = evaluate(
            front, end, {(layer, layer, i): path[i].to_module(dtype=torch.float64) for i in range(len(path))}, data
        )
        assert_close(found.accuracy, torch.tensor(list(one.accuracy.values()), dtype=torch.float64))


def test_bad_input():
    front, end, data = conv(0), conv(1), batches()
    path, _ = maps_of(front, end, data)
    other, _ = maps_of(front, end, data, "bn2")
    with pytest.raises(ValueError, match="at least one map"):
        along_path(front, end, "bn1", [], data)
    with pytest.raises(ShapeError, match=r"one shape \(q, p\); got \(4, 4\) and \(5, 5\)"):
        along_path(front, end, "bn1", [path[0], other[0]], data)
    with pytest.raises(ShapeError, match="must take the 5 channels"):
        along_path(front, end, "bn2", path, data)
    with pytest.raises(ValueError, match="labels"):
        along_path(front, end, "bn1", path, [x for x, _ in data])
    with pytest.raises(ShapeError, match="labels must be 0 … 2"):
        along_path(front, end, "bn1", path, [(x, y + 1) for x, y in data])
