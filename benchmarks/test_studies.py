"""Whole studies beside what one would write for them: hooks, both networks in full, one stitch at a time.

On the digits networks, least squares and training, the same batches, the same starts, on one thread as studies are on
networks this small. The plain way yields relative accuracies alone: no similarity, no behaviour, no page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import OURS, SMALL, measure
from stitchkern.matching import Schedule, TaskConfig, collect_moments
from stitchkern.matching.task.structure import trainee
from stitchkern.nn import Stitch
from stitchkern.statistics import Statistics
from stitchkern.studies import digits
from stitchkern.studies.catalogue.initialisation import INITS
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import Networks, Options, digits_networks, run_study
from stitchkern.studies.study.work import Work

pytest.importorskip("sklearn")

EPOCHS = 1 if SMALL else 15
PLAIN = "hooks, both networks in full, one stitch at a time"
Answer = list[float]


@functools.cache
def setting() -> tuple[Networks, FitAndTest]:
    with TemporaryDirectory() as folder:
        return digits_networks(Work(folder), quick=True)


def ours(study: str, column: int) -> Answer:
    networks, data = setting()
    with TemporaryDirectory() as folder:
        options = Options(Work(Path(folder)), layers=LAYERS[study], epochs=EPOCHS, repeats=1)
        rows = run_study(study, networks, data, options).tables[0].rows
    return [float(row[column]) for row in rows]


LAYERS = {"direct-vs-task": list(digits.LAYERS), "initialisation": ["bn3"]}


def direct_vs_task() -> Answer:
    """Relative accuracy of the trained stitch at each layer."""
    networks, data = setting()
    front, end = networks.pairs[0].models
    found = []
    for layer in LAYERS["direct-vs-task"]:
        x, y = (rows(model, layer, data) for model in (front, end))
        ones = torch.cat([x, x.new_ones(len(x), 1)], 1)
        map_ = torch.linalg.lstsq(ones, y, driver="gelsd").solution.T
        stitch = Stitch.from_affine(map_[:, :-1].float(), map_[:, -1].float())
        found.append(relative(front, end, layer, train(front, end, layer, stitch, data), data))
    return found


def initialisation() -> Answer:
    """Relative accuracy from each start at one layer; the starts themselves are ours."""
    networks, data = setting()
    front, end = networks.pairs[0].models
    (layer,) = LAYERS["initialisation"]
    stats = Statistics.of(collect_moments(front, end, [(layer, layer)], data.fit)[layer, layer])
    found = []
    for init in INITS:
        stitch = trainee(TaskConfig(init=init), stats, dtype=torch.float32, device=torch.device("cpu")).module
        found.append(relative(front, end, layer, train(front, end, layer, stitch, data), data))
    return found


def rows(model: nn.Module, layer: str, data: FitAndTest) -> Tensor:
    """What the layer gives for every sample and position, (rows, channels) float64."""
    held: list[Tensor] = []
    with torch.no_grad(), model.get_submodule(layer).register_forward_hook(lambda m, a, y: held.append(y.clone())):
        for inputs, _ in data.fit:
            model(inputs)
    return torch.cat([t.movedim(1, -1).flatten(0, -2) for t in held]).double()


@contextmanager
def stitched(front: nn.Module, end: nn.Module, layer: str, stitch: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """The stitched network, while its hooks are there."""
    held: list[Tensor] = []
    take = front.get_submodule(layer).register_forward_hook(lambda m, a, y: held.append(y.clone()))
    give = end.get_submodule(layer).register_forward_hook(lambda m, a, y: stitch(held.pop()))

    def forward(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            front(inputs)
        return end(inputs)

    with take, give:
        yield forward


def train(front: nn.Module, end: nn.Module, layer: str, stitch: nn.Module, data: FitAndTest) -> nn.Module:
    plan, whole = Schedule(epochs=EPOCHS), data.fit
    for model in (front, end):
        model.requires_grad_(False)
    optimizer = torch.optim.Adam(stitch.parameters(), lr=plan.learning_rate)
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * plan.rate_at(epoch)
        for index in plan.order(len(whole.inputs), epoch):
            inputs = whole.inputs[index]
            with torch.no_grad():
                target = end(inputs).softmax(1)
            with stitched(front, end, layer, stitch) as network:
                loss = F.cross_entropy(network(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return stitch


@torch.no_grad()
def relative(front: nn.Module, end: nn.Module, layer: str, stitch: nn.Module, data: FitAndTest) -> float:
    right = own = 0
    for inputs, labels in data.test:
        own += int((end(inputs).argmax(1) == labels).sum())
        with stitched(front, end, layer, stitch) as network:
            right += int((network(inputs).argmax(1) == labels).sum())
    return right / own


WAYS: dict[str, dict[str, Callable[[], Answer]]] = {
    "direct-vs-task": {OURS: functools.partial(ours, "direct-vs-task", 3), PLAIN: direct_vs_task},
    "initialisation": {OURS: functools.partial(ours, "initialisation", 2), PLAIN: initialisation},
}
CASES = {
    "direct-vs-task": f"study direct-vs-task, digits, {len(LAYERS['direct-vs-task'])} layers, {EPOCHS} epochs",
    "initialisation": f"study initialisation, digits, 4 starts at one layer, {EPOCHS} epochs",
}


@functools.cache
def expected(study: str) -> Answer:
    with digits.one_thread():
        return WAYS[study][PLAIN]()


@pytest.mark.parametrize("contender", [OURS, PLAIN])
@pytest.mark.parametrize("study", CASES)
def test_study(study: str, contender: str, benchmark) -> None:
    answer = expected(study)
    with digits.one_thread():
        measure(
            benchmark,
            WAYS[study][contender],
            lambda: 0.0,  # the answer that is timed is the one that is verified
            family="task",
            case=CASES[study],
            contender=contender,
            error=lambda found: max(abs(a - b) for a, b in zip(found, answer, strict=True)),
            allowed=0.02,  # some samples out of 600 that lie on a boundary
        )
