from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from stitchkern.errors import LayerError, ShapeError
from stitchkern.matching import evaluate, match_direct
from stitchkern.matching.evaluate import relative_standard_error
from stitchkern.models import StitchedModel
from stitchkern.nn import Stitch


def net(seed: int, c: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, c, 3),
            nn.BatchNorm2d(c),
            nn.ReLU(inplace=True),
            nn.Flatten(2),
            nn.Linear(16, 5),
            Mean(),
        )


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 1, 6, 6, generator=generator), torch.randint(5, (n,), generator=generator)) for n in (30, 11)
    ]


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        right = [model(inputs).argmax(1) == labels for inputs, labels in batches()]
    return torch.cat(right).double().mean().item()


def test_accuracies_are_those_of_each_network_by_itself() -> None:
    front, end = net(0).eval(), net(1).eval()
    pairs = [("0", "0"), ("1", "1"), ("2", "1"), ("4", "4")]
    stitches = {pair: fitted.to_module() for pair, fitted in match_direct(front, end, pairs, batches()).items()}
    result = evaluate(front, end, stitches, batches())
    assert result.count == 41
    assert result.front_accuracy == accuracy(front)
    assert result.end_accuracy == accuracy(end) > 0
    assert list(result.accuracy) == pairs
    for (a, b), stitch in stitches.items():
        expected = accuracy(StitchedModel(front, end, a, b, stitch))
        assert result.accuracy[a, b] == expected
        assert result.relative[a, b] == pytest.approx(expected / accuracy(end))
        assert result.relative_se[a, b] >= 0


def test_the_identity_loses_nothing_and_is_certain() -> None:
    model = net(0)
    result = evaluate(model, model, {("1", "1"): nn.Identity(), ("0", "0"): Stitch.identity(4)}, batches())
    assert result.front_accuracy == result.end_accuracy
    assert set(result.relative.values()) == {1.0}
    assert set(result.relative_se.values()) == {0.0}


def test_each_model_runs_once_in_full_per_batch_and_upstream_never_again() -> None:
    front, end, ran = net(0), net(1), []
    for side, model in (("front", front), ("end", end)):
        for name in ("0", "4"):
            model.get_submodule(name).register_forward_hook(lambda *_, key=side + name: ran.append(key))
    evaluate(front, end, {("1", "1"): nn.Identity(), ("2", "1"): nn.Identity()}, batches())
    assert {key: ran.count(key) for key in ran} == {"front0": 2, "front4": 2, "end0": 2, "end4": 2 + 2 * 2}


def test_many_stitches_of_one_pair_share_a_pass_and_keep_their_keys() -> None:
    front, end, ran = net(0).eval(), net(1).eval(), []
    fitted = match_direct(front, end, [("0", "0"), ("1", "1")], batches())
    stitches = {
        ("1", "1"): fitted["1", "1"].to_module(),
        ("1", "1", 2): fitted["1", "1"].to_module(low_rank=True),
        ("1", "1", ("none", None)): nn.Identity(),
        ("0", "0", 2): fitted["0", "0"].to_module(),
    }
    expected = {key: accuracy(StitchedModel(front, end, *key[:2], stitch)) for key, stitch in stitches.items()}
    for side, model in (("front", front), ("end", end)):
        model[0].register_forward_hook(lambda *_, key=side: ran.append(key))
    result = evaluate(front, end, stitches, batches())
    assert result.accuracy == expected and list(result.accuracy) == list(stitches)
    assert len(set(expected.values())) > 1  # or the keys might have been mixed up
    assert list(result.relative) == list(result.relative_se) == list(stitches)
    assert {key: ran.count(key) for key in ran} == {"front": 2, "end": 2}


def test_models_and_stitches_are_as_they_were_found() -> None:
    front, end, stitch = net(0).train(), net(1).train(), nn.Sequential(nn.BatchNorm2d(4)).train()
    before = stitch[0].running_mean.clone(), front[1].running_mean.clone()
    evaluate(front, end, {("0", "0"): stitch}, batches())
    assert torch.equal(stitch[0].running_mean, before[0])
    assert torch.equal(front[1].running_mean, before[1])
    assert all(m.training for model in (front, end, stitch) for m in model.modules())
    assert all(p.requires_grad for model in (front, end, stitch) for p in model.parameters())


def test_standard_error_is_the_spread_over_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    n, repeats = 400, 4000
    end = torch.rand(repeats, n, generator=generator) < 0.8
    keeps, gains = (torch.rand(repeats, n, generator=generator) for _ in range(2))
    stitched = torch.where(end, keeps < 0.9, gains < 0.2)
    ratio = stitched.sum(1) / end.sum(1)
    estimates = torch.tensor(
        [
            relative_standard_error(int(s.sum()), int(e.sum()), int((s & e).sum()), n)
            for s, e in zip(stitched, end, strict=True)
        ]
    )
    assert estimates.mean().item() == pytest.approx(ratio.std().item(), rel=0.05)
    unpaired = (ratio.mean() / math.sqrt(n)) * math.sqrt(0.2 / 0.8 + (1 - 0.76) / 0.76)
    assert estimates.mean() < 0.8 * unpaired


def test_standard_error_where_it_is_undefined() -> None:
    assert math.isnan(relative_standard_error(0, 0, 0, 10))
    assert math.isnan(relative_standard_error(1, 1, 1, 1))
    assert relative_standard_error(10, 10, 10, 10) == 0.0


