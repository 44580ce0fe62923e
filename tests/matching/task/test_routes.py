"""Stitches between several layers and networks, trained together, are those that each is by itself."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import stitchkern as sk
from stitchkern.errors import LayerError, NotFiniteError, ShapeError
from tests.matching.task.networks import PLAIN, batches, conv, made, tokens

OPTIONS: dict[str, Any] = {**PLAIN, "epochs": 2}

#: several into one layer, several out of one layer, the same route twice, and every kind of target
MIXED: list[dict[str, Any]] = [
    {"layer": "bn1"},
    {"layer": ("conv1", "bn1"), "target": "latent"},
    {"layer": ("bn1", "relu1"), "target": "hard"},
    {"layer": "bn2", "target": "hint"},
    {"layer": ("conv1", "bn1"), "front": 1, "target": "soft_front"},
    {"layer": "bn1", "front": 1, "target": "soft_mean", "temperature": 2.0},
    {"layer": "bn1", "end": 1, "rank": 2, "init": "random", "seed": 4},
    {"layer": "fc", "front": 1, "end": 1, "cka": 0.3},
    {"layer": "bn1", "target": "latent", "target_layers": ("fc",)},
    {"layer": ("bn2", "relu2"), "end": 1, "target": "latent"},
    {"layer": ("conv1", "bn1"), "target": "hint"},
]


def networks() -> tuple[list[Any], list[Any]]:
    return [conv(0), conv(2)], [conv(1), conv(3)]


def note(where: list[list[float]], step: int, steps: int, losses: Tensor) -> None:
    where.append(losses.tolist())


@pytest.mark.parametrize("cache", [True, False])
def test_together_they_are_what_each_is_alone(cache: bool) -> None:
    fronts, ends = networks()
    told: list[list[float]] = []
    together = sk.match_tasks(
        fronts, ends, None, batches(), MIXED, cache=cache, callback=partial(note, told), **OPTIONS
    )
    for i, (options, match) in enumerate(zip(MIXED, together, strict=True)):
        rest = {name: value for name, value in options.items() if name not in ("layer", "front", "end")}
        front, end = fronts[options.get("front", 0)], ends[options.get("end", 0)]
        own: list[list[float]] = []
        (alone,) = sk.match_tasks(
            front,
            end,
            options["layer"],
            batches(),
            [rest],
            callback=partial(note, own),
            **OPTIONS,
        )
        assert match.model.front is front and match.model.end is end
        assert (match.model.front_layer, match.model.end_layer) == (alone.model.front_layer, alone.model.end_layer)
        for name, expected in alone.stitch.state_dict().items():
            assert_close(match.stitch.state_dict()[name], expected, rtol=1e-9, atol=1e-11)
        assert [step[i] for step in told] == pytest.approx([step[0] for step in own], rel=1e-5)
        for name in ("loss", "accuracy", "cka", "r2", "distance"):
            assert getattr(match.history, name) == pytest.approx(
                getattr(alone.history, name), rel=1e-7, abs=1e-9, nan_ok=True
            )


def test_networks_run_once_for_all_and_an_entry_once_a_step() -> None:
    fronts, ends = networks()
    ran: list[str] = []
    for side, models in (("front", fronts), ("end", ends)):
        for i, model in enumerate(models):
            for name in ("conv1", "conv2", "fc"):
                model.get_submodule(name).register_forward_hook(lambda *_, key=f"{side} {i} {name}": ran.append(key))
    configs = [{"layer": layer, "front": f} for f in (0, 1) for layer in ("bn1", ("conv1", "bn1"), "bn2")]
    sk.match_tasks(fronts, ends, None, batches(), configs, **{**PLAIN, "epochs": 4})
    assert ran.count("front 0 conv1") == ran.count("front 1 conv1") == ran.count("front 0 conv2") == 3
    assert "front 0 fc" not in ran and not any(key.startswith("end 1") for key in ran)
    # three batches and a look at the first; cuts into bn1, twice looked at, and bn2, once in each of 12 steps
    assert ran.count("end 0 conv1") == 4
    assert ran.count("end 0 conv2") == 4 + 1 + 12
    assert ran.count("end 0 fc") == 4 + 2 + 24


def test_ends_of_other_classes_and_sizes() -> None:
    fronts, ends = [conv(0), conv(2, c=6)], [conv(1, stride=2), conv(3, classes=5)]
    configs = [
        {"layer": "bn2"},
        {"layer": ("bn2", "relu2"), "front": 1},
        {"layer": "bn2", "end": 1},
        {"layer": "bn1", "front": 1, "end": 1, "target": "hard"},
    ]
    data = batches(side=9)
    found = sk.match_tasks(fronts, ends, None, data, configs, resize="nearest", **OPTIONS)
    assert [match.stitch.size for match in found] == [(3, 3), (3, 3), None, None]
    for options, match in zip(configs, found, strict=True):
        front, end = (models[options.get(name, 0)] for name, models in (("front", fronts), ("end", ends)))
        target = options.get("target", "soft")
        alone = sk.match_task(front, end, options["layer"], data, resize="nearest", target=target, **OPTIONS)
        assert_close(match.stitch.weight, alone.stitch.weight, rtol=1e-9, atol=1e-11)
        assert match.model(data[0][0]).shape == (20, 5 if options.get("end") else 3)


def test_tokens_into_two_layers() -> None:
    configs = [{"layer": "embed"}, {"layer": ("mix", "embed")}, {"layer": "pooled"}]
    together = sk.match_tasks(tokens(0), tokens(1), None, batches(), configs, **OPTIONS)
    for config, match in zip(configs, together, strict=True):
        alone = sk.match_task(tokens(0), tokens(1), config["layer"], batches(), **OPTIONS)
        assert_close(match.stitch.weight, alone.stitch.weight, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*is not cut")
def test_ends_that_are_not_cut_and_batch_statistics() -> None:
    front, end = conv(0), conv(1, skip=True)
    configs = [{"layer": "bn1"}, {"layer": ("conv1", "bn1")}, {"layer": "conv2", "target": "latent"}]
    for options in (OPTIONS, {**OPTIONS, "batch_norm": "train"}):
        together = sk.match_tasks(front, end, None, batches(), configs, **options)
        for config, match in zip(configs, together, strict=True):
            target = config.get("target", "soft")
            alone = sk.match_task(front, end, config["layer"], batches(), target=target, **options)
            assert_close(match.stitch.weight, alone.stitch.weight, rtol=1e-9, atol=1e-11)


def test_interrupted_and_stopped_one_by_one(tmp_path) -> None:
    class Stopped(Exception):
        pass

    def run(stop: int | None = None, **options: Any) -> list[Any]:
        def callback(step: int, *_: Any) -> None:
            if step == stop:
                raise Stopped

        fronts, ends = networks()
        schedule = {"epochs": 3, "batch_size": 10, "learning_rate": 0.01, "patience": 1}
        return sk.match_tasks(fronts, ends, None, batches(), MIXED, callback=callback,
                              validation=batches(seed=1), save_every=0, **schedule, **options)  # fmt: skip

    expected = run()
    for stop in (4, 9):
        with pytest.raises(Stopped):
            run(stop, checkpoint=tmp_path / "run.pt")
    for a, b in zip(expected, run(checkpoint=tmp_path / "run.pt"), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a.stitch.parameters(), b.stitch.parameters(), strict=True))
        assert repr(a.history) == repr(b.history)


def test_compiled_with_several_activations() -> None:
    configs = [{"layer": "bn1"}, {"layer": ("conv1", "bn1")}, {"layer": "bn2"}]
    plain = sk.match_tasks(conv(0), conv(1), None, batches(), configs, **OPTIONS)
    compiled = sk.match_tasks(conv(0), conv(1), None, batches(), configs, compile={"backend": "aot_eager"}, **OPTIONS)
    for a, b in zip(plain, compiled, strict=True):
        assert_close(a.stitch.weight, b.stitch.weight, rtol=1e-9, atol=1e-11)


class Steps(nn.Module):
    """As many layers to stitch into as there are."""

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        self.steps, self.fc = nn.ModuleList(nn.Linear(4, 4) for _ in range(count)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for step in self.steps:
            x = torch.tanh(step(x))
        return self.fc(x)


@pytest.mark.skipif(
    "isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="one count of graphs for all"
)
def test_compiled_into_more_layers_than_one_function_may_have_graphs() -> None:
    made_graphs: list[str] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        made_graphs.append("one")
        return graph.forward

    configs = [{"layer": f"steps.{i}", "init": "random"} for i in range(10)]
    torch.compiler.reset()
    sk.match_tasks(
        made(Steps, 0), made(Steps, 1), None, batches((20,), side=2), configs, compile={"backend": backend}, **OPTIONS
    )
    assert len(made_graphs) == 10


class Words(nn.Module):
    """Takes no numbers, so that its type is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embed(x).mean(1))


