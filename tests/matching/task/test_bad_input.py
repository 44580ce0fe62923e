"""What cannot be done is said by name, with what was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stitchkern as sk
from stitchkern.errors import LayerError, NotFiniteError, ShapeError
from tests.matching.task.networks import batches, conv, tokens


def match(front=None, end=None, layer="bn1", data=None, **options):
    return sk.match_task(front or conv(0), end or conv(1), layer, batches() if data is None else data, **options)


@pytest.mark.parametrize("target", ["soft_front", "soft_mean", "soft_mean_logits"])
def test_other_classes(target: str) -> None:
    with pytest.raises(ShapeError, match=r"same classes .*; Conv gives 4, Conv gives 3"):
        match(conv(0, classes=4), target=target)
    assert match(conv(0, classes=4), epochs=1).history.step  # which the end's own labels do not mind


@pytest.mark.parametrize("layer, message", [
    ("bn9", "Conv has no layer 'bn9'; nearest: bn2, bn1"),
    (("bn1", "nothing"), "Conv has no layer 'nothing'"),
])  # fmt: skip
def test_unknown_layers(layer, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        match(layer=layer)


class After(nn.Module):
    """Its auxiliary head runs after all that the outputs are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head, self.late = conv(1), nn.Linear(3, 4).double(), nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        self.head(y)
        return y


@pytest.mark.parametrize("layer, message", [
    ("head", "outputs of After do not depend on what 'head' returns"),
    ("late", "'late' of After did not run"),
])  # fmt: skip
def test_layers_after_the_end_of_the_other_model(layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        match(end=After(), layer=("fc", layer))


def test_labels() -> None:
    inputs, labels = batches()[0]
    for wrong, message in [
        (labels + 1, r"labels must be 0 … 2, the classes of the end; got 3"),
        (labels - 1, r"labels must be 0 … 2, the classes of the end; got -1"),
        (labels[:-1], r"labels must be \(20,\) beside 20 inputs; got \(19,\)"),
        (labels.double(), "labels must be integers; got torch.float64"),
    ]:
        with pytest.raises(ShapeError, match=message):
            match(data=[(inputs, wrong)], target="hard")
    with pytest.raises(ValueError, match=r"target='hard' needs labels: batches must yield \(inputs, labels\)"):
        match(data=[inputs], target="hard")
    assert match(data=[inputs], epochs=1).history.loss[0] > 0  # soft targets need none
    with pytest.raises(ShapeError, match=r"labels must be \(20, 3\), several per sample beside 20 inputs; got \(20,\)"):
        match(target="hard", loss="binary")


def test_labels_beside_some_batches() -> None:
    first, second = batches((20, 20))
    for data in ([first, second[:1]], [first[:1], second]):
        with pytest.raises(ShapeError, match="labels must be beside all batches or none"):
            match(data=data)


def test_batches() -> None:
    for options in ({}, {"cache": False}):
        with pytest.raises(ValueError, match="gave no batch"):
            match(data=[], **options)
    with pytest.raises(ValueError, match="gave no batch"):
        match(validation=[])
    with pytest.raises(ValueError, match="pass a list or a DataLoader, not an iterator"):
        match(data=iter(batches()), cache=False)
    other = [*batches((5,)), *batches((5,), side=8)]
    with pytest.raises(
        ShapeError, match=r"the cache takes samples of one shape; layer 'bn1' is \(4, 6, 6\) after \(4, 4, 4\)"
    ):
        match(data=other)
    assert match(data=other, cache=False, epochs=1).history.step


def test_what_is_not_finite() -> None:
    inputs, labels = batches()[0]
    inputs[3] = torch.nan
    with pytest.raises(NotFiniteError, match=r"outputs hold NaN or Inf|front layer 'bn1' → end layer 'bn1'"):
        match(data=[(inputs, labels)])
    broken = conv(1)
    with torch.no_grad():
        broken.fc.bias.fill_(torch.inf)
    with pytest.raises(NotFiniteError, match="the end's own outputs hold NaN or Inf, so they are no target"):
        match(end=broken)


def test_layers_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="differ in spatial size, 4×4 and 2×2; pass resize"):
        match(layer=("bn1", "bn2"))
    with pytest.raises(ShapeError, match=r"must both be"):
        match(end=tokens(1), layer=("bn1", "embed"))
    with pytest.raises(ShapeError, match=r"outputs of the end must be logits \(n, classes\); got \(20, 5, 2, 2\)"):
        match(end=nn.Sequential(*list(conv(1).children())[:4]), layer=("bn1", "1"))


