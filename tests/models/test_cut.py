from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, fx, nn

from stitchkern.errors import LayerError, ShapeError
from stitchkern.models import StitchedModel, activations, frozen, layer_names, layer_shapes, tail
from stitchkern.nn import Stitch


class Block(nn.Module):
    """A residual block that overwrites whatever it can."""

    def __init__(self, c: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.downsample = nn.Sequential(nn.Conv2d(c, c, 1, stride)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    def __init__(self, c: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, c, 3), nn.BatchNorm2d(c), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(c), Block(c))
        self.layer2 = nn.Sequential(Block(c, 2), Block(c))
        self.drop, self.fc = nn.Dropout(), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        x = F.avg_pool2d(x, x.size(3))
        x = x.view(x.size(0), -1)
        return self.fc(F.dropout(self.drop(x), training=self.training))


class Attention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, d).unbind(2)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v))


class Transformer(nn.Module):
    """Patches, a class token sized by the input, a parameter added after the cut, a head on the first token."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, d))
        self.pos = nn.Parameter(torch.randn(1, 5, d))
        self.register_buffer("scale", torch.tensor(0.5))
        self.blocks = nn.ModuleList([Attention(d) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n = x.shape[0]
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(n, -1, -1), x], 1) + self.pos * self.scale.exp()
        if mask is not None:
            x = x * mask
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6), nn.ReLU(True), nn.Linear(6, 6), nn.ReLU(True), nn.Linear(6, 5)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "resnet": ResNet, "transformer": Transformer}
IMAGES = (3, 8, 8)


def network(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():  # statistics that a mistake would disturb visibly
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
        return model


def images(n: int = 5) -> Tensor:
    return torch.randn(n, *IMAGES, generator=torch.Generator().manual_seed(1))


def ran_once(model: nn.Module, x: Tensor) -> list[str]:
    counts = dict.fromkeys(layer_names(model), 0)
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
        for name in counts
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return [name for name, count in counts.items() if count == 1]


LAYERS = [(net, layer) for net in NETWORKS for layer in ran_once(network(net).eval(), images())]


def inside_skip(net: str, layer: str) -> bool:
    """Layers with a skip connection around them, which no cut can pass."""
    parts = layer.split(".")
    return (net == "resnet" and len(parts) > 2) or (net == "transformer" and len(parts) == 3)


@pytest.mark.parametrize(("net", "layer"), LAYERS)
def test_self_stitch_with_the_identity_is_the_network_itself(net: str, layer: str) -> None:
    model, x = network(net).eval(), images()
    expected = model(x).detach()
    channels = activations(model, [layer], x)[layer]
    c = channels.shape[1 if channels.ndim == 4 else -1]
    stitched = StitchedModel(model, model, layer, layer, Stitch.identity(c))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if inside_skip(net, layer) else "error")
        for _ in range(2):
            assert torch.equal(stitched(x), expected)
    assert stitched.is_cut is not inside_skip(net, layer)


@pytest.mark.parametrize(("net", "layer"), LAYERS)
def test_tail_agrees_with_a_hook_and_leaves_the_activation_alone(net: str, layer: str) -> None:
    model, x = network(net), images()
    with frozen(model):
        own = activations(model, [layer], x)[layer]
        activation = torch.randn(own.shape, generator=torch.Generator().manual_seed(2))
        with model.get_submodule(layer).register_forward_hook(lambda *_: activation.clone()):
            expected = model(x)
        before = activation.clone()
        run = tail(model, layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(run(activation, x), expected)
            assert torch.equal(run(activation, x), expected)
            smaller = run(activation[:3], x[:3])
        torch.testing.assert_close(smaller, expected[:3])
    assert torch.equal(activation, before)


@pytest.mark.parametrize("layer", ["bn1", "layer1.0", "layer1", "layer2.0"])
def test_cut_tail_runs_nothing_before_its_layer(layer: str) -> None:
    model, ran = network("resnet").eval(), []
    for name in layer_names(model):
        if not layer.startswith(f"{name}."):
            model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    run, x = tail(model, layer), images()
    activation = torch.randn_like(activations(model, [layer], x)[layer])
    ran.clear()
    run(activation, x)
    names = [name for name in layer_names(model) if not layer.startswith(f"{name}.")]
    inner = [name for name in names if name.startswith(f"{layer}.")]
    after = names[names.index(layer) + len(inner) + 1 :]
    assert run.is_cut
    assert set(ran) == set(after)
    assert "fc" in ran


def test_front_stops_and_both_are_called_once() -> None:
    front, end, ran = network("resnet", 0), network("resnet", 1), []
    for side, model in (("front", front), ("end", end)):
        for name in ("conv1", "layer2.1", "fc"):
            model.get_submodule(name).register_forward_hook(lambda *_, key=(side, name): ran.append(key))
    StitchedModel(front, end, "layer1.1", "layer1.1", Stitch.identity(4))(images())
    assert ran == [("front", "conv1"), ("end", "layer2.1"), ("end", "fc")]


def test_parameters_are_the_models_own_and_never_stale() -> None:
    model, x = network("transformer").eval(), images()
    run = tail(model, "blocks.0")
    activation = activations(model, ["blocks.0"], x)["blocks.0"]
    run(activation, x)
    model.head = nn.Linear(8, 2)
    assert torch.equal(run(activation, x), model(x))
    model.double()
    got = run(activations(model, ["blocks.0"], x.double())["blocks.0"], x.double())
    assert torch.equal(got, model(x.double()))


def test_fallback_warns_once_and_says_why() -> None:
    model, x = network("resnet").eval(), images()
    run = tail(model, "layer1.0.bn1")
    activation = activations(model, ["layer1.0.bn1"], x)["layer1.0.bn1"]
    with pytest.warns(UserWarning, match=r"not cut after 'layer1.0.bn1': what follows .* also needs .*slower"):
        run(activation, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(activation, x)
    assert not run.is_cut
    assert all(not m._forward_hooks for m in model.modules())


class ByType(nn.Module):
    """Tracing takes the wrong branch here and does not notice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) if isinstance(x, Tensor) else x)


