"""A run that was interrupted goes on to the same bits as one that was not."""

from __future__ import annotations

import pytest
import torch

import stitchkern as sk
from stitchkern.errors import SampleMismatchError, StatisticsError
from tests.matching.task.networks import batches, conv

CONFIGS = [
    {},
    {"orthogonal": True},
    {"rank": 2, "init": "random"},
    {"l1": 0.01, "target": "hard"},
    {"learning_rate": 1e300, "name": "wild"},
    {"target": "latent", "mask": "correlation"},
]


class Stopped(Exception):
    pass


def run(path=None, stop: int | None = None, configs=CONFIGS, data=None, **options):
    def callback(step: int, steps: int, losses: torch.Tensor) -> None:
        if step == stop:
            raise Stopped

    options = {"epochs": 4, "batch_size": 10, "learning_rate": 0.01, "seed": 3, **options}
    return sk.match_tasks(
        conv(0), conv(1), "bn1", data or batches(), configs,
        checkpoint=path, save_every=0, callback=callback, validation=batches(seed=1), **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:the loss of wild diverged")
@pytest.mark.parametrize("stops", [[1], [7], [5, 6, 13, 20]])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interrupted_runs_end_in_the_same_bits(stops: list[int], optimizer: str, tmp_path) -> None:
    expected = run(optimizer=optimizer)
    path = tmp_path / "deep" / "run.pt"
    for stop in stops:
        with pytest.raises(Stopped):
            run(path, stop, optimizer=optimizer)
    for a, b in zip(expected, run(path, optimizer=optimizer), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a.stitch.parameters(), b.stitch.parameters(), strict=True))
        assert repr(a.history) == repr(b.history)  # NaN where there is nothing, so not ==
    assert [f.name for f in path.parent.iterdir()] == ["run.pt"]


def test_a_run_that_ended_is_only_read(tmp_path) -> None:
    first = run(tmp_path / "run.pt", configs=[{}])[0]
    told = []
    again = sk.match_tasks(
        conv(0), conv(1), "bn1", batches(), [{}], checkpoint=tmp_path / "run.pt", validation=batches(seed=1),
        epochs=4, batch_size=10, learning_rate=0.01, seed=3, callback=lambda *_: told.append(1),
    )[0]  # fmt: skip
    assert torch.equal(first.stitch.weight, again.stitch.weight) and not told


def test_a_checkpoint_of_another_run_is_refused(tmp_path) -> None:
    path = tmp_path / "run.pt"
    run(path, configs=[{}])
    with pytest.raises(ValueError, match=r"belongs to a run with learning_rate = 0.01, not 0.02"):
        run(path, configs=[{}], learning_rate=0.02)
    with pytest.raises(ValueError, match=r"belongs to a run with configs\[0\].target = 'soft', not 'hard'"):
        run(path, configs=[{"target": "hard"}])
    (first, labels), *rest = batches()
    shuffled = [(first.flip(0), labels.flip(0)), *rest]
    for data in (shuffled, batches(seed=7)):
        with pytest.raises(SampleMismatchError, match="other samples, or the same ones in another order"):
            run(path, configs=[{}], data=data)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StatisticsError, match=r"run.pt is no checkpoint of task-loss matching that can be read"):
        run(path, configs=[{}])


def test_a_checkpoint_of_other_networks_is_refused(tmp_path) -> None:
    fronts, ends = [conv(0), conv(2)], [conv(1), conv(3)]
    configs = [{"layer": ("bn1", "bn2")}, {"front": 1, "end": 1}]

    def go(fronts=fronts, ends=ends, path=tmp_path / "run.pt", resize="nearest", init=1.0, validation=None):
        first = {**configs[0], "init": (init * torch.eye(5, 4), None)}
        return sk.match_tasks(
            fronts, ends, "bn1", batches(), [first, configs[1]],
            checkpoint=path, epochs=1, resize=resize, validation=validation,
        )  # fmt: skip

    before = go()
    assert all(torch.equal(a.stitch.weight, b.stitch.weight) for a, b in zip(before, go(), strict=True))
    for other, message in [
        ({"fronts": fronts[::-1]}, r"fronts\[0\] = 'Conv \w+', not 'Conv \w+'"),
        ({"ends": [ends[0], conv(4)]}, r"ends\[1\] = 'Conv \w+', not"),
        ({"fronts": [fronts[0], conv(2, c=6)]}, r"fronts\[1\] = 'Conv \w+', not"),
        ({"resize": "bilinear"}, "resize = 'nearest', not 'bilinear'"),
        ({"init": 1.001}, r"configs\[0\].init = 'tuple \w+', not"),
    ]:
        with pytest.raises(ValueError, match=f"belongs to a run with {message}"):
            go(**other)
    with pytest.raises(SampleMismatchError, match="other samples"):
        go(validation=batches(seed=5))
