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
#: of each stitch, the seed of its front and the layer that it comes from; all enter one end at LAYER
CASES: dict[str, list[tuple[int, str]]] = {
    "1 stitch": [(0, LAYER)],
    "8 stitches": [(0, LAYER)] * 8,
    "6 stitches from 3 layers of 2 networks": [(s, f"layer2.{i}.add") for s in (0, 2) for i in range(3)],
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Batches = list[tuple[Tensor, Tensor]]
Answer = tuple[list[Tensor], list[float]]
Run = Callable[[str], Answer]


@functools.cache
def resnet(seed: int) -> nn.Module:
    models = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "paper" / "models.py"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models["resnet20"]()
        with torch.no_grad():
            model.train()(images()[0][0])  # running statistics of real activations
        return model.eval().to(DEVICE)


@functools.cache
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


def ours(case: str) -> Answer:
    times: list[float] = []
    seeds = sorted({seed for seed, _ in CASES[case]})
    configs = [
        TaskConfig(init=start(i), front=seeds.index(seed), layer=(layer, LAYER))
        for i, (seed, layer) in enumerate(CASES[case])
    ]
    found = sk.match_tasks(
        [resnet(seed) for seed in seeds], resnet(1), None, images(), configs,
        epochs=1, batch_size=BATCH, shuffle=False, callback=lambda *_: times.append(wait()),
    )  # fmt: skip
    return [match.stitch.weight.detach() for match in found], seconds(times)


def plain(case: str) -> Answer:
    end = resnet(1).requires_grad_(False)
    stitches = [Stitch.from_affine(*start(i)).to(DEVICE) for i in range(len(CASES[case]))]
    optimizers = [torch.optim.Adam(stitch.parameters(), lr=1e-3) for stitch in stitches]
    held: list[Tensor] = []
    times: list[float] = []
    for inputs, _ in images():
        inputs = inputs.to(DEVICE)
        for (seed, layer), stitch, optimizer in zip(CASES[case], stitches, optimizers, strict=True):
            front = resnet(seed)
            with torch.no_grad(), front.get_submodule(layer).register_forward_hook(lambda m, a, y: held.append(y)):
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
def expected_weights(case: str) -> list[Tensor]:
    return plain(case)[0]


@pytest.mark.parametrize("contender", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_step(case: str, contender: str, benchmark) -> None:
    expected = expected_weights(case)
    moved = max((w - start(i)[0].to(w)).abs().max().item() for i, w in enumerate(expected))
    times: list[float] = []

    def run() -> Answer:
        answer = WAYS[contender](case)
        times.extend(answer[1])
        return answer

    measure(
        benchmark,
        run,
        lambda: 0.0,  # the answer that is timed is the one that is verified
        family="task",
        case=f"a step of {case} at the middle of ResNet-20, {BATCH} images",
        contender=contender,
        error=lambda answer: max((a - b).abs().max().item() for a, b in zip(answer[0], expected, strict=True)) / moved,
        allowed=0.05,
        wrong=0.05,
        clock=lambda: times,
    )


if __name__ == "__main__":  # the GPU lane: both ways
    for case in CASES:
        found = {name: median(run(case)[1]) for name, run in WAYS.items()}
        print(f"{DEVICE}, {case}: " + ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in found.items()))
