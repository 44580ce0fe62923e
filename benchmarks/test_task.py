"""A step of task-loss matching beside the plain way: both networks in full, hooks, one stitch at a time.

Between the middle layers of two ResNet-20, 128 images a step; the stitches are verified to be the same before they are
timed. Computing the cache is not a part of a step; for each batch it costs less than a step of the plain way. On a GPU
where there is one.
"""

from __future__ import annotations

import functools
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stitchkern as sk
from benchmarks.measure import OURS, measure
from stitchkern.matching.task import TaskConfig
from stitchkern.nn import Stitch

BATCH, STEPS = 128, 5
LAYER = "layer2.1.add"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Batches = list[tuple[Tensor, Tensor]]
Answer = tuple[list[Tensor], list[float]]
Run = Callable[[nn.Module, nn.Module, Batches, int], Answer]


def resnet(seed: int) -> nn.Module:
    models = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "paper" / "models.py"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models["resnet20"]()
        with torch.no_grad():
            model.train()(images()[0][0])  # running statistics of real activations
        return model.eval().to(DEVICE)


def images() -> Batches:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(BATCH, 3, 32, 32, generator=g), torch.randint(10, (BATCH,), generator=g)) for _ in range(STEPS)
    ]


def start(stitch: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(stitch)
    return torch.eye(32) + 0.1 * torch.randn(32, 32, generator=g), torch.zeros(32)


def wait() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(front: nn.Module, end: nn.Module, batches: Batches, count: int) -> Answer:
    times: list[float] = []
    found = sk.match_tasks(
        front, end, LAYER, batches, [TaskConfig(init=start(i)) for i in range(count)],
        epochs=1, batch_size=BATCH, shuffle=False, callback=lambda *_: times.append(wait()),
    )  # fmt: skip
    return [match.stitch.weight.detach() for match in found], seconds(times)


def plain(front: nn.Module, end: nn.Module, batches: Batches, count: int) -> Answer:
    stitches = [Stitch.from_affine(*start(i)).to(DEVICE) for i in range(count)]
    optimizers = [torch.optim.Adam(stitch.parameters(), lr=1e-3) for stitch in stitches]
    for model in (front, end):
        model.requires_grad_(False)
    held: list[Tensor] = []
    times: list[float] = []
    for inputs, _ in batches:
        inputs = inputs.to(DEVICE)
        for stitch, optimizer in zip(stitches, optimizers, strict=True):
            with torch.no_grad(), front.get_submodule(LAYER).register_forward_hook(lambda m, a, y: held.append(y)):
                front(inputs)
                target = end(inputs).softmax(1)
            x = held.pop()
            swap = end.get_submodule(LAYER).register_forward_hook(lambda m, a, y, s=stitch, x=x: s(x))
            with swap:
                loss = F.cross_entropy(end(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times.append(wait())
    return [stitch.weight.detach() for stitch in stitches], seconds(times)


def seconds(times: list[float]) -> list[float]:
    """Of each step; the first, which sets everything up, does not count."""
    return torch.tensor(times, dtype=torch.float64).diff().tolist()


PLAIN = "both networks in full, hooks, one stitch at a time"
WAYS: dict[str, Run] = {OURS: ours, PLAIN: plain}


@functools.cache
def expected_weights(count: int) -> list[Tensor]:
    return plain(resnet(0), resnet(1), images(), count)[0]


@pytest.mark.parametrize("contender", WAYS)
@pytest.mark.parametrize("count", [1, 8])
def test_step(count: int, contender: str, benchmark) -> None:
    front, end, batches, expected = resnet(0), resnet(1), images(), expected_weights(count)
    moved = max((w - start(i)[0].to(w)).abs().max().item() for i, w in enumerate(expected))
    times: list[float] = []

    def run() -> Answer:
        answer = WAYS[contender](front, end, batches, count)
        times.extend(answer[1])
        return answer

    measure(
        benchmark,
        run,
        lambda: 0.0,  # the answer that is timed is the one that is verified
        family="task",
        case=f"a step of {count} stitch{'es' * (count > 1)} at the middle of ResNet-20, {BATCH} images",
        contender=contender,
        error=lambda answer: max((a - b).abs().max().item() for a, b in zip(answer[0], expected, strict=True)) / moved,
        allowed=0.05,
        wrong=0.05,
        clock=lambda: times,
    )


if __name__ == "__main__":  # the GPU lane: both ways, one stitch and eight
    for count in (1, 8):
        found = {name: median(run(resnet(0), resnet(1), images(), count)[1]) for name, run in WAYS.items()}
        print(f"{DEVICE}, {count} stitches: " + ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in found.items()))