@pytest.mark.parametrize("options, message", [
    ({"target": "firm"}, "target must be one of soft, .*; got 'firm'"),
    ({"init": "zeros"}, "init must be one of .*; got 'zeros'"),
    ({"loss": "mse"}, "loss must be one of .*; got 'mse'"),
    ({"mask": "best"}, "mask must be one of .*; got 'best'"),
    ({"temperature": 0.0}, "temperature must be positive; got 0.0"),
    ({"target": "hard", "temperature": 2.0}, "temperature is for soft targets"),
    ({"target": "soft_mean_logits", "loss": "binary", "temperature": 2.0}, "temperature with loss='binary' is for"),
    ({"target": "hint", "loss": "kl"}, "loss='kl' is for soft targets; got target='hint'"),
    ({"target_layers": ["fc"]}, "target_layers are for target='latent'"),
    ({"rank": 0}, "rank must be a positive integer"),
    ({"rank": 2, "orthogonal": True}, "a stitch has one structure; got rank and orthogonal"),
    ({"rank": 2, "l1": 0.1}, "single weights, which rank does not leave free"),
    ({"l1": 0.1, "group_l1": 0.1}, "give l1 or group_l1, not both"),
    ({"l1": -1.0}, "l1 must be at least 0; got -1.0"),
    ({"cka": float("nan")}, "cka must be finite; got nan"),
    ({"epochs": -1}, "epochs must be an integer of at least 0; got -1"),
    ({"batch_size": 2.5}, "batch_size must be an integer of at least 1; got 2.5"),
    ({"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd; got 'lion'"),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\); got 1.0"),
    ({"learning_rate": float("inf")}, "learning_rate must be at least 0; got inf"),
    ({"amp": torch.float16}, "amp must be torch.bfloat16, or None; got torch.float16"),
    ({"batch_norm": "off"}, "batch_norm must be 'eval' or 'train'; got 'off'"),
    ({"resize": "cubic"}, "resize must be None or one of bilinear, nearest; got 'cubic'"),
    ({"target": "latent", "compile": True}, "target='latent' looks into the end while it runs"),
])  # fmt: skip
def test_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(**options)


def test_options_that_there_are_not() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        match(steps=3)
    with pytest.raises(TypeError, match=r"a stitch takes init, target, .*; got 'start'"):
        sk.match_tasks(conv(0), conv(1), "bn1", batches(), [{"start": "random"}])
    with pytest.raises(TypeError, match=r"init must be a name, an AffineMap, .*; got Linear"):
        match(init=nn.Linear(4, 4))
    with pytest.raises(ValueError, match="configs must hold at least one stitch"):
        sk.match_tasks(conv(0), conv(1), "bn1", batches(), [])
    with pytest.raises(ValueError, match="several labels per sample, which then is so for all"):
        sk.match_tasks(conv(0), conv(1), "bn1", batches(), [{}, {"loss": "binary"}])


@pytest.mark.parametrize("names, message", [
    (["conv1"], "target_layers must follow 'bn1' in Conv, run once and give a tensor; 'conv1' does not"),
    (["fc", "bn9"], "Conv has no layer 'bn9'"),
])  # fmt: skip
def test_latent_layers_must_follow(names: list[str], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        match(target="latent", target_layers=names)


@pytest.mark.parametrize("layer", [3, None, ("bn1",), ("bn1", "bn1", "bn1")])
def test_layers_that_are_none(layer) -> None:
    with pytest.raises(TypeError, match=r"layer must be a name or \(front layer, end layer\); got"):
        sk.match_task(conv(0), conv(1), layer, batches())


@pytest.mark.parametrize("cache", [False, True])
def test_batches_without_samples(cache: bool) -> None:
    inputs, labels = batches()[0]
    with pytest.raises(ShapeError, match="a batch holds no samples"):
        match(data=[(inputs, labels), (inputs[:0], labels[:0])], cache=cache)


def test_masks_and_decays_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"mask must be a name or a \(q, p\) bool tensor; got list"):
        match(mask=[[True]])
    for decay in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="decay must be at least 0; got"):
            match(decay=decay)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_trains_whatever_the_caller_is_in(mode) -> None:
    front, end, data = conv(0), conv(1), batches()
    wanted = match(front, end, data=data, epochs=1).stitch.weight
    with mode():
        found = match(front, end, data=data, epochs=1).stitch.weight
        assert not torch.is_grad_enabled()
    assert torch.equal(found, wanted)


def test_starts_from_a_sparse_stitch() -> None:
    width = match(epochs=0).stitch.p
    weight = torch.eye(width).double()
    found = match(init=sk.nn.SparseStitch.from_dense(weight), epochs=0).stitch
    assert torch.equal(found.weight.double(), weight) and not found.bias.any()