def test_relative_is_nan_when_the_end_is_never_right() -> None:
    model = net(0).eval()
    wrong = [(inputs, (model(inputs).argmax(1) + 1) % 5) for inputs, _ in batches()]
    result = evaluate(model, model, {("0", "0"): nn.Identity()}, wrong)
    assert math.isnan(result.relative["0", "0"])
    assert math.isnan(result.relative_se["0", "0"])


@pytest.mark.parametrize("wrap", [lambda y: (y, None), lambda y: SimpleNamespace(logits=y)])
def test_logits_are_found_in_outputs(wrap) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(0)

        def forward(self, x: Tensor) -> object:
            return wrap(self.net(x))

    model = Wrapped()
    assert evaluate(model, model, {}, batches()).end_accuracy == accuracy(net(0).eval())


def test_what_is_wrong_is_said() -> None:
    front, end = net(0), net(1)
    with pytest.raises(ValueError, match="accuracy needs labels"):
        evaluate(front, end, {}, [inputs for inputs, _ in batches()])
    with pytest.raises(ValueError, match="gave no batch"):
        evaluate(front, end, {}, [])
    with pytest.raises(
        ShapeError, match=r"outputs must be \(n, classes\) beside labels \(n,\); got \(30, 5\) and \(29,\)"
    ):
        evaluate(front, end, {}, [(batches()[0][0], batches()[0][1][:-1])])
    with pytest.raises(ShapeError, match="expects 9 channels in dimension 1; got 4"):
        evaluate(front, end, {("0", "0"): Stitch(9, 4)}, batches())
    for shift in (5, -1):
        with pytest.raises(ShapeError, match=r"labels must be 0 … 4, the classes of the end; got (6|-1)"):
            evaluate(front, end, {}, [(inputs, labels + shift) for inputs, labels in batches()])
    with pytest.raises(LayerError, match="has no layer '7'"):
        evaluate(front, end, {("0", "7"): nn.Identity()}, batches())


def test_logits_that_are_not_finite_are_never_right() -> None:
    model = net(0)
    with torch.no_grad():
        model[4].bias.fill_(math.nan)
    result = evaluate(model, model, {("0", "0"): nn.Identity()}, [(x, torch.zeros_like(y)) for x, y in batches()])
    assert result.front_accuracy == result.end_accuracy == result.accuracy["0", "0"] == 0


class Normalising(nn.Module):
    """Writes into what it was given."""

    def __init__(self, seed: int, skip: bool) -> None:
        super().__init__()
        self.net, self.skip = net(seed), skip

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(1)
        return self.net(x) + (x.mean((1, 2, 3))[:, None] if self.skip else 0)


@pytest.mark.parametrize("skip", [False, True])  # with the skip no tail is cut, so the end runs again for each
@pytest.mark.filterwarnings("ignore:Normalising is not cut")
def test_models_that_write_into_their_inputs_all_see_the_same(skip: bool) -> None:
    front, end, data = Normalising(0, skip).eval(), Normalising(1, skip).eval(), batches()

    def shifted(model: Normalising) -> float:
        with torch.no_grad():
            right = [model(x.clone()).argmax(1) == y for x, y in batches()]
        return torch.cat(right).double().mean().item()

    pairs = [("net.1", "net.1"), ("net.2", "net.1")]
    maps = match_direct(front, end, pairs, data)
    result = evaluate(front, end, {pair: maps[pair].to_module() for pair in pairs}, data)
    for (got, _), (expected, _) in zip(data, batches(), strict=True):
        assert torch.equal(got, expected)
    moved = [(x - 1, y) for x, y in batches()]
    plain = match_direct(net(0), net(1), [("1", "1"), ("2", "1")], moved)
    for pair, expected in zip(pairs, plain.values(), strict=True):
        assert_close(maps[pair].weight, expected.weight)
    assert (result.front_accuracy, result.end_accuracy) == (shifted(front), shifted(end))
    again = evaluate(end, end, {("net.1", "net.1"): nn.Identity(), ("net.2", "net.2"): nn.Identity()}, data)
    assert set(again.relative.values()) == {1.0}


class Negating(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(-1)


def test_a_stitch_that_works_in_place_does_not_reach_the_next_pair() -> None:
    front, end = net(0), net(1)
    first = evaluate(front, end, {("0", "1"): Negating()}, batches()).accuracy["0", "1"]
    after = evaluate(front, end, {("0", "0"): Negating(), ("0", "1"): Negating()}, batches()).accuracy["0", "1"]
    assert after == first


class Auxiliary(nn.Module):
    """Runs a layer whose output nobody uses, and one whose output is used by its state alone."""

    def __init__(self) -> None:
        super().__init__()
        self.aux, self.lstm, self.fc = nn.Linear(6, 2), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.aux(x[:, 0])
        _, (h, _) = self.lstm(x[:, 0])
        return self.fc(h[-1])


@pytest.mark.parametrize("layer", ["aux", "lstm"])
def test_layers_that_the_end_does_not_use_are_refused(layer: str) -> None:
    model = Auxiliary()
    with pytest.raises(LayerError, match=f"outputs of Auxiliary do not depend on what '{layer}' returns"):
        evaluate(model, model, {(layer, layer): nn.Identity()}, batches())
    assert all(p.requires_grad for p in model.parameters())
