"""All layers of two models at once, against the definitions, pair by pair and in float64."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.comparison import matrices
from stitchkern.errors import LayerError, NotFiniteError, ShapeError, StatisticsError
from stitchkern.models import layer_shapes
from tests.comparison.conftest import cnn, expected, features, images, split

NETS = {
    "with BatchNorm": dict(norm=True, inplace=False),
    "without it": dict(norm=False, inplace=False),
    "in-place ReLU": dict(norm=True, inplace=True),
    "in-place ReLU, without BatchNorm": dict(norm=False, inplace=True),
}


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    assert found.dtype == torch.float64 and found.shape == wanted.shape
    assert (found - wanted).abs().max() < tolerance, (found - wanted).abs().max()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("how", ["flatten", "pool", "positions"])
def test_minibatch_cka_is_the_ratio_of_sums_of_unbiased_hsic(net, shift, how) -> None:
    a, b = cnn(0, **NETS[net], strided=False), cnn(1, **NETS[net], width=4, strided=False)
    batches = split(images(48, size=4, shift=shift), 16, 20, 12)
    layers = ["0", "1", "2", "4"]
    found = sk.compare(a, b, batches, layers_a=layers, layers_b=layers[1:], features=how)
    close(found.values, expected(a, b, layers, layers[1:], [x for x, _ in batches], how))
    assert (found.estimator, found.features, found.samples, found.blocks) == ("minibatch", how, 48, 3)
    assert (found.layers_a, found.layers_b) == (layers, layers[1:])


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("net", ["with BatchNorm", "in-place ReLU, without BatchNorm"])
@pytest.mark.parametrize("how", ["flatten", "pool", "positions"])
def test_exact_cka_is_that_of_all_samples(how, net, unbiased) -> None:
    a, b = cnn(0, **NETS[net], strided=False), cnn(1, **NETS[net], width=4, strided=False)
    batches = split(images(45, size=4, shift=30.0), 16, 20, 9)
    layers = ["0", "1", "2", "4"]
    found = sk.compare(
        a, b, batches, layers_a=layers, layers_b=layers[1:], features=how, estimator="exact", unbiased=unbiased
    )
    wanted = expected(a, b, layers, layers[1:], [x for x, _ in batches], how, exact=True, unbiased=unbiased)
    close(found.values, wanted)
    assert (found.estimator, found.samples, found.blocks) == ("exact", 45, 3)
    assert found.made["HSIC"] == ("unbiased" if unbiased else "biased")


@pytest.mark.parametrize("unbiased", [False, True])
def test_exact_cka_does_not_depend_on_the_way_to_it(unbiased, monkeypatch, tmp_path) -> None:
    a, b = cnn(0, norm=False), cnn(1, norm=False)
    batches = split(images(45, shift=30.0), 16, 20, 9)
    options = dict(estimator="exact", unbiased=unbiased, features="pool")
    of_moments = sk.compare(a, b, batches, **options).values
    monkeypatch.setattr("stitchkern.comparison.estimation.MOST_FEATURES", 0)
    in_memory = sk.compare(a, b, batches, **options).values
    on_disk = sk.compare(a, b, batches, memory=1000, store=tmp_path, **options).values
    close(of_moments, in_memory, 1e-6)
    assert torch.equal(in_memory, on_disk)
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize("estimator", ["minibatch", "exact"])
def test_rbf_cka(estimator) -> None:
    a, b = cnn(0), cnn(1)
    batches = split(images(60), 30, 30)
    found = sk.compare(a, b, batches, layers_a=["0", "4"], layers_b=["1"], kernel="rbf", estimator=estimator)
    wanted = expected(a, b, ["0", "4"], ["1"], [x for x, _ in batches], exact=estimator == "exact",
                      unbiased=estimator == "minibatch", kernel="rbf")  # fmt: skip
    close(found.values, wanted)
    assert found.made["Kernel"] == "rbf"


@pytest.mark.parametrize("options", [dict(), dict(estimator="exact"), dict(features="pool", estimator="exact"),
                                     dict(features="pool", estimator="exact", unbiased=True)])  # fmt: skip
@pytest.mark.parametrize("same", [True, False])
def test_a_model_is_like_itself(options, same) -> None:
    a = cnn(0, norm=False)
    found = sk.compare(a, a if same else copy.deepcopy(a), split(images(60, shift=5.0), 30, 30), **options)
    assert (found.values.diagonal() - 1).abs().max() < 1e-12
    assert found.standard_error.diagonal().abs().max() < 1e-12
    close(found.values, found.values.T, 1e-12)
    assert found.layers_a == found.layers_b


def test_all_layers_are_compared_by_default_in_the_order_they_run() -> None:
    a, b = cnn(0), nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 7), nn.ReLU(), nn.Linear(7, 5)).eval()
    data = split(images(20), 20)
    found = sk.compare(a, b, data)
    assert found.layers_a == list(layer_shapes(a, data[0][0])) == [str(i) for i in range(12)]
    assert found.layers_b == ["0", "1", "2", "3"]
    close(found.values, expected(a, b, found.layers_a, found.layers_b, [data[0][0]]))
    assert found.names == ("Sequential (a)", "Sequential (b)")
    assert sk.compare(a, b, data, names=("x", "y"), layers_b=["1"]).names == ("x", "y")


def test_layers_may_repeat_and_stand_in_any_order() -> None:
    a = cnn(0)
    data = split(images(20), 20)
    found = sk.compare(a, a, data, layers_a=["4", "0", "4"], layers_b=["0", "1"])
    assert found.layers_a == ["4", "0", "4"]
    close(found.values, expected(a, a, ["4", "0", "4"][:2], ["0", "1"], [data[0][0]])[[0, 1, 0]])


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(features="pool"), dict(estimator="exact")])
def test_each_model_runs_once_per_batch(same, options) -> None:
    a, b = cnn(0), cnn(1)
    ran: Counter[str] = Counter()
    for model, name in ((a, "a"), (b, "b")):
        model[0].register_forward_hook(lambda *_, name=name: ran.update([name]))
    sk.compare(a, a if same else b, split(images(30), 10, 10, 10), **options)
    assert ran == ({"a": 3} if same else {"a": 3, "b": 3})


def test_models_are_left_as_they_were_after_errors_too() -> None:
    a, b = cnn(0).train(), cnn(1)
    a[1].eval()
    b[0].weight.requires_grad_(False)
    before = copy.deepcopy(a.state_dict())
    batches = split(images(30), 15, 15)
    sk.compare(a, b, batches)
    batches[1][0][3, 0, 0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=r"layer '0' of model_a holds NaN or Inf \(batch 1\)"):
        sk.compare(a, b, batches)
    assert a.training and a[0].training and not a[1].training and not b.training
    assert not b[0].weight.requires_grad and a[0].weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in a.state_dict().items())
    assert not any(module._forward_hooks for model in (a, b) for module in model.modules())


@pytest.mark.parametrize("options", [dict(), dict(kernel="rbf"), dict(estimator="exact"), dict(features="pool"),
                                     dict(features="pool", estimator="exact"),
                                     dict(estimator="exact", kernel="laplace"), dict(features="pool", measure="svcca"),
                                     dict(features="pool", measure="rsa")])  # fmt: skip
@pytest.mark.parametrize("level", [0.0, 0.1])
@pytest.mark.parametrize("same", [True, False])
def test_a_layer_that_never_varies_is_nan_and_named(options, level, same) -> None:
    a, b = cnn(0), cnn(1)
    nn.init.zeros_(a[3].weight)
    nn.init.constant_(a[3].bias, level)
    layers = ["0", "1", "3"]
    with pytest.warns(UserWarning, match=r"layer '3' of (model_a|the model) does not vary") as caught:
        found = sk.compare(
            a, a if same else b, split(images(40), 20, 20), layers_a=layers, layers_b=["3", "0"], **options
        )
    assert len(caught) == 1 and caught[0].filename == __file__
    dead = torch.zeros(3, 2, dtype=torch.bool)
    dead[2] = True
    dead[:, 0] |= same
    assert torch.equal(found.values.isnan(), dead)
    assert found.standard_error[dead].isnan().all()


def test_nothing_varies() -> None:
    a = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(a[0].weight)
    data = [torch.randn(9, 3)]
    for options in (dict(), dict(estimator="exact"), dict(measure="cca"), dict(measure="rsa")):
        for other in (a, copy.deepcopy(a), nn.Sequential(nn.Linear(3, 2))):
            with pytest.warns(UserWarning, match="does not vary"):
                assert sk.compare(a, other, data, **options).values.isnan().all()


@pytest.mark.parametrize("measure", ["svcca", "pwcca", "cca", "procrustes_distance", "procrustes_similarity",
                                     "shape_distance", "bures", "bures_distance", "linear_r2", "rsa", "mutual_knn",
                                     "hsic", "cknna", "jaccard", "correlation_match", "eigenspace_overlap", "gulp",
                                     "soft_matching_distance", "rsm_norm", "distance_correlation", "rank_similarity",
                                     "second_order_cosine", "cycle_knn"])  # fmt: skip
@pytest.mark.parametrize("how", ["pool", "flatten"])
def test_other_indices_by_name(measure, how) -> None:
    a, b = cnn(0).double(), cnn(1, width=4).double()  # what is rounding and what is data is clear
    inputs = images(400, size=4)[0].double()
    layers_a, layers_b = ["0", "4", "11"], ["2", "11"]
    found = sk.compare(
        a,
        b,
        split((inputs, inputs), 150, 150, 100),
        layers_a=layers_a,
        layers_b=layers_b,
        measure=measure,
        features=how,
    )
    index = getattr(sk, measure)
    for i, x in enumerate(features(a, layers_a, inputs, how)):
        for j, y in enumerate(features(b, layers_b, inputs, how)):
            value = index(x, y)
            value = value.mean if measure == "cca" else value
            assert_close(found.values[i, j].item(), float(value), rtol=1e-8, atol=1e-8)
    assert (found.measure, found.estimator, found.samples) == (measure, "exact", 400)


@pytest.mark.parametrize("measure", ["cca", "pwcca", "svcca", "linear_r2", "shape_distance", "eigenspace_overlap"])
def test_a_constant_feature_in_several_blocks_is_no_direction(measure) -> None:
    a, b = cnn(0).double(), cnn(1).double()
    for model in (a, b):
        with torch.no_grad():
            model[1].weight[2], model[1].bias[2] = 0.0, 0.3
    inputs = images(200, size=4)[0].double()
    found = sk.compare(a, b, list(inputs.split(30)), layers_a=["1"], layers_b=["1"], measure=measure, features="pool")
    (x,), (y,) = features(a, ["1"], inputs, "pool"), features(b, ["1"], inputs, "pool")
    assert (x[:, 2] == 0.3).all()
    value = getattr(sk, measure)(x, y)
    assert found.values.item() == pytest.approx(float(getattr(value, "mean", value)), rel=1e-8)
    assert 0 < found.standard_error.item() < 0.5


def test_other_indices_of_one_model_with_itself() -> None:
    a = cnn(0)
    inputs = images(60, size=4)[0]
    for measure in ("pwcca", "rsa", "procrustes_distance"):
        found = sk.compare(
            a, a, [inputs], layers_a=["0", "4"], layers_b=["4", "0", "2"], measure=measure, features="pool"
        )
        x = dict(zip(["0", "2", "4"], features(a, ["0", "2", "4"], inputs, "pool"), strict=True))
        for i, name in enumerate(found.layers_a):
            for j, other in enumerate(found.layers_b):
                assert found.values[i, j].item() == pytest.approx(getattr(sk, measure)(x[name], x[other]), abs=1e-6)


def test_measures_of_the_callers_own_and_their_options() -> None:
    a, b = cnn(0), cnn(1)
    inputs = images(40)[0]

    def first(x: Tensor, y: Tensor, power: int = 1) -> Tensor:
        assert x.shape == (40, 6) and y.shape == (40, 5)
        return (x[0, 0] * y[1, 1]) ** power

    (x,), (y,) = features(a, ["0"], inputs, "pool"), features(b, ["11"], inputs, "pool")
    options = dict(layers_a=["0"], layers_b=["11"], features="pool")
    data = [inputs[:30], inputs[30:]]
    found = sk.compare(a, b, data, measure=first, power=2, **options)
    assert found.measure == "first" and found.made["power"] == "2"
    assert_close(found.values.item(), first(x, y, 2).item())
    assert sk.compare(a, b, data, measure=sk.svcca, threshold=0.7, **options).values.item() == pytest.approx(
        sk.svcca(x, y, threshold=0.7), abs=1e-6
    )
    assert sk.compare(a, b, data, measure=sk.cka, **options).measure == "cka"
    assert sk.compare(a, b, data, measure="mutual_knn", k=3, **options).values.item() == sk.mutual_knn(x, y, k=3)
    assert sk.compare(
        a, b, data, measure="hsic", kernel="rbf", bandwidth=2.0, unbiased=True, **options
    ).values.item() == (pytest.approx(sk.hsic(x, y, kernel="rbf", bandwidth=2.0, unbiased=True), rel=1e-6))
    with pytest.raises(TypeError, match=r"measure 'first': .*unexpected keyword argument 'k'"):
        sk.compare(a, b, data, measure=first, k=1)
    with pytest.raises(TypeError, match="must give one number"):
        sk.compare(a, b, data, measure=lambda x, y: x, **options)


def test_an_undefined_pair_is_nan_and_named() -> None:
    a = cnn(0)

    def moody(x: Tensor, y: Tensor) -> float:
        if x.shape != y.shape:
            raise StatisticsError("is for sides of one size")
        return 1.0

    with pytest.warns(
        UserWarning, match="layer '11' of the model with layer '0' of the model is for sides of one size"
    ):
        found = sk.compare(a, a, [images(10)[0]], layers_a=["0", "11"], layers_b=["0"], features="pool", measure=moody)
    assert found.values[0, 0] == 1 and found.values[1, 0].isnan()


def test_layers_that_an_index_cannot_take_are_named() -> None:
    a = cnn(0)
    with pytest.raises(ShapeError, match=r"layer '0' of the model with layer '11' of the model: covariances can only"):
        sk.compare(
            a,
            a,
            [images(10)[0]],
            layers_a=["0"],
            layers_b=["2", "11"],
            features="pool",
            measure="bures",
            of="covariances",
        )


def test_what_a_measure_cannot_do_is_said() -> None:
    a, data = cnn(0), [images(10)[0]]
    for error, why, options in (
        (ValueError, "'svcca' has no minibatch estimator", dict(measure="svcca", estimator="minibatch")),
        (ValueError, "measure must be one of .*svcca.*; got 'ckaa'", dict(measure="ckaa")),
        (TypeError, "measure must be the name of an index or a function", dict(measure=3)),
        (TypeError, "measure 'svcca': .*'k'", dict(measure="svcca", k=3)),
        (TypeError, "measure 'cka' takes kernel, bandwidth and unbiased; got threshold", dict(threshold=0.5)),
        (ValueError, "the minibatch estimator is unbiased", dict(unbiased=False)),
        (ValueError, "the linear kernel has none", dict(bandwidth=1.0)),
        (TypeError, "bandwidth must be one number", dict(kernel="rbf", bandwidth=[1.0, 2.0])),
        (ValueError, "kernel must be one of", dict(kernel="cosine")),
        (ValueError, "features must be one of flatten, positions, pool; got 'mean'", dict(features="mean")),
        (ValueError, "estimator must be one of", dict(estimator="batch")),
        (ValueError, "blocks must be 0", dict(blocks=1)),
        (ValueError, "precision must be one of", dict(precision="low")),
        (ValueError, "layers_a must be a list", dict(layers_a="0")),
        (ValueError, "layers_b must name at least one", dict(layers_b=[])),
        (LayerError, "has no layer '99'", dict(layers_b=["99"])),
    ):
        with pytest.raises(error, match=why):
            sk.compare(a, a, data, **options)
    with pytest.raises(ValueError, match="gave no batch"):
        sk.compare(a, a, [])


def test_positions_must_be_the_same_in_all_layers() -> None:
    a, data = cnn(0), [images(10)[0]]
    why = r"layer '0' of the model has 640 in 10 samples and layer '6' of the model has 160; .*'pool' or 'flatten'"
    with pytest.raises(ShapeError, match=why):
        sk.compare(a, a, data, features="positions")
    assert sk.compare(a, a, data, features="positions", layers_a=["0"], layers_b=["1", "2"]).shape == (1, 2)


def test_small_batches_are_skipped_with_a_warning() -> None:
    a, b = cnn(0), cnn(1)
    batches = split(images(45), 20, 3, 20, 2)
    with pytest.warns(UserWarning, match="2 batches of fewer than 4 samples were skipped"):
        found = sk.compare(a, b, batches, layers_a=["0"], layers_b=["4"])
    close(found.values, expected(a, b, ["0"], ["4"], [batches[0][0], batches[2][0]]))
    assert found.blocks == 2
    with pytest.raises(StatisticsError, match="no batch holds the four samples"):
        sk.compare(a, b, batches[1:2])
    exact = sk.compare(a, b, batches, layers_a=["0"], layers_b=["4"], estimator="exact")
    close(exact.values, expected(a, b, ["0"], ["4"], [x for x, _ in batches], exact=True, unbiased=False))


class Tokens(nn.Module):
    """(n, t) ids -> (n, t, c) -> (n, 2); with a layer whose samples do not come first."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.windows = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.mix(self.embed(input_ids))
        x = self.windows(x.reshape(-1, 2, 4)).reshape(x.shape)
        return self.head(x.mean(1))


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(12, 6, dtype=torch.long)
    for i in range(12):
        mask[i, 2 + i % 5 :] = 0
    return {"input_ids": torch.randint(9, (12, 6), generator=g), "attention_mask": mask}


