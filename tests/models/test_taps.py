from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stitchkern.errors import LayerError
from stitchkern.models import Taps, activations, frozen, layer_names, layer_shapes, resolve_layer


class Counted(nn.Module):
    """Adds one and counts how often it ran, over all copies."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return x + 1

    def __deepcopy__(self, memo: dict) -> Counted:
        return Counted(self.calls)


class Overwriting(nn.Module):
    """Every way in which later code writes into a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        y = self.b(x)
        F.relu(y, inplace=True)
        z = self.c(y)
        z += y
        w = self.d(z)
        w.view(-1)[::2] = 0  # through a view of the same memory
        return w


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_layer_names_leave_out_what_never_runs() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.ReLU())])})
    assert layer_names(model) == ["blocks.0", "blocks.1", "blocks.1.0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer1", "Overwriting has no layer 'layer1'; there are: a, b, c, d, relu"),
        ("rleu", "has no layer 'rleu'; nearest: relu"),
        ("", "has no layer ''"),
    ],
)
def test_unknown_layers_name_the_nearest(name: str, message: str) -> None:
    with pytest.raises(LayerError) as caught:
        resolve_layer(Overwriting(), name)
    assert message in str(caught.value)


def test_module_list_cannot_be_tapped() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]))
    with pytest.raises(LayerError, match="'0' of Sequential is a ModuleList, which never runs itself"):
        resolve_layer(model, "0")


def test_in_place_operations_do_not_corrupt_what_was_tapped() -> None:
    model, x = Overwriting(), torch.randn(5, 3)
    a = model.a(x)
    b = model.b(a.relu())
    c = model.c(b.relu())
    d = model.d(c + b.relu())
    expected = {"a": a, "b": b, "c": c, "d": d}
    taps = Taps(model, list("abcd"))
    for _ in range(2):
        for got in (taps(x), taps.run(x)[0]):
            assert list(got) == list("abcd")
            for name, tensor in got.items():
                assert torch.equal(tensor, expected[name]), name
                assert not tensor.requires_grad


def test_overwriting_that_starts_after_the_first_batch_is_seen() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out, self.late = nn.Linear(3, 3), nn.Linear(3, 3), [False]

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return self.out(y.zero_() if len(x) > 2 else y)

    model = Late()
    taps, x = Taps(model, ["fc", "out"]), torch.randn(4, 3)
    taps(x[:2])
    assert torch.equal(taps(x)["fc"], model.fc(x))


def test_copies_can_be_reused_from_call_to_call() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    taps, kept = Taps(model, ["0", "2"], reuse=True), Taps(model, ["0"])
    batches = [torch.randn(n, 3) for n in (4, 4, 5, 4)]
    where = []
    for x in batches:
        found = taps(x)
        assert torch.equal(found["0"], model[0](x)) and torch.equal(found["2"], model(x))
        where.append(found["0"].data_ptr())
    assert where[0] == where[1]
    first = kept(batches[0])["0"]
    kept(batches[1])
    assert torch.equal(first, model[0](batches[0]))


def test_what_is_not_overwritten_is_not_copied() -> None:
    returned = []
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].register_forward_hook(lambda module, args, output: returned.append(output))
    got = activations(model, ["0"], torch.randn(4, 3))["0"]
    assert got.data_ptr() == returned[0].data_ptr()


def test_forward_stops_after_the_last_tapped_layer() -> None:
    early, late = [], []
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[1].register_forward_hook(lambda *_: early.append(1))
    model[2].register_forward_hook(lambda *_: late.append(1))
    taps = Taps(model, ["1", "0"])
    for _ in range(3):
        taps(torch.randn(4, 3))
    assert (len(early), len(late)) == (3, 0)
    _, outputs = taps.run(torch.randn(4, 3))
    assert outputs.shape == (4, 3)
    assert len(late) == 1


def test_rehearsal_takes_two_samples_and_happens_once() -> None:
    calls: list[int] = []
    taps = Taps(nn.Sequential(Counted(calls), Counted(calls)), ["0"])
    taps(torch.zeros(9, 2))
    taps(torch.zeros(9, 2))
    assert calls == [2, 2, 9, 9]


def test_an_ordinary_except_clause_in_the_model_does_not_swallow_the_stop() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.ran_on = nn.Linear(2, 2), []

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.fc(x)
            except Exception:
                self.ran_on.append(1)
            return x

    model = Careful()
    activations(model, ["fc"], torch.zeros(3, 2))
    assert model.ran_on == []


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.same = self.fc
        self.unused = nn.Linear(2, 2)
        self.last = nn.LSTM(2, 3, batch_first=True)
        self.named = Named()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.named(self.fc(self.fc(x)))["h"])[0]


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"h": x}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["fc"], "'fc' of Shared runs more than once"),
        (["same"], "'same' of Shared runs more than once"),
        (["unused"], "'unused' of Shared did not run"),
        (["named"], "'named' returns a dict, not a tensor"),
        (["last", "fcc"], "has no layer 'fcc'; nearest: fc"),
    ],
)
def test_layers_without_one_activation_are_refused(layers: list[str], message: str) -> None:
    model = Shared()
    with pytest.raises(LayerError, match=message):
        activations(model, layers, torch.zeros(4, 5, 2))
    assert hooks(model) == 0


