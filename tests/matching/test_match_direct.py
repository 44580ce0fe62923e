from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import stitchkern as sk
from stitchkern import reference
from stitchkern.errors import LayerError, NotFiniteError, ShapeError
from stitchkern.matching import METHODS, collect_moments, common_layers, match_direct
from stitchkern.models import activations, frozen
from stitchkern.solvers import ROADS, least_squares


class Net(nn.Module):
    """Convolutions whose outputs are overwritten at once."""

    def __init__(self, c: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, c, 3), nn.Conv2d(c, c + 1, 3, stride)
        self.bn = nn.BatchNorm2d(c + 1)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.fc = nn.Linear(c + 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.bn(self.conv2(self.relu1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self, t: int = 4) -> None:
        super().__init__()
        self.t, self.fc = t, nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, 0, : self.t, :2])


def net(seed: int, **options: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**options)


def batches(sizes: tuple[int, ...] = (20, 7, 13)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def rows(model: nn.Module, layer: str, resize: tuple[tuple[int, int], str] | None = None) -> np.ndarray:
    """The activations of all batches, (samples × positions, c), float64."""
    with frozen(model):
        x = torch.cat([activations(model, [layer], inputs)[layer] for inputs, _ in batches()])
    if resize is not None:
        x = F.interpolate(x, size=resize[0], mode=resize[1])
    return x.movedim(1, -1).flatten(0, -2).double().numpy()


LAYERS = ["conv1", "bn", "relu2", "fc"]


@pytest.mark.parametrize("layers", [LAYERS, [("conv1", "conv1"), ("bn", "relu2"), ("relu2", "bn"), ("bn", "bn")]])
def test_maps_are_the_least_squares_solution_on_the_gathered_activations(layers: list) -> None:
    front, end = net(0), net(1, c=5)
    maps = match_direct(front, end, layers, batches())
    assert list(maps) == layers
    for layer, fitted in maps.items():
        a, b = (layer, layer) if isinstance(layer, str) else layer
        x, y = rows(front, a), rows(end, b)
        ones = np.ones((len(x), 1))
        expected = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0]
        assert_close(fitted.weight.numpy(), expected[:-1].T, rtol=1e-4, atol=1e-5)
        assert_close(fitted.bias.numpy(), expected[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resize_resamples_the_front(mode: str) -> None:
    front, end = net(0), net(1, stride=2)
    fitted = match_direct(front, end, ["conv2"], batches(), resize=mode)["conv2"]
    x, y = rows(front, "conv2", ((2, 2), mode)), rows(end, "conv2")
    expected = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), y, rcond=None)[0]
    assert_close(fitted.weight.numpy(), expected[:-1].T, rtol=1e-4, atol=1e-5)


def test_moments_count_rows_and_agree_with_numpy() -> None:
    front, end = net(0), net(1)
    pairs = [("conv1", "conv1"), ("bn", "conv2"), ("fc", "fc"), ("bn", "conv2")]
    moments = collect_moments(front, end, pairs, (inputs for inputs, _ in batches()), precision="float64")
    assert set(moments) == set(pairs)
    assert moments["conv1", "conv1"].rows == 40 * 36
    assert moments["fc", "fc"].rows == 40
    for (a, b), m in moments.items():
        x, y = rows(front, a), rows(end, b)
        expected = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
        assert_close(m.cov_xy.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("same", [False, True])
def test_each_model_runs_once_per_batch_and_stops_early(same: bool) -> None:
    front = net(0)
    end = front if same else net(1)
    ran: list[tuple[str, int]] = []
    for name, model in {"front": front, "end": end}.items():
        model.conv1.register_forward_hook(lambda module, args, output, name=name: ran.append((name, len(output))))
        model.fc.register_forward_hook(lambda *_: pytest.fail("ran past the last layer"))
    pairs = [("conv1", "conv1"), ("conv2", "bn"), ("bn", "bn"), ("bn", "conv2")]
    collect_moments(front, end, pairs, batches())
    # with one model for both there are two hooks on one layer, each called once per batch
    assert ran == [(name, n) for n in (20, 7, 13) for name in ("front", "end")]


def test_activations_do_not_pile_up() -> None:
    seen: list[Any] = []
    front, end = net(0), net(1)
    for model in (front, end):
        model.bn.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    counts = []

    def progress(done: int, total: int) -> None:
        counts.append((done, total))

    def feed() -> Iterator[Tensor]:
        for inputs, _ in batches():
            assert not [reference for reference in seen if reference() is not None]
            yield inputs

    collect_moments(front, end, [("bn", "bn")], feed(), progress=progress)
    assert counts == [(1, 0), (2, 0), (3, 0)]
    collect_moments(front, end, [("bn", "bn")], batches(), progress=progress)
    assert counts[3:] == [(1, 3), (2, 3), (3, 3)]


def test_models_are_as_they_were_found() -> None:
    front, end = net(0).train(), net(1).train()
    end.bn.eval()
    before = copy.deepcopy([front.state_dict(), end.state_dict()])
    match_direct(front, end, LAYERS, batches())
    with pytest.raises(ShapeError):
        match_direct(front, end, [("bn", "fc")], batches())
    for state, model in zip(before, (front, end), strict=True):
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())
        assert not any(m._forward_hooks for m in model.modules())
    assert front.bn.training
    assert not end.bn.training