def test_masked_tokens_are_left_out(tokens) -> None:
    a, b = Tokens(0), Tokens(1)
    options = dict(layers_a=["embed"], layers_b=["mix"])
    keep = tokens["attention_mask"].bool()
    with torch.no_grad():
        x, y = a.embed(tokens["input_ids"]), b.mix(b.embed(tokens["input_ids"]))
    wanted = sk.cka(x[keep].double(), y[keep].double(), unbiased=True)
    found = sk.compare(a, b, [tokens], features="positions", **options)
    assert found.values.item() == pytest.approx(wanted, abs=1e-6)
    means = [torch.stack([t[i][keep[i]].mean(0) for i in range(12)]).double() for t in (x, y)]
    assert sk.compare(a, b, [tokens], features="pool", estimator="exact", **options).values.item() == pytest.approx(
        sk.cka(*means), abs=1e-6
    )
    unmasked = sk.compare(a, b, [tokens], features="positions", mask=None, **options).values.item()
    assert unmasked == pytest.approx(
        sk.cka(x.flatten(0, 1).double(), y.flatten(0, 1).double(), unbiased=True), abs=1e-6
    )
    with pytest.warns(UserWarning, match="takes the tokens that 'attention_mask' masks as they are"):
        sk.compare(a, b, [tokens], **options)
    tokens["attention_mask"][3] = 0
    with pytest.raises(ShapeError, match="a sample whose tokens are all masked"):
        sk.compare(a, b, [tokens], features="pool", **options)


