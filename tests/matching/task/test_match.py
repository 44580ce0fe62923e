"""Trained stitches are those of the plain way: both networks in full, one stitch at a time."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.models import StitchedModel, activations
from stitchkern.nn import LowRankStitch, Stitch
from tests.matching.task.networks import PLAIN, batches, conv, tokens


def plain_way(
    front: nn.Module,
    end: nn.Module,
    layers: tuple[str, str],
    stitch: nn.Module,
    loss: Any,
    optimizer: Any,
    epochs: int = 1,
) -> nn.Module:
    model = StitchedModel(front, end, *layers, stitch)
    steps = optimizer(model.parameters())
    for _ in range(epochs):
        for inputs, labels in batches():
            with torch.no_grad():
                own, other = end(inputs), front(inputs)
            steps.zero_grad()
            loss(model(inputs), own, other, labels).backward()
            steps.step()
    return stitch


def soft(z: Tensor, own: Tensor, *_: Tensor) -> Tensor:
    return F.cross_entropy(z, own.softmax(1))


LOSSES: dict[str, tuple[dict, Any]] = {
    "soft": ({}, soft),
    "warm": ({"temperature": 2.5}, lambda z, own, *_: 6.25 * F.cross_entropy(z / 2.5, (own / 2.5).softmax(1))),
    "kl": (
        {"loss": "kl", "temperature": 2.0},
        lambda z, own, *_: 4 * F.kl_div((z / 2).log_softmax(1), (own / 2).softmax(1), reduction="batchmean"),
    ),
    "front": ({"target": "soft_front"}, lambda z, own, other, _: F.cross_entropy(z, other.softmax(1))),
    "mean": (
        {"target": "soft_mean"},
        lambda z, own, other, _: F.cross_entropy(z, (own.softmax(1) + other.softmax(1)) / 2),
    ),
    "mean logits": (
        {"target": "soft_mean_logits"},
        lambda z, own, other, _: F.cross_entropy(z, ((own + other) / 2).softmax(1)),
    ),
    "hard": ({"target": "hard"}, lambda z, own, other, labels: F.cross_entropy(z, labels)),
    "low rank": ({"rank": 2}, soft),
}


@pytest.mark.parametrize("layers", [("bn1", "bn1"), ("relu1", "conv1"), ("bn2", "relu2"), ("fc", "fc")])
def test_stitches_trained_together_are_those_of_the_plain_way(layers: tuple[str, str]) -> None:
    front, end = conv(0), conv(1)
    found = sk.match_tasks(front, end, layers, batches(), [options for options, _ in LOSSES.values()], **PLAIN)
    start = sk.match_direct(front, end, [layers], batches())[layers]
    moments = sk.Moments(start.weight.shape[1], start.weight.shape[0], precision="float64")
    for inputs, _ in batches():
        moments.update(
            activations(front, [layers[0]], inputs)[layers[0]], activations(end, [layers[1]], inputs)[layers[1]]
        )
    reduced = sk.reduced_rank_path(moments).at(2)
    for (options, loss), match in zip(LOSSES.values(), found, strict=True):
        low_rank = "rank" in options
        stitch = (reduced if low_rank else start).to_module(low_rank=low_rank, dtype=torch.float64)
        before = {name: t.clone() for name, t in stitch.state_dict().items()}
        plain_way(front, end, layers, stitch, loss, lambda p: torch.optim.SGD(p, lr=0.2))
        for name, expected in stitch.state_dict().items():
            assert_close(match.stitch.state_dict()[name], expected, rtol=1e-6, atol=1e-7)
        assert any(not torch.allclose(before[name], t, atol=1e-5) for name, t in stitch.state_dict().items())


def test_the_defaults_are_the_schedule_of_the_paper() -> None:
    plan = sk.Schedule()
    assert (plan.epochs, plan.batch_size, plan.optimizer, plan.learning_rate) == (30, 128, "adam", 1e-3)
    assert [plan.rate_at(epoch) for epoch in (0, 9, 10, 19, 20, 29)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name, kind", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimisers_are_those_of_torch(name: str, kind: Any) -> None:
    front, end = conv(0), conv(1)
    options = {"epochs": 2, "shuffle": False, "batch_size": 20, "optimizer": name, "milestones": ()}
    model = sk.match_task(
        front, end, "bn1", batches(), learning_rate=0.01, weight_decay=0.1, init="identity", **options
    )
    expected = plain_way(
        front,
        end,
        ("bn1", "bn1"),
        Stitch.identity(4).double(),
        soft,
        lambda p: kind(p, lr=0.01, weight_decay=0.1),
        epochs=2,
    )
    assert_close(model.stitch.weight, expected.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layer, kind", [("embed", "tokens"), ("pooled", "features")])
def test_tokens_and_features(layer: str, kind: str) -> None:
    front, end = tokens(0), tokens(1)
    configs = [{"init": "identity"}, {"init": "identity", "target": "hard"}, {"init": "random", "seed": 3}]
    found = sk.match_tasks(front, end, layer, batches(), configs, **PLAIN)
    expected = plain_way(
        front, end, (layer, layer), Stitch.identity(4).double(), soft, lambda p: torch.optim.SGD(p, lr=0.2)
    )
    assert_close(found[0].stitch.weight, expected.weight)
    assert_close(found[0].stitch.bias, expected.bias)


def test_an_end_that_is_not_cut_gives_the_same() -> None:
    front, end = conv(0), conv(1, skip=True)
    with pytest.warns(UserWarning, match="is not cut"):
        found = sk.match_tasks(front, end, "bn1", batches(), [{}, {"target": "hard"}], **PLAIN)
    stitch = sk.match_direct(front, end, ["bn1"], batches())["bn1"].to_module(dtype=torch.float64)
    with pytest.warns(UserWarning, match="is not cut"):
        plain_way(front, end, ("bn1", "bn1"), stitch, soft, lambda p: torch.optim.SGD(p, lr=0.2))
    assert_close(found[0].stitch.weight, stitch.weight, rtol=1e-6, atol=1e-7)


def test_other_spatial_sizes_are_resampled() -> None:
    front, end = conv(0), conv(1, stride=2)
    model = sk.match_task(front, end, "bn2", batches(side=9), resize="bilinear", **PLAIN)
    assert model.stitch.size == (3, 3) and model.stitch.resize == "bilinear"
    assert model(batches(side=9)[0][0]).shape == (20, 3)


def test_models_are_left_as_they_were_and_run_no_more_than_they_must() -> None:
    front, end = conv(0).train(), conv(1).train()
    before = {name: t.clone() for model in (front, end) for name, t in model.state_dict().items()}
    ran: list[str] = []
    for side, model in (("front", front), ("end", end)):
        for name in ("conv1", "conv2", "fc"):
            model.get_submodule(name).register_forward_hook(lambda *_, key=f"{side} {name}": ran.append(key))
    sk.match_tasks(front, end, "bn1", batches(), [{}, {}, {}], **{**PLAIN, "epochs": 5})
    counts = {key: ran.count(key) for key in ran}
    # three batches and a look at the first; the end's rest also for 3 steps in each of 5 epochs, not for each stitch
    assert counts["end conv1"] == 4 and counts["end fc"] == 4 + 1 + 15
    assert counts["front conv1"] == 3 and "front conv2" not in counts
    for model in (front, end):
        assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[n]) for m in (end,) for n, t in m.state_dict().items())


def test_a_hint_runs_nothing_that_follows_the_layer() -> None:
    front, end, ran = conv(0), conv(1), []
    end.fc.register_forward_hook(lambda *_: ran.append(1))
    sk.match_task(front, end, "bn1", batches(), target="hint", **{**PLAIN, "epochs": 3})
    assert len(ran) == 2  # the look at the first batch


def test_uncached_batches_give_the_same_and_are_read_in_every_epoch() -> None:
    class Counted(list):
        read = 0

        def __iter__(self):
            Counted.read += 1
            return super().__iter__()

    options = {**PLAIN, "epochs": 2}
    cached, fresh = (
        sk.match_task(conv(0), conv(1), "bn1", Counted(batches()), cache=cache, **options) for cache in (True, False)
    )
    assert Counted.read == 1 + 3
    assert_close(cached.stitch.weight, fresh.stitch.weight)
    assert cached.history.loss == pytest.approx(fresh.history.loss)


def test_a_cache_on_disk_gives_the_same_bits(tmp_path) -> None:
    found = []
    for memory in (None, 0):
        found.append(sk.match_task(conv(0), conv(1), "bn1", batches(), memory=memory, folder=tmp_path, epochs=2))
    assert torch.equal(found[0].stitch.weight, found[1].stitch.weight)
    assert not list(tmp_path.iterdir())


def test_seeds_order_the_data_and_same_seeds_give_the_same_bits() -> None:
    def run(seed: int) -> Tensor:
        return sk.match_task(conv(0), conv(1), "bn1", batches(), epochs=2, batch_size=10, seed=seed).stitch.weight

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_compiled_stitches_are_the_same() -> None:
    configs = [{}, {"target": "hard", "rank": 2}]
    plain = sk.match_tasks(conv(0), conv(1), "bn1", batches(), configs, **PLAIN)
    compiled = sk.match_tasks(conv(0), conv(1), "bn1", batches(), configs, compile={"backend": "aot_eager"}, **PLAIN)
    for a, b in zip(plain, compiled, strict=True):
        for expected, got in zip(a.stitch.parameters(), b.stitch.parameters(), strict=True):
            assert_close(got, expected)


def test_mixed_precision_learns_what_full_precision_does() -> None:
    front, end = conv(0).float(), conv(1).float()
    data = [(x.float(), y) for x, y in batches()]
    options = {**PLAIN, "epochs": 10, "init": "random"}
    full, mixed = (sk.match_task(front, end, "bn1", data, amp=amp, **options) for amp in (None, torch.bfloat16))
    assert mixed.stitch.weight.dtype == torch.float32
    assert not torch.equal(full.stitch.weight, mixed.stitch.weight)
    moved = full.history.distance[-1]
    assert (full.stitch.weight - mixed.stitch.weight).norm() < 0.1 * moved


def test_batchnorm_in_train_mode_takes_the_statistics_of_each_stitchs_own_batch() -> None:
    front, end = conv(0), conv(1)
    before = {name: t.clone() for name, t in end.state_dict().items()}
    configs = [{"init": "identity"}, {"init": "random"}]
    found = sk.match_tasks(front, end, "conv1", batches(), configs, batch_norm="train", **PLAIN)
    assert all(torch.equal(t, before[name]) for name, t in end.state_dict().items())
    assert not any(m.training for m in end.modules())

    twin = conv(1)
    stitch, model = Stitch.identity(4).double(), conv(0)
    steps = torch.optim.SGD(stitch.parameters(), lr=0.2)
    for inputs, _ in batches():
        x = activations(model, ["conv1"], inputs)["conv1"]
        wanted = end(inputs).detach().softmax(1)
        twin.train()
        with twin.conv1.register_forward_hook(lambda *_, x=x: stitch(x)):
            loss = F.cross_entropy(twin(inputs), wanted)
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert_close(found[0].stitch.weight, stitch.weight)


# ------------------------------------------------------------------------------------------ history, stopping


def test_history_says_what_happened() -> None:
    front, end = conv(0), conv(1)
    model = sk.match_task(front, end, "bn2", batches(), validation=batches(seed=1), epochs=3, batch_size=10)
    history = model.history
    assert history.step == [0, 5, 10, 15] and history.epoch == [0, 0, 1, 2]
    assert history.distance[0] == 0 and history.distance[-1] > 0
    assert not any(
        math.isnan(v) for name in ("loss", "accuracy", "cka", "r2", "validation_loss") for v in getattr(history, name)
    )
    assert history.rows()[2]["loss"] == history.loss[2]

    with torch.no_grad():  # the state that was kept is the best one, and its numbers are those of the model itself
        z = torch.cat([model(x) for x, _ in batches(seed=1)])
        wanted = torch.cat([end(x) for x, _ in batches(seed=1)]).softmax(1)
        x = torch.cat([activations(front, ["bn2"], x)["bn2"] for x, _ in batches()])
        y = torch.cat([activations(end, ["bn2"], x)["bn2"] for x, _ in batches()])
    assert F.cross_entropy(z, wanted).item() == pytest.approx(min(history.validation_loss), rel=1e-6)
    best = history.validation_loss.index(min(history.validation_loss))
    stitched = model.stitch(x).movedim(1, -1).flatten(0, -2).detach()
    own = y.movedim(1, -1).flatten(0, -2)
    assert history.cka[best] == pytest.approx(sk.cka(stitched, own), rel=1e-6)
    expected = 1 - (stitched - own).square().sum() / (own - own.mean(0)).square().sum()
    assert history.r2[best] == pytest.approx(expected.item(), rel=1e-5)


def test_entries_at_every_few_steps_and_the_callback_at_every_one() -> None:
    told = []
    found = sk.match_tasks(
        conv(0), conv(1), "bn1", batches(), [{}, {}], epochs=2, batch_size=10, record_every=2,
        callback=lambda step, steps, losses: told.append((step, steps, losses.tolist())),
    )  # fmt: skip
    assert found[0].history.step == [0, 2, 4, 6, 8, 10]
    assert [step for step, *_ in told] == list(range(1, 11)) and {steps for _, steps, _ in told} == {10}
    # both samples in full batches of ten, so that an entry is the mean of two steps
    assert found[1].history.loss[1] == pytest.approx((told[0][2][1] + told[1][2][1]) / 2)


def test_a_stitch_that_diverges_stops_alone_keeps_its_best_and_says_so() -> None:
    configs = [{"name": "calm"}, {"name": "wild", "learning_rate": 1e200}, {"name": "loud", "learning_rate": 1e4}]
    with pytest.warns(UserWarning, match=r"the loss of (wild|loud) diverged by step \d+, in epoch \d") as said:
        calm, wild, loud = sk.match_tasks(conv(0), conv(1), "bn1", batches(), configs, **{**PLAIN, "epochs": 4})
    assert len(said) == 2
    assert (calm.history.stopped, wild.history.stopped, loud.history.stopped) == ("", "diverged", "diverged")
    start = sk.match_direct(conv(0), conv(1), ["bn1"], batches())["bn1"]
    for match in (wild, loud):
        assert_close(match.stitch.weight, start.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = sk.match_task(conv(0), conv(1), "bn1", batches(), **{**PLAIN, "epochs": 4})
    assert_close(calm.stitch.weight, alone.stitch.weight)


def test_early_stopping_returns_the_best() -> None:
    configs = [{"learning_rate": 0.0}, {"learning_rate": 0.02}]
    still, moving = sk.match_tasks(
        conv(0), conv(1), "bn1", batches(), configs, validation=batches(seed=1), optimizer="sgd", epochs=6, patience=2
    )
    assert still.history.stopped == "patience" and len(still.history) == 1 + 2
    assert moving.history.epoch[-1] > still.history.epoch[-1]
    assert min(moving.history.validation_loss) < moving.history.validation_loss[0]


def test_no_epoch_gives_the_start() -> None:
    model = sk.match_task(conv(0), conv(1), "bn1", batches(), epochs=0)
    start = sk.match_direct(conv(0), conv(1), ["bn1"], batches())["bn1"]
    assert_close(model.stitch.weight, start.weight)
    assert isinstance(model.stitch, Stitch) and not isinstance(model.stitch, LowRankStitch)