class ByData(ByType):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) if x.sum() > 0 else x)


class ByCount(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(self.a(x)))


class Constant(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) * torch.tensor([1.0, 2.0, 3.0]))


class SkipsInput(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) + x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ByType, "gives other outputs than the model"),
        (ByData, "cannot be traced"),
        (Constant, "turns into constants"),
        (SkipsInput, "also needs the input 'x'"),
    ],
)
def test_what_tracing_gets_wrong_falls_back_to_the_right_answer(kind: type[nn.Module], reason: str) -> None:
    model = kind().eval()
    for x in (torch.rand(4, 3), -torch.rand(4, 3)):
        run = tail(model, "a")
        with pytest.warns(UserWarning, match=reason):
            got = run(activations(model, ["a"], x)["a"], x)
        assert torch.equal(got, model(x))
        assert not run.is_cut
        assert reason in str(run.reason)


def test_layer_that_runs_twice_or_never_is_an_error() -> None:
    for layer, message in (("a", "more than once"), ("b", "did not run")):
        with pytest.raises(LayerError, match=message):
            tail(ByCount(), layer)(torch.zeros(2, 3), torch.zeros(2, 3))


class InPlaceForEffect(ByType):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.relu_()
        F.relu(x, inplace=True)
        y = self.b(x)
        y.view(-1).add_(1)
        return self.c(y)


@pytest.mark.parametrize("layer", ["a", "b"])
def test_in_place_operations_called_for_their_effect_stay_in_the_cut(layer: str) -> None:
    model, x = InPlaceForEffect().eval(), torch.randn(6, 3)
    activation = activations(model, [layer], x)[layer]
    before = activation.clone()
    run = tail(model, layer)
    assert torch.equal(run(activation, x), model(x))
    assert run.is_cut
    assert torch.equal(activation, before)