def test_layers_whose_samples_do_not_come_first(tokens) -> None:
    a = Tokens(0)
    with pytest.warns(UserWarning, match="left out, as they do not give one entry for each sample: layers windows"):
        found = sk.compare(a, a, [tokens], mask=None)
    assert found.layers_a == found.layers_b == ["embed", "mix", "head"]
    with pytest.raises(ShapeError, match=r"layer 'windows' of the model gives \(36, 2, 4\) for 12 samples"):
        sk.compare(a, a, [tokens], layers_a=["windows"], layers_b=["mix"])


def test_conv_beside_tokens_by_position() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 6, 2, stride=2), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.conv(x).flatten(2).mT)

    a, inputs = Patches(), images(20)[0]
    found = sk.compare(a, a, [inputs], layers_a=["conv"], layers_b=["mix"], features="positions", estimator="exact")
    x, y = features(a, ["conv", "mix"], inputs, "positions")
    assert found.values.item() == pytest.approx(sk.cka(x.double(), y.double()), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [dict(), dict(features="pool"), dict(estimator="exact"),
                                     dict(features="pool", estimator="exact", unbiased=True)])  # fmt: skip
def test_other_types(dtype, options) -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 4)).to(dtype)
    data = [(torch.randn(16, 5, generator=torch.Generator().manual_seed(i)) + 2).to(dtype) for i in range(2)]
    found = sk.compare(model, model, data, **options)
    exact = "estimator" in options
    wanted = expected(
        model, model, ["0", "1"], ["0", "1"], data, exact=exact, unbiased=options.get("unbiased", not exact)
    )
    close(found.values, wanted)