def test_fronts_of_other_types() -> None:
    fronts, end = [made(Words, 0).bfloat16(), made(Words, 1), made(Words, 2).float()], made(Words, 3)
    g = torch.Generator().manual_seed(0)
    data = [(torch.randint(9, (n, 5), generator=g), torch.randint(3, (n,), generator=g)) for n in (20, 1)]
    configs = [{"front": i, "target": target} for i in range(3) for target in ("hint", "soft_mean")]
    for config, match in zip(configs, sk.match_tasks(fronts, end, "embed", data, configs, **OPTIONS), strict=True):
        front, target = fronts[config["front"]], config["target"]
        alone = sk.match_task(front, end, "embed", data, target=target, **OPTIONS)
        assert_close(match.stitch.weight, alone.stitch.weight, rtol=1e-9, atol=1e-11)
        x = front.embed(data[0][0]).double()
        assert_close(match.model(data[0][0]), end.fc(match.stitch(x).mean(1)))


def test_bad_routes() -> None:
    fronts, ends = networks()

    def run(configs: list[dict[str, Any]], layer: Any = "bn1", front: Any = fronts, end: Any = ends, **options: Any):
        return sk.match_tasks(front, end, layer, options.pop("data", batches()), configs, **{**OPTIONS, **options})

    with pytest.raises(ValueError, match="front must be the number of one of 2 fronts, from 0 on; got 2"):
        run([{"front": 2}])
    with pytest.raises(ValueError, match="end must be the number of one of 1 ends, from 0 on; got -1"):
        run([{"end": -1}], end=conv(1))
    with pytest.raises(TypeError, match="front must be a number of one of the run's fronts; got 'seed'"):
        run([{"front": "seed"}])
    with pytest.raises(TypeError, match=r"layer must be a name or \(front layer, end layer\); got None"):
        run([{"layer": "bn1"}, {}], layer=None)
    with pytest.raises(TypeError, match=r"layer must be a name or \(front layer, end layer\); got \('bn1',\)"):
        run([{"layer": ("bn1",)}])
    for wrong, got in (([], "none"), (3, "int"), (["conv"], "str"), ([conv(0), nn.Linear], "Conv, type")):
        with pytest.raises(TypeError, match=rf"front must be a torch.nn.Module, or a list of some; got {got}"):
            run([{}], front=wrong)
    assert run([{"front": 1}], front=nn.ModuleList(fronts))[0].model.front is fronts[1]
    with pytest.raises(TypeError, match=r"end must be one torch.nn.Module; match_tasks takes several"):
        sk.match_task(fronts[0], ends, "bn1", batches())
    with pytest.raises(ValueError, match="fronts and ends must be on one device; got cpu, meta"):
        run([{}, {"end": 1}], end=[conv(1), conv(3).to("meta")])
    broken = conv(3)
    with torch.no_grad():
        broken.fc.bias.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="end 1's own outputs hold NaN or Inf"):
        run([{}, {"end": 1}], end=[conv(1), broken])
    for wrong in ({"target": "hard"}, sk.TaskConfig()):
        with pytest.raises(TypeError, match=r"configs must be a list, of one for each stitch; got .* alone"):
            run(wrong)
    with pytest.raises(TypeError, match="a stitch takes a TaskConfig or a mapping of its attributes; got 'hard'"):
        run(["hard"])
    with pytest.raises(TypeError, match="target_layers must be a list of names; got 'fc'"):
        run([{"target": "latent", "target_layers": "fc"}])
    with pytest.raises(LayerError, match="has no layer 'bn7'"):
        run([{}, {"layer": ("bn7", "bn1")}])
    with pytest.raises(ShapeError, match="differ in spatial size"):
        run([{}, {"layer": ("bn2", "bn1")}])
    with pytest.raises(ShapeError, match="same classes"):
        run([{}, {"end": 1, "target": "soft_front"}], end=[conv(1), conv(3, classes=5)])
    with pytest.raises(ShapeError, match="label"):
        run([{"target": "hard"}, {"end": 1}], end=[conv(1), conv(3, classes=2)])


class Pools(nn.Module):
    """Two pools that give one size for even sides and two for odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.low, self.high = nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.fc(self.low(y).mean((2, 3)) + self.high(y).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*is not cut")
def test_an_activation_that_two_layers_share_has_one_size() -> None:
    model, data = made(Pools, 0), [batches((20,), side=8)[0], batches((20,), side=9)[0]]
    configs = [{"layer": ("first", "low")}, {"layer": ("first", "high")}]
    run = {**PLAIN, "cache": False, "resize": "bilinear"}
    sk.match_tasks(model, model, None, data[:1], configs, **run)
    sk.match_tasks(model, model, None, data, configs[:1], **run)
    with pytest.raises(ShapeError, match="'first' → end layer 'high': sizes change from batch to batch"):
        sk.match_tasks(model, model, None, data, configs, **run)