class TwoInputs(ByType):
    def forward(self, x: Tensor, y: Tensor, *, flag: bool = False, **extra: Tensor) -> dict[str, Tensor]:
        h = self.b(self.a(x) if not flag else self.a(-x))
        return {"first": self.c(h), "rows": h.sum(0).expand(x.shape[0], -1)}


def test_several_inputs_and_structured_outputs() -> None:
    model, x, y = TwoInputs().eval(), torch.randn(4, 3), torch.randn(4, 1)
    for inputs in ((x, y), {"y": y, "x": x}):
        run = tail(model, "b")
        got = run(activations(model, ["b"], inputs)["b"], inputs)
        assert run.is_cut
        assert all(torch.equal(got[key], value) for key, value in model(x, y).items())


def test_optional_inputs_that_are_given_rule_the_cut_out() -> None:
    model, x = network("transformer").eval(), images()
    mask = torch.tensor([1.0, 0, 1, 0, 1])[None, :, None]
    run = tail(model, "patch")
    inputs = {"x": x, "mask": mask}
    with pytest.warns(UserWarning, match="optional input 'mask' is given"):
        got = run(activations(model, ["patch"], inputs)["patch"], inputs)
    assert torch.equal(got, model(x, mask))
    assert not torch.equal(got, model(x))


class Tuples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, (_, c) = self.lstm(x)
        return self.fc(h), c


def test_tuple_outputs_have_their_first_element_replaced() -> None:
    model, x = Tuples().eval(), torch.randn(2, 5, 3)
    run, h = tail(model, "lstm"), torch.randn(2, 5, 4)
    with pytest.warns(UserWarning, match="not cut"):
        got = run(h, x)
    assert torch.equal(got[0], model.fc(h))
    assert torch.equal(got[1], model(x)[1])