def test_half_precision_is_averaged_in_float32() -> None:
    class Mean32(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().mean((2, 3))

    x = (100 + torch.randn(200, 2, 12, 12, generator=torch.Generator().manual_seed(0))).bfloat16()
    other = x.float().mean((2, 3)).double()
    mixed = sk.compare(nn.Sequential(nn.Identity()), nn.Sequential(Mean32()), [x], features="pool", estimator="exact")
    assert_close(mixed.values[0, 0].item(), float(sk.cka(other, other)), rtol=1e-4, atol=0)


def test_features_that_change_size_are_for_minibatches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    batches = [images(8, size=4)[0], images(8, size=5)[0]]
    close(sk.compare(model, model, batches).values, torch.ones(1, 1, dtype=torch.float64), 1e-12)
    with pytest.raises(
        ShapeError, match=r"layer '0' of the model gives 50 features .* after 32 .*estimator='minibatch'"
    ):
        sk.compare(model, model, batches, measure="rsa")


def test_integers_are_no_features() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.long()

    model = nn.Sequential(Rounded())
    with pytest.raises(
        TypeError, match=r"layer '0' of the model must give real floating-point numbers; got torch\.int64"
    ):
        sk.compare(model, model, [torch.randn(8, 3)])


def test_progress_is_called_or_drawn(capsys) -> None:
    a, seen = cnn(0), []
    sk.compare(a, a, split(images(20), 10, 10), progress=lambda *args: seen.append(args))
    assert seen == [(1, 2), (2, 2)]
    sk.compare(a, a, split(images(20), 10, 10), progress=True)
    captured = capsys.readouterr()
    assert "compare layers" in captured.err and "2/2" in captured.err and not captured.out


def test_the_same_data_give_the_same_bits() -> None:
    a, b, data = cnn(0), cnn(1), split(images(40), 20, 20)
    for options in (dict(), dict(estimator="exact"), dict(features="pool", measure="svcca")):
        first, again = (sk.compare(a, b, data, **options) for _ in range(2))
        assert torch.equal(first.values, again.values) and torch.equal(first.standard_error, again.standard_error)
        assert sk.SimilarityMatrix.from_json(first.to_json()) == first


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
def test_exact_unbiased_cka_takes_a_first_batch_without_spread(first, scale) -> None:
    """Of which neither an origin (no samples) nor a unit of squared norms (one) can be learned."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 5, bias=False))
    with torch.no_grad():
        model[0].weight *= scale
        model[1].weight /= scale
    found = sk.compare(model, model, list(x.split([first, 20, 20 - first])), estimator="exact", unbiased=True)
    a, b = (t.double() for t in features(model, ["0", "1"], x))
    assert found.values[0, 1].item() == pytest.approx(sk.cka(a, b, unbiased=True), abs=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_exact_unbiased_cka_in_float64_bears_one_far_sample(size) -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    x[0] *= size
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    options = dict(estimator="exact", unbiased=True, precision="float64")
    found = sk.compare(model, model, list(x.split(20)), **options)
    a, b = (t.double() for t in features(model, ["0", "2"], x))
    wanted = sk.cka(a, b, unbiased=True, space="samples")
    assert found.values[0, 2].item() == pytest.approx(wanted, abs=1e-8)  # size² in 2^53


@pytest.mark.parametrize("net", NETS)
def test_batches_of_many_rows_are_compared_by_their_features(net, monkeypatch) -> None:
    """And others by kernel matrices made in the hooks: two roads to one answer, also to why there is none."""
    a, b = cnn(0, **NETS[net]), cnn(1, **NETS[net])
    data = images(300, shift=10.0)

    def both(model: nn.Module, batches: list) -> list:
        found = []
        for most in (matrices.MOST_ROWS, 0):
            monkeypatch.setattr(matrices, "MOST_ROWS", most)
            try:
                found.append(sk.compare(a, model, batches).values)
            except (NotFiniteError, StatisticsError) as e:
                found.append(f"{type(e).__name__}: {e}")
            monkeypatch.undo()
        return found

    close(*both(b, [data]), tolerance=1e-8)
    with torch.no_grad():
        b[0].weight[0, 0, 0, 0] = torch.nan
    of_matrices, of_features = both(b, [data])
    assert of_matrices == of_features and "model_b holds NaN" in of_matrices
    a, b = a.double(), cnn(1, **NETS[net]).double()
    with torch.no_grad():
        b[-1].weight *= 1e180
    of_matrices, of_features = both(b, [(data[0].double(), data[1])])
    assert of_matrices == of_features and "overflows" in of_matrices
