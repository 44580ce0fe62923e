"""The main job as a function: its numbers against their definitions."""

import math
import re
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn

import stitchkern as sk
from stitchkern import report
from stitchkern.errors import LayerError, ShapeError, SpecError
from stitchkern.models import layer_names
from stitchkern.studies.layers import default_layers, describe
from stitchkern.studies.result import StitchingResult
from stitchkern.studies.stitching import short_names, stitch_layers


def small(seed, channels=6, size_after=8):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(1, channels, 3, padding=1, stride=8 // size_after))
        model.add_module("bn1", nn.BatchNorm2d(channels))
        model.add_module("relu1", nn.ReLU(inplace=True))
        model.add_module("conv2", nn.Conv2d(channels, 5, 3))
        model.add_module("bn2", nn.BatchNorm2d(5))
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("flatten", nn.Flatten())
        model.add_module("fc", nn.Linear(5, 3))
    return model.eval()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (60,), generator=generator)
    return list(zip(inputs.split(25), labels.split(25), strict=True))


def test_numbers_agree_with_their_definitions(batches):
    front, end = small(0), small(1)
    stages = []
    result = stitch_layers(
        front, end, [("bn1", "bn1"), ("bn1", "conv1")], batches, batches,
        names=("a", "b"), made={"Note": "x"}, progress=lambda *args: stages.append(args),
    )  # fmt: skip
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        x, y = (model[:2](inputs).movedim(1, -1).reshape(-1, model[1].num_features).double() for model in (front, end))
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
        mapped = x @ solution[:-1] + solution[-1]
        stitched = end[2:](mapped.float().view(60, 8, 8, 6).movedim(-1, 1)).argmax(1) == labels
        own = end(inputs).argmax(1) == labels
    pair = result.pairs[0]
    assert pair.rows == 60 * 64 and (result.fit_images, result.test_images) == (60, 60)
    assert pair.accuracy == pytest.approx(stitched.double().mean().item(), abs=1.5 / 60)
    assert result.end.accuracy == pytest.approx(own.double().mean().item())
    assert pair.relative_accuracy == pytest.approx(pair.accuracy / result.end.accuracy)
    assert pair.residual == pytest.approx((mapped - y).square().sum(1).mean().item(), rel=1e-5)
    assert pair.r2 == pytest.approx(1 - pair.residual / (y - y.mean(0)).square().sum(1).mean().item(), rel=1e-5)
    assert pair.cka == pytest.approx(sk.cka(x, y), rel=1e-5)
    assert pair.cka_unbiased == pytest.approx(sk.cka(x, y, unbiased=True), rel=1e-4)
    assert result.similarity.front_layers == ["bn1"] and result.similarity.end_layers == ["bn1", "conv1"]
    pooled = [model[:2](inputs).mean((2, 3)) for model in (front, end)]
    assert result.similarity.values[0][0] == pytest.approx(sk.cka(*(p.detach() for p in pooled)), rel=1e-5)
    assert [stage for stage, done, total in stages if done == total] == ["fit", "test", "similarity"]
    assert result.made["Note"] == "x" and "torch" in result.made["Versions"]
    assert StitchingResult.from_json(result.to_json()) == result


def test_a_model_with_itself_is_perfect(batches):
    model = small(0)
    result = stitch_layers(model, model, [("bn1", "bn1"), ("bn2", "bn2")], batches, batches)
    for pair in result.pairs:
        assert pair.relative_accuracy == 1 and pair.relative_se == 0
        assert pair.cka == pytest.approx(1) and pair.r2 == pytest.approx(1)


def test_resize_where_spatial_sizes_differ(batches):
    front, end = small(0, size_after=4), small(1)
    with pytest.raises(ShapeError, match="resize"):
        stitch_layers(front, end, [("bn1", "bn1")], batches, batches)
    result = stitch_layers(front, end, [("bn1", "bn1")], batches, batches, resize="bilinear")
    assert result.pairs[0].rows == 60 * 64 and math.isfinite(result.pairs[0].relative_accuracy)