def test_hooks_around_the_layer_are_not_lost() -> None:
    model, x = network("resnet").eval(), images()
    run = tail(model, "layer1.0")
    assert run.is_cut
    with model.layer1.register_forward_hook(lambda module, args, output: output * 2):
        assert not run.is_cut
        with pytest.warns(UserWarning, match="hooks"):
            assert torch.equal(run(activations(model, ["layer1.0"], x)["layer1.0"], x), model(x))
    assert run.is_cut


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 3, 2, 2), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(self.down(x), inplace=True)
        return self.out(torch.cat([x, self.up(low + self.mid(low))], 1)).mean((2, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.prune.random_unstructured(model[1], "weight", 0.5)
    model(images()).sum().backward()  # its weight is now the result of a computation, which cannot be copied
    return model


@pytest.mark.parametrize(
    ("make", "cuts"),
    [
        (UNet, {"out"}),
        (encoder, {"0", "1", "3"}),
        (pruned, {"0", "1", "2", "3"}),
        (lambda: fx.symbolic_trace(network("mlp")), {"0", "1", "2", "3", "4", "5"}),
        (lambda: nn.DataParallel(network("mlp")), set()),
    ],
)
@pytest.mark.filterwarnings("ignore:.* is not cut after")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_other_architectures_are_always_right(make: Callable[[], nn.Module], cuts: set[str]) -> None:
    model, x = make().eval(), images()
    expected, found = model(x).detach(), set()
    for layer, shape in layer_shapes(model, x).items():
        c = shape[0] if len(shape) == 3 else shape[-1]
        stitched = StitchedModel(model, model, layer, layer, Stitch.identity(c))
        torch.testing.assert_close(stitched(x), expected)
        found |= {layer} if stitched.is_cut else set()
    assert found == cuts


def test_the_stitch_can_be_trained() -> None:
    model, x = network("mlp"), images(32)
    torch.manual_seed(0)
    stitched = StitchedModel(model, model, "2", "2", Stitch(6, 6))
    optimizer = torch.optim.Adam(stitched.parameters(), 3e-2)
    before = copy.deepcopy(model.state_dict())
    with frozen(model):
        target = model(x)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(stitched(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class TestStitchedModel:
    def stitched(self, layer: str = "layer1.0") -> StitchedModel:
        torch.manual_seed(3)
        return StitchedModel(network("resnet", 0), network("resnet", 1), layer, layer, Stitch(4, 4))

    @pytest.mark.parametrize("layer", ["layer1.0", "layer1.0.bn1"])
    @pytest.mark.filterwarnings("ignore:ResNet is not cut")
    def test_is_front_then_stitch_then_end(self, layer: str) -> None:
        stitched, x = self.stitched(layer), images()
        front, end = stitched.front.eval(), stitched.end.eval()
        activation = stitched.stitch(activations(front, [layer], x)[layer])
        with end.get_submodule(layer).register_forward_hook(lambda *_: activation):
            expected = end(x)
        assert torch.equal(stitched(x), expected)
        assert stitched.is_cut is (layer == "layer1.0")

    @pytest.mark.parametrize("layer", ["layer1.0", "layer1.0.bn1"])
    @pytest.mark.filterwarnings("ignore:ResNet is not cut")
    def test_gradient_reaches_the_stitch_only(self, layer: str) -> None:
        stitched = self.stitched(layer)
        stitched(images()).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stitched.stitch.parameters())
        assert all(p.grad is None for m in (stitched.front, stitched.end) for p in m.parameters())

    def test_gradient_is_the_derivative(self) -> None:
        stitched, x = self.stitched(), images(2).double()
        stitched.double()

        def loss(weight: Tensor) -> Tensor:
            return torch.func.functional_call(stitched, {"stitch.weight": weight}, (x,))

        assert torch.autograd.gradcheck(loss, stitched.stitch.weight.detach().requires_grad_())

    def test_models_are_as_they_were_found_even_after_an_exception(self) -> None:
        stitched, x = self.stitched(), images()
        front, end = stitched.front.train(), stitched.end.train()
        front.layer1[0].bn1.eval()
        end.fc.weight.requires_grad_(False)

        def state() -> list:
            return [
                [[m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]
                for model in (front, end)
            ]

        flags = state()
        values = copy.deepcopy([front.state_dict(), end.state_dict()])
        stitched(x)
        with pytest.raises(RuntimeError):
            stitched(x[:, :2])
        stitched.stitch = Stitch(3, 4)
        with pytest.raises(ShapeError, match="expects 3 channels in dimension 1; got 4"):
            stitched(x)
        assert state() == flags
        for before, model in zip(values, (front, end), strict=True):
            assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
            assert not any(m._forward_hooks for m in model.modules())

    def test_answers_do_not_depend_on_the_mode_outside(self) -> None:
        stitched, x = self.stitched(), images()
        expected = stitched(x)
        stitched.train()
        stitched.front.train()
        stitched.end.train()
        assert torch.equal(stitched(x), expected)

    def test_owns_the_stitch_and_moves_everything(self) -> None:
        stitched = self.stitched()
        assert [name for name, _ in stitched.named_parameters()] == ["stitch.weight", "stitch.bias"]
        assert list(stitched.state_dict()) == ["stitch.weight", "stitch.bias"]
        stitched.double()
        assert stitched.front.fc.weight.dtype == stitched.end.fc.weight.dtype == torch.float64
        assert stitched(images().double()).dtype == torch.float64

    def test_copies_and_pickles(self) -> None:
        stitched, x = self.stitched(), images()
        expected = stitched(x)
        for other in (copy.deepcopy(stitched), pickle.loads(pickle.dumps(stitched))):
            with torch.no_grad():
                stitched.end.fc.bias.zero_()
            assert other.end is not stitched.end
            assert torch.equal(other(x), expected)
        same = copy.deepcopy(StitchedModel(*[stitched.end] * 2, "conv1", "conv1", Stitch.identity(4)))
        assert same.front is same.end
        assert same._tail.model is same._tap.model is same.end

    def test_unknown_layers_name_the_nearest(self) -> None:
        model = network("resnet")
        with pytest.raises(LayerError, match=r"no layer 'layer1\.2'; nearest: .*layer1\.1"):
            StitchedModel(model, model, "layer1.2", "conv1", Stitch(4, 4))
        with pytest.raises(LayerError, match="no layer 'conv'; nearest: conv1"):
            StitchedModel(model, model, "conv1", "conv", Stitch(4, 4))

    def test_says_what_it_is(self) -> None:
        assert "ResNet up to 'layer1.0' ▷ stitch ▷ ResNet after 'layer1.0'" in repr(self.stitched())


class LogitsInObject(ByType):
    def forward(self, x: Tensor) -> SimpleNamespace:
        self.b(x)
        return SimpleNamespace(logits=self.c(self.a(x)))


@pytest.mark.filterwarnings("ignore:LogitsInObject is not cut")
def test_layers_without_effect_are_found_when_outputs_are_an_object() -> None:
    model, x = LogitsInObject().eval(), torch.rand(4, 3)
    assert torch.equal(tail(model, "a")(model.a(x), x).logits, model(x).logits)
    run = tail(model, "b")
    for _ in range(2):
        with pytest.raises(LayerError, match="do not depend on what 'b' returns"):
            run(x, x)


def test_outputs_that_are_not_finite_are_compared_where_they_are() -> None:
    class Masked(ByType):
        """Logits of a class that cannot be are -inf; tracing takes the wrong branch."""

        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.cat([logits, logits[:, :1] - float("inf")], 1)

    model, x = Masked().eval(), torch.rand(4, 3)
    with pytest.warns(UserWarning, match="gives other outputs than the model"):
        assert torch.equal(tail(model, "a")(model.a(x), x), model(x))


def test_a_dead_or_fussy_model_still_depends_on_its_layer() -> None:
    class Fussy(SkipsInput):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) + x
            if h.isnan().any():
                raise ValueError("NaN")
            return self.c(F.relu(h))

    model, x = Fussy().eval(), torch.rand(4, 3)
    for kind in (Fussy, SkipsInput):
        model = kind().eval()
        nn.init.zeros_(model.c.weight)
        with pytest.warns(UserWarning, match="not cut"):
            assert torch.equal(tail(model, "a")(torch.rand(4, 3), x), model(x))


def test_a_batch_size_that_was_traced_as_a_constant_is_found() -> None:
    class Baked(ByType):
        sizes: ClassVar[list[int]] = [2]

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(x, Tensor):
                self.sizes[0] = len(x)
            return self.c(self.b(self.a(x))[: self.sizes[0]])

    model, x = Baked().eval(), torch.rand(5, 3)
    model(x[:2])
    run = tail(model, "a")
    with pytest.warns(UserWarning, match="gives other outputs than the model"):
        assert torch.equal(run(activations(model, ["a"], x)["a"], x), model(x))


def test_python_attributes_are_those_of_when_the_tail_was_made() -> None:
    class Scaled(ByType):
        factor = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * self.factor)

    model, x = Scaled().eval(), torch.rand(4, 3)
    run, h = tail(model, "a"), torch.rand(4, 3)
    before = run(h, x)
    model.factor = 3.0
    assert torch.equal(run(h, x), before)
    assert torch.equal(tail(model, "a")(h, x), model.c(h * 3.0))


def test_a_model_that_writes_into_its_input_leaves_the_batch_alone() -> None:
    class Writes(SkipsInput):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(1))

    model, x = Writes().eval(), torch.rand(4, 3)
    before = x.clone()
    with pytest.warns(UserWarning, match="not cut"):
        got = StitchedModel(model, model, "a", "a", nn.Identity())(x)
    assert torch.equal(x, before)
    assert torch.equal(got, model(before))