def test_first_element_of_a_tuple_is_taken() -> None:
    model, x = Shared(), torch.randn(4, 5, 2)
    torch.testing.assert_close(activations(model, ["last"], x)["last"], model(x))  # LSTMs have a way for each mode


def test_hooks_are_removed_after_success_and_after_exceptions() -> None:
    model = Overwriting()
    activations(model, ["a"], torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        activations(model, ["a"], torch.zeros(2, 4))
    taps = Taps(model, ["a", "b"])
    with pytest.raises(KeyError):
        taps.visit(torch.zeros(2, 3), lambda name, tensor: {}[name])
    assert hooks(model) == 0


def test_hooks_of_the_user_run_once_per_call_and_stay() -> None:
    model, seen = Overwriting(), []
    model.a.register_forward_hook(lambda module, args, output: seen.append(len(output)) or output + 1)
    got = activations(model, ["a"], torch.zeros(5, 3))["a"]
    assert seen == [5]
    assert torch.equal(got, model.a.bias.expand(5, 3) + 1)
    assert hooks(model) == 1


def test_visit_sees_each_tensor_before_it_is_overwritten() -> None:
    model, x = Overwriting(), torch.randn(5, 3)
    seen = {}
    Taps(model, ["a", "b"]).visit(x, lambda name, tensor: seen.setdefault(name, tensor.sum()))
    assert torch.equal(seen["a"], model.a(x).sum())
    assert torch.equal(seen["b"], model.b(model.a(x).relu()).sum())


def test_models_with_several_or_named_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return self.fc(x * scale)

    model, x, scale = Two(), torch.randn(3, 2), torch.tensor(2.0)
    got = activations(model, ["fc"], {"x": x, "scale": scale})["fc"]
    assert torch.equal(got, model.fc(2 * x))
    bilinear = nn.Sequential(nn.Identity())
    bilinear.forward = lambda a, b: bilinear[0](a + b)  # type: ignore[method-assign]
    assert torch.equal(activations(bilinear, ["0"], (x, x))["0"], 2 * x)


def test_models_that_cannot_be_copied_are_tapped_all_the_same() -> None:
    class Stubborn(Overwriting):
        def __deepcopy__(self, memo: dict) -> Stubborn:
            raise RuntimeError("no copies")

    model, x = Stubborn(), torch.randn(5, 3)
    assert torch.equal(activations(model, ["a"], x)["a"], model.a(x))


def test_works_inside_inference_mode() -> None:
    model, x = Overwriting(), torch.randn(5, 3)
    with torch.inference_mode():
        got = activations(model, ["a", "b"], x)
        assert torch.equal(got["a"], model.a(x))


def test_parameters_and_statistics_are_untouched_by_the_rehearsal() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad(), frozen(model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        activations(model, ["1"], torch.randn(8, 3))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class TestFrozen:
    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
        model[1].eval()
        model[0].bias.requires_grad_(False)
        return model

    def flags(self, model: nn.Module) -> tuple[list[bool], list[bool]]:
        return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]

    def test_inside_and_outside(self) -> None:
        model = self.model()
        before = self.flags(model)
        with frozen(model, model):
            assert self.flags(model) == ([False] * 4, [False] * 4)
        assert self.flags(model) == before == ([True, True, False, True], [True, False, True, True])

    def test_restored_after_an_exception_and_when_nested(self) -> None:
        model, other = self.model(), nn.Linear(1, 1)
        before = self.flags(model)
        with pytest.raises(KeyError), frozen(model, other):
            with frozen(model):
                pass
            assert self.flags(model) == ([False] * 4, [False] * 4)
            raise KeyError
        assert self.flags(model) == before
        assert other.training

    def test_running_statistics_stay(self) -> None:
        model = self.model().train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with frozen(model):
            model(torch.randn(16, 2))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_inference_parameters_do_not_keep_the_others_from_being_restored(self) -> None:
        with torch.inference_mode():
            odd = nn.Linear(2, 2)
        model, x = self.model(), torch.randn(3, 2)
        before = self.flags(model)
        for order in ((odd, model), (model, odd)):
            with frozen(*order):
                assert self.flags(model) == ([False] * 4, [False] * 4)
                assert torch.equal(activations(nn.Sequential(odd), ["0"], x)["0"], odd(x))
            assert self.flags(model) == before
            assert self.flags(odd) == ([True], [True, True])

    def test_lazy_modules(self) -> None:
        model, x = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(2)), torch.randn(4, 5)
        with frozen(model):
            got = activations(model, ["2"], x)["2"]
        assert torch.equal(got, model(x))
        assert self.flags(model) == ([True] * 4, [True] * 4)


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(c, c, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.relu(self.conv(x)))


def test_layer_shapes_are_the_layers_that_can_be_stitched() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), Residual(2), nn.Flatten(), nn.Linear(32, 3)
    )
    before = [m.training for m in model.modules()]
    assert layer_shapes(model, torch.zeros(5, 1, 6, 6)) == {
        "0.0": (2, 4, 4),
        "0.1": (2, 4, 4),  # and not "0", which hands this on
        "1.conv": (2, 4, 4),
        "1": (2, 4, 4),  # and not "1.relu", which runs twice
        "2": (32,),
        "3": (3,),
    }
    assert [m.training for m in model.modules()] == before