def test_a_dead_layer_has_no_cka_but_a_report(batches):
    front = small(0)
    nn.init.zeros_(front.bn1.weight)
    result = stitch_layers(front, small(1), [("bn1", "bn1")], batches, batches)
    assert math.isnan(result.pairs[0].cka) and result.pairs[0].rank == 0


def test_models_are_left_as_they_were(batches):
    front, end = small(0).train(), small(1)
    stitch_layers(front, end, [("bn1", "bn1")], batches, batches)
    assert front.training and not end.training and all(p.requires_grad for p in end.parameters())
    assert front.bn1.num_batches_tracked == 0


def test_no_pairs_is_an_error(batches):
    with pytest.raises(ValueError, match="pairs"):
        stitch_layers(small(0), small(1), [], batches, batches)


def test_describe_lists_every_layer_with_its_shape():
    model = small(0)
    layers = describe(model, torch.zeros(2, 1, 8, 8))
    assert [layer.name for layer in layers] == layer_names(model)
    by_name = {layer.name: layer for layer in layers}
    assert by_name["bn2"].shape == (5, 6, 6) and by_name["bn2"].kind == "BatchNorm2d"
    assert by_name["fc"].parameters == 18 and by_name["fc"].shape == (3,)
    assert all(layer.shape is None for layer in describe(model))
    with pytest.raises(ShapeError, match="does not take inputs"):
        describe(model, torch.zeros(2, 4, 8, 8))


def test_default_layers():
    inputs = torch.zeros(2, 1, 8, 8)
    assert default_layers(small(0), small(1, channels=4), inputs) == ["bn1", "bn2"]
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 3))
    assert default_layers(plain, plain, inputs) == ["0", "3"]
    with pytest.raises(LayerError):
        default_layers(small(0), nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inputs)


@pytest.mark.parametrize(
    "front, end, expected",
    [
        ("nets.py:small@a/one.pt", "nets.py:small@a/two.pt", ("one", "two")),
        ("nets.py:small@a/best.pt", "nets.py:small@b/best.pt", ("a/best", "b/best")),
        ("nets.py:small", "nets.py:large@x.pt", ("small", "x")),
        ("nets.py:small", "nets.py:small", ("small (front)", "small (end)")),
    ],
)
def test_short_names(front, end, expected):
    assert short_names(front, end) == expected


def test_short_names_refuse_what_is_no_spec():
    with pytest.raises(SpecError):
        short_names("nonsense", "nets.py:small")


def test_containers_can_be_resized_into(batches):
    def nested(seed, size_after):
        model = small(seed, size_after=size_after)
        return nn.Sequential(OrderedDict(layer1=model[:3], rest=model[3:])).eval()

    result = stitch_layers(nested(0, 4), nested(1, 8), [("layer1", "layer1")], batches, batches, resize="nearest")
    assert result.pairs[0].rows == 60 * 64


def test_an_end_that_is_never_right_has_no_relative_accuracy_and_a_report(batches, tmp_path):
    front, end = small(0), small(1)
    with torch.no_grad():
        wrong = [(inputs, (end(inputs).argmax(1) + 1) % 3) for inputs, _ in batches]
    result = stitch_layers(front, end, [("bn1", "bn1"), ("bn2", "bn2")], wrong, wrong, names=("a", "b"))
    assert all(math.isnan(pair.relative_accuracy) for pair in result.pairs)
    assert result.headline == "b classifies none of the 60 test images correctly, so relative accuracy is undefined."
    console = Console(width=200)
    with console.capture() as printed:
        console.print(report.stitching_table(result))
    page = report.write(result, tmp_path).read_text(encoding="utf-8")
    assert "undefined" in printed.get() and "nan" not in printed.get()
    assert "undefined" in page and not re.search(r"\bnan\b", page, re.I)
    assert StitchingResult.load(tmp_path / "result.json").headline == result.headline


def test_lazy_models_are_listed():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    assert [layer.parameters for layer in describe(lazy)] == [0, 0]
    assert [layer.parameters for layer in describe(lazy, torch.zeros(2, 1, 2, 2))] == [0, 15]
