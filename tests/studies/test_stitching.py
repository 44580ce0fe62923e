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
from stitchkern.studies.names import short_names
from stitchkern.studies.result import StitchingResult
from stitchkern.studies.stitching import stitch_layers


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


def labelled_by(end, batches):
    """The same inputs, with labels that the end gets right; no class is rare, so that what moves it costs accuracy."""
    inputs = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        logits = end(inputs)
        end.fc.weight.div_(logits.std())
        end.fc.bias.copy_((end.fc.bias - logits.mean(0)) / logits.std())
        labels = end(inputs).argmax(1)
    assert labels.bincount(minlength=3).min() >= 5
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


def test_ranks_and_procrustes_agree_with_their_definitions(batches):
    front, end = small(0), small(1, channels=7)
    batches = labelled_by(end, batches)
    result = stitch_layers(front, end, [("bn1", "bn1"), ("bn2", "bn2")], batches, batches, ranks=[3, 1, 3, 5])
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        x, y = (model[:2](inputs).movedim(1, -1).flatten(0, -2).double() for model in (front, end))
        xc, yc = x - x.mean(0), y - y.mean(0)
        fitted = xc @ torch.linalg.lstsq(xc, yc).solution
        u, s, v = torch.linalg.svd(fitted, full_matrices=False)
        a, _, b = torch.linalg.svd(xc.T @ yc, full_matrices=False)
        total = yc.square().sum()

        def accuracy(mapped):
            mapped = (mapped + y.mean(0)).float().view(60, 8, 8, 7).movedim(-1, 1)
            return (end[2:](mapped).argmax(1) == labels).double().mean().item()

        pair = result.pairs[0]
        assert [found.rank for found in pair.rank_curve] == [1, 3, 5, 6]
        assert [found.rank for found in result.pairs[1].rank_curve] == [1, 3, 5]  # five channels: 5 binds nothing
        assert result.ranks == [1, 3, 5] and len(pair.r2_by_rank) == 6 and len(result.pairs[1].r2_by_rank) == 5
        for k, r2 in enumerate(pair.r2_by_rank, start=1):
            mapped = u[:, :k] * s[:k] @ v[:k]
            assert r2 == pytest.approx((1 - (mapped - yc).square().sum() / total).item(), abs=1e-6)
            if found := pair.at_rank(k):
                assert found.r2 == pytest.approx(r2, abs=1e-6)
                assert found.residual == pytest.approx((mapped - yc).square().sum(1).mean().item(), rel=1e-4)
                assert found.accuracy == pytest.approx(accuracy(mapped), abs=1.5 / 60)
                assert found.relative_accuracy == pytest.approx(found.accuracy / result.end.accuracy)
        rotated = xc @ a @ b
    assert pair.procrustes.residual == pytest.approx((rotated - yc).square().sum(1).mean().item(), rel=1e-5)
    assert pair.procrustes.accuracy == pytest.approx(accuracy(rotated), abs=1.5 / 60)
    assert pair.procrustes.r2 < pair.r2 and pair.procrustes.relative_se >= 0
    assert pair.procrustes.distance > 0
    accuracies = [found.accuracy for found in (*pair.rank_curve, pair.procrustes)]
    assert len(set(accuracies)) >= 4, accuracies  # or it would not show if the wrong map were tested
    assert StitchingResult.from_json(result.to_json()) == result


def test_the_last_rank_is_the_map_itself(batches):
    for pair in stitch_layers(small(0), small(1), [("bn1", "bn1"), ("bn2", "bn2")], batches, batches).pairs:
        full = pair.rank_curve[-1]
        assert full.rank == min(pair.front_channels, pair.end_channels)
        for name in ("r2", "residual", "accuracy", "relative_accuracy", "relative_se"):
            assert getattr(full, name) == getattr(pair, name)


@pytest.mark.parametrize(
    "most, ranks",
    [(1, []), (2, [1]), (5, [1, 2, 4]), (8, [1, 2, 4]), (9, [4, 8]), (16, [4, 8]), (48, [4, 8, 16, 32])],
)
def test_automatic_ranks(batches, most, ranks):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, most), nn.Linear(most, 3)).eval()
    (pair,) = stitch_layers(model, model, [("1", "1")], batches, batches).pairs
    assert [found.rank for found in pair.rank_curve] == [*ranks, most]
    assert len(pair.r2_by_rank) == most