def test_default_is_every_common_layer_that_fits() -> None:
    front, end = net(0), net(1, c=5)
    end.extra = nn.Identity()
    assert list(match_direct(front, end, None, iter(batches()))) == [
        "conv1",
        "relu1",
        "conv2",
        "bn",
        "relu2",
        "fc",
    ]
    narrow = net(1, stride=2)
    inputs = batches()[0][0]
    assert common_layers(front, narrow, inputs) == ["conv1", "relu1", "fc"]
    assert common_layers(front, narrow, inputs, resize="nearest") == [
        "conv1",
        "relu1",
        "conv2",
        "bn",
        "relu2",
        "fc",
    ]
    with pytest.raises(LayerError, match="no layer name in common whose activations fit"):
        common_layers(front, Tokens(), inputs)


def test_options_reach_the_solver() -> None:
    front, end = net(0), net(1)
    free, ridge = (match_direct(front, end, ["bn"], batches(), ridge=r)["bn"] for r in (0.0, 10.0))
    assert ridge.weight.norm() < 0.9 * free.weight.norm()


def test_a_new_method_needs_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "halved", lambda m, *, factor=1.0: least_squares(m, ridge=factor))
    made = match_direct(net(0), net(1), ["bn", "fc"], batches(), method="halved", factor=2.0)
    ridge = match_direct(net(0), net(1), ["bn", "fc"], batches(), ridge=2.0)
    assert all(torch.equal(made[layer].weight, ridge[layer].weight) for layer in ("bn", "fc"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_every_layer_as_from_its_own_moments(method: str) -> None:
    front, end = net(0), net(1)
    options = {"floor": 0.1} if method == "full_rank" else {}
    maps = match_direct(front, end, ["conv1", "relu1", "fc"], batches(), method=method, **options)
    moments = collect_moments(front, end, [(a, a) for a in maps], batches())
    for layer, one in maps.items():
        alone = METHODS[method](moments[layer, layer], **options)
        assert torch.allclose(one.weight, alone.weight, rtol=1e-12, atol=1e-14) and one.method == alone.method
        assert isinstance(one.r2, float) and one.r2 == pytest.approx(alone.r2)


@pytest.mark.parametrize("road", ROADS)
def test_roads_agree(road: str) -> None:
    front, end = net(0), net(1)
    plain = match_direct(front, end, ["conv1", "bn"], batches(), precision="float64")
    other = match_direct(front, end, ["conv1", "bn"], batches(), road=road)
    for layer in plain:
        assert (plain[layer].weight - other[layer].weight).norm() < 1e-4 * plain[layer].weight.norm()
    names = {"moments": "cholesky", "refine": "refined", "qr": "qr"}
    assert road == "auto" or other["conv1"].method == names[road]


def test_auto_takes_a_second_pass_only_for_layers_that_need_it() -> None:
    front, end = net(0), net(1)
    with torch.no_grad():  # two channels that differ by a thousandth: lost in the rounding of float32 moments
        front.conv1.weight[1] = front.conv1.weight[0] * (1 + 1e-6) + 1e-5 * front.conv1.weight[2]
    maps = match_direct(front, end, ["conv1", "fc"], batches(), road="auto")
    assert maps["conv1"].method == "qr" and maps["conv1"].dropped == 0
    with pytest.raises(ValueError, match="read more than once"):
        match_direct(front, end, ["conv1"], iter(batches()), road="auto")


def test_weights_that_follow_the_activations() -> None:
    front, end = net(0), net(1)
    maps = match_direct(front, end, ["conv1", "bn"], iter(batches()), weighting=sk.weighting.power(2))
    for layer, found in maps.items():
        x, y = (torch.from_numpy(rows(model, layer)) for model in (front, end))
        for k in range(y.shape[1]):
            weight, bias = reference.least_squares(x, y[:, k : k + 1], y[:, k] ** 2)
            assert_close(found.weight[k], weight[0], rtol=1e-4, atol=1e-5)
            assert_close(found.bias[k], bias[0], rtol=1e-4, atol=1e-5)
    robust = match_direct(front, end, ["bn"], batches(), weighting=sk.weighting.huber(1.0), iterations=3)["bn"]
    assert (robust.weight - match_direct(front, end, ["bn"], batches())["bn"].weight).norm() > 0
    with pytest.raises(ValueError, match="weighting is for"):
        match_direct(front, end, ["bn"], batches(), method="procrustes", weighting=sk.weighting.power(2))
    with pytest.raises(TypeError, match="rank"):
        match_direct(front, end, ["bn"], batches(), weighting=sk.weighting.power(2), rank=2)


def test_blocks_hold_the_batches_in_turn() -> None:
    front, end = net(0), net(1)
    whole = collect_moments(front, end, [("fc", "fc")], batches())["fc", "fc"]
    blocks = collect_moments(front, end, [("fc", "fc")], batches(), blocks=5)["fc", "fc"]
    assert len(blocks) == min(5, len(batches())) and sum(b.rows for b in blocks) == whole.rows
    merged = sk.Moments(whole.p, whole.q)
    for b in blocks:
        merged.merge(b)
    assert torch.allclose(merged.cov_xy, whole.cov_xy, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="blocks must be at least 2"):
        collect_moments(front, end, [("fc", "fc")], batches(), blocks=1)


def test_roads_are_for_least_squares() -> None:
    with pytest.raises(ValueError, match="road='qr' is for method='least_squares'"):
        match_direct(net(0), net(1), ["fc"], batches(), method="procrustes", road="qr")
    with pytest.raises(ValueError, match="road must be one of"):
        match_direct(net(0), net(1), ["fc"], batches(), road="high")


@pytest.mark.parametrize(
    ("front", "end", "pair", "words"),
    [
        (
            net(0),
            net(1, stride=2),
            ("conv2", "conv2"),
            ["'conv2' (20, 5, 4, 4)", "4×4 and 2×2", "resize='bilinear'"],
        ),
        (
            net(0),
            net(1),
            ("conv2", "fc"),
            ["front layer 'conv2' (20, 5, 4, 4)", "end layer 'fc' (20, 3)", "both be"],
        ),
        (Tokens(4), Tokens(3), ("fc", "fc"), ["(20, 4, 3)", "(20, 3, 3)", "same number of tokens"]),
        (nn.Sequential(nn.Flatten(0, 1)), nn.Sequential(nn.Flatten()), ("0", "0"), ["both be"]),
        (
            nn.Sequential(nn.Flatten(0, 2)),
            nn.Sequential(nn.Flatten()),
            ("0", "0"),
            ["same number of samples"],
        ),
    ],
)
def test_layers_that_do_not_fit_are_named(
    front: nn.Module, end: nn.Module, pair: tuple[str, str], words: list[str]
) -> None:
    with pytest.raises(ShapeError) as caught:
        collect_moments(front, end, [pair], batches())
    for word in words:
        assert word in str(caught.value)


def test_what_is_wrong_is_said() -> None:
    front, end = net(0), net(1)
    with pytest.raises(ValueError, match=r"method must be one of least_squares.*got 'lasso'"):
        match_direct(front, end, ["bn"], batches(), method="lasso")
    with pytest.raises(TypeError, match="ridg"):
        match_direct(front, end, ["bn"], iter(()), ridg=1.0)
    with pytest.raises(ValueError, match="resize must be None or one of bilinear, nearest; got 'cubic'"):
        match_direct(front, end, ["bn"], batches(), resize="cubic")
    with pytest.raises(ValueError, match="precision must be one of"):
        match_direct(front, end, ["bn"], batches(), precision="double")
    with pytest.raises(ValueError, match=r"layers must be a list .* got the string 'bn'"):
        match_direct(front, end, "bn", batches())
    with pytest.raises(LayerError, match="Net has no layer 'bn1'; nearest: bn"):
        match_direct(front, end, ["bn1"], batches())
    for layers in (["bn"], None):
        with pytest.raises(ValueError, match="gave no batch"):
            match_direct(front, end, layers, [])
    with pytest.raises(ValueError, match=r"must yield inputs or .*; got a tuple of 3"):
        match_direct(front, end, ["bn"], [(1, 2, 3)])


def test_not_finite_activations_name_the_layers() -> None:
    front, end = net(0), net(1)
    with torch.no_grad():
        end.fc.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match="front layer 'fc' → end layer 'fc': y holds NaN or Inf"):
        collect_moments(front, end, [("bn", "bn"), ("fc", "fc")], batches())


def test_batches_of_inputs_alone_and_of_data_loaders() -> None:
    front, end = net(0), net(1)
    expected = match_direct(front, end, ["bn"], batches())["bn"].weight
    images = torch.cat([inputs for inputs, _ in batches()])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=9)
    for feed in ([images], loader):
        assert_close(match_direct(front, end, ["bn"], feed)["bn"].weight, expected, rtol=1e-4, atol=1e-5)