def test_what_is_not_asked_for_is_not_there(batches):
    (pair,) = stitch_layers(small(0), small(1), [("bn1", "bn1")], batches, batches, ranks=(), orthogonal=False).pairs
    assert pair.rank_curve == [] and pair.r2_by_rank == [] and pair.procrustes is None
    (pair,) = stitch_layers(small(0), small(1), [("bn1", "bn1")], batches, batches, ranks=()).pairs
    assert pair.rank_curve == [] and pair.procrustes is not None


def test_ranks_that_fit_no_layer_are_an_error_before_any_pass(batches):
    read = []

    class Watched(list):
        def __iter__(self):
            for batch in super().__iter__():
                read.append(len(batch[1]))
                yield batch

    pairs = [("bn1", "bn1"), ("bn2", "bn2")]
    with pytest.raises(ShapeError, match=r"ranks must be 6 at most.*; got 7"):
        stitch_layers(small(0), small(1), pairs, Watched(batches), batches, ranks=[2, 7])
    assert read == [25]  # one look at the shapes
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="ranks must be positive integers; got"):
            stitch_layers(small(0), small(1), pairs, batches, batches, ranks=[wrong])
    with pytest.raises(ValueError, match="gave no batch"):
        stitch_layers(small(0), small(1), pairs, [], batches, ranks=[2])


def test_a_model_with_itself_is_perfect(batches):
    model = small(0)
    result = stitch_layers(model, model, [("bn1", "bn1"), ("bn2", "bn2")], batches, batches)
    for pair in result.pairs:
        assert pair.relative_accuracy == 1 and pair.relative_se == 0
        assert pair.cka == pytest.approx(1) and pair.r2 == pytest.approx(1)
        assert pair.procrustes.relative_accuracy == 1 and pair.procrustes.r2 == pytest.approx(1)
        assert pair.procrustes.distance == pytest.approx(0, abs=1e-3)


def test_resize_where_spatial_sizes_differ(batches):
    front, end = small(0, size_after=4), small(1)
    with pytest.raises(ShapeError, match="resize"):
        stitch_layers(front, end, [("bn1", "bn1")], batches, batches)
    batches = labelled_by(end, batches)
    (pair,) = stitch_layers(front, end, [("bn1", "bn1")], batches, batches, resize="bilinear").pairs
    assert pair.rows == 60 * 64 and math.isfinite(pair.relative_accuracy)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        x, y = front[:2](inputs), end[:2](inputs)
        x = nn.functional.interpolate(x, (8, 8), mode="bilinear")
        rows = [side.movedim(1, -1).flatten(0, -2).double() for side in (x, y)]
        for found, fitted in (
            (pair.at_rank(2), sk.reduced_rank_path(sk.Moments(6, 6).update(*rows)).at(2)),
            (pair.procrustes, sk.procrustes(sk.Moments(6, 6).update(*rows))),
        ):
            right = end[2:](fitted(x)).argmax(1) == labels
            assert found.accuracy == pytest.approx(right.double().mean().item(), abs=1.5 / 60)
            unresized = end[2:](fitted(front[:2](inputs))).argmax(1) == labels
            assert abs(found.accuracy - unresized.double().mean().item()) > 1.5 / 60
            assert found.r2 == pytest.approx(fitted.r2, abs=1e-5)


def test_a_dead_layer_has_no_cka_but_a_report(batches):
    front = small(0)
    nn.init.zeros_(front.bn1.weight)
    with pytest.warns(UserWarning, match="layer 'bn1' of model_a does not vary"):
        result = stitch_layers(front, small(1), [("bn1", "bn1")], batches, batches)
    (pair,) = result.pairs
    assert math.isnan(result.similarity.values[0][0])
    assert math.isnan(pair.cka) and pair.rank == 0
    assert pair.r2_by_rank == [0] * 6 and {found.accuracy for found in pair.rank_curve} == {pair.accuracy}


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
        console.print(report.rank_table(result))
    page = report.write(result, tmp_path).read_text(encoding="utf-8")
    assert "undefined" in printed.get() and "nan" not in printed.get()
    assert "undefined" in page and not re.search(r"\bnan\b", page, re.I)
    assert StitchingResult.load(tmp_path / "result.json").headline == result.headline


def test_lazy_models_are_listed():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    assert [layer.parameters for layer in describe(lazy)] == [0, 0]
    assert [layer.parameters for layer in describe(lazy, torch.zeros(2, 1, 2, 2))] == [0, 15]
