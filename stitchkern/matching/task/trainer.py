"""Training of several stitches: every step runs what follows them once, for all that enter an end at one layer."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.matching.stream import length
from stitchkern.matching.task import checkpoint, processes
from stitchkern.matching.task.closeness import Closeness
from stitchkern.matching.task.config import TaskConfig
from stitchkern.matching.task.history import History
from stitchkern.matching.task.losses import chance
from stitchkern.matching.task.norms import BatchStatistics
from stitchkern.matching.task.objective import Objective
from stitchkern.matching.task.penalties import decay_to_zero
from stitchkern.matching.task.samples import Samples
from stitchkern.matching.task.schedule import Schedule
from stitchkern.matching.task.source import Part, Source
from stitchkern.matching.task.stack import Forward
from stitchkern.matching.task.structure import Trainee
from stitchkern.statistics import Statistics

Callback = Callable[[int, int, Tensor], None]
"""Called as callback(steps done, steps in all or 0, losses (stitches,)) after every step; NaN where one has stopped."""

#: a loss so many times that of the start, and of knowing nothing, has diverged
DIVERGED = 10.0
#: steps between looks at whether losses are still finite, which wait for the device
_LOOK = 100


class Trainer:
    """Trains ``trainees`` in place. Models must be frozen, in eval mode, around every call.

    Args:
        source: the models.
        trainees, configs, stats: the stitches, what is asked of each, and of (x, y) of each, for CKA and R².
        schedule: how long and how fast.
        train: `Samples`, or batches that are read anew in every epoch.
        validation: samples that stopping and keeping look at.
        compile: as for `Forward`.
        path, save_every: the checkpoint, written at each epoch's end and when so many seconds have passed.
        identity: what the checkpoint must have been made with.
    """

    def __init__(
        self,
        source: Source,
        trainees: Sequence[Trainee],
        configs: Sequence[TaskConfig],
        stats: Sequence[Statistics],
        schedule: Schedule,
        train: Samples | Iterable[Any],
        validation: Samples | None = None,
        *,
        compile: bool | dict[str, Any] = False,
        callback: Callback | None = None,
        path: Path | None = None,
        save_every: float = 60.0,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.source, self.trainees, self.configs, self.schedule = source, list(trainees), list(configs), schedule
        self.train, self.validation, self.callback = train, validation, callback
        self.objective = Objective(
            source,
            self.trainees,
            self.configs,
            {entry: Forward(tail, compile) for entry, tail in source.tails.items()},
            schedule.amp,
            schedule.batch_norm == "train",
        )
        self.closeness = [Closeness(one) for one in stats]
        self.device = source.device
        self.path, self.save_every, self.identity = path, save_every, identity or {}
        self.modules = nn.ModuleList([one.module for one in trainees])
        groups = [
            {
                "params": list(one.module.parameters()),
                "lr": schedule.learning_rate if config.learning_rate is None else config.learning_rate,
                "weight_decay": config.weight_decay,
            }
            for one, config in zip(trainees, configs, strict=True)
        ]
        self.rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        self.optimizer = schedule.make(groups)
        count = len(self.trainees)
        self.starts = [self._affine(i) for i in range(count)]
        self.histories = [History() for _ in range(count)]
        self.running = list(range(count))
        self.best = [self._copy(i) for i in range(count)]
        self.best_loss = [math.inf] * count
        self.waited = [0] * count
        self.first_loss = [math.nan] * count
        self.start_validation: dict[int, tuple[float, float]] = {}
        self.epoch = self.step_in_epoch = self.step = 0
        self.sums = torch.zeros(3, count, dtype=torch.float64, device=self.device)  # loss, hits, samples
        self.epoch_sums = self.sums.clone()

    # ------------------------------------------------------------------------------------------ the run

    def run(self) -> None:
        """From where the checkpoint left off, or from the start, to the end."""
        if self.path is not None:
            state = checkpoint.load(self.path, self.identity)
            if state is not None:
                self._restore(state)
        with ExitStack() as stack:
            if self.schedule.batch_norm == "train":
                for end in dict.fromkeys(self.source.ends):
                    stack.enter_context(BatchStatistics(end))
            self._epochs()
        for i in range(len(self.trainees)):
            if self.histories[i].stopped or self.validation is not None:
                self._put(i, self.best[i])

    def _epochs(self) -> None:
        if self.step == 0 and self.validation is not None:
            self.start_validation = self._validate()
            for i, (loss, _) in self.start_validation.items():
                self.best_loss[i] = loss if math.isfinite(loss) else math.inf
        saved = time.monotonic()
        while self.epoch < self.schedule.epochs and self.running:
            factor = self.schedule.rate_at(self.epoch)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            for part in self._parts():
                self._step(part)
                if not self.running:
                    break
                # several processes are at one step together only when an epoch ends
                due = self.path is not None and not processes.active() and time.monotonic() - saved >= self.save_every
                if due:
                    self._save()
                    saved = time.monotonic()
            self._close_epoch()
            if self.path is not None:
                self._save()
                saved = time.monotonic()

    def _parts(self) -> Iterator[Part]:
        """This epoch's batches from the next step on."""
        done = self.step_in_epoch
        if isinstance(self.train, Samples):
            order = self.schedule.order(len(self.train), self.epoch, processes.rank())
            for i, index in enumerate(order):
                if done <= i < self._steps():
                    yield self.train.take(index)
        else:
            for i, part in enumerate(self.source.parts(self.train)):
                if i >= done:
                    yield part

    def _steps(self) -> int:
        """In an epoch; 0 where that is unknown. Of several processes the fewest, so that all take part in each."""
        if not isinstance(self.train, Samples):
            return length(self.train)
        if not hasattr(self, "_steps_in_epoch"):
            self._steps_in_epoch = processes.least(-(-len(self.train) // self.schedule.batch_size), self.device)
        return self._steps_in_epoch

    def _step(self, part: Part) -> None:
        running = list(self.running)
        self.optimizer.zero_grad(set_to_none=True)
        losses, right = torch.empty(2, len(self.trainees), dtype=torch.float64, device=self.device)
        for some in self.objective.groups(running):
            # backwards at once: what one group holds for its gradient is gone before the next one runs
            found, hits = self.objective(part, some)
            (found.sum() + self._penalties(some).to(found)).backward()
            losses[some], right[some] = found.detach().double(), hits.double()
        losses, right = losses[running], right[running]
        if self.step == 0:
            self._note_start(losses, right, running)
        self._settle_gradients(running)
        self.optimizer.step()
        for i in running:
            decay_to_zero(self.optimizer, i, self.trainees[i], self.configs[i])
        self.step += 1
        self.step_in_epoch += 1
        now = torch.stack([losses, right, torch.ones_like(losses)]) * len(part)
        self.sums[:, running] += now
        self.epoch_sums[:, running] += now
        if self.step % _LOOK == 0:
            self._stop_what_is_lost()
        every = self.schedule.record_every
        if every is not None and self.step % every == 0:
            self._record(running)
        if self.callback is not None:
            told = torch.full((len(self.trainees),), math.nan, device=losses.device)
            told[running] = losses.float()
            self.callback(self.step, self._steps() * self.schedule.epochs, told)

    def _penalties(self, some: list[int]) -> Tensor:
        """What of the penalties has a gradient of its own."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i in some:
            if self.configs[i].cka:
                total = total + self.configs[i].cka * self.closeness[i].cka(self.trainees[i].affine()[0].double())
        return total

    def _settle_gradients(self, running: list[int]) -> None:
        gradients = []
        for i in running:
            one = self.trainees[i]
            for parameter in one.module.parameters():
                if parameter.grad is None:  # the loss does not reach it: a stitch of no effect
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            if one.mask is not None:
                weight: Any = one.module.weight
                weight.grad.mul_(one.mask)
        processes.mean_(gradients)

    def _close_epoch(self) -> None:
        lost = self._stop_what_is_lost()
        ended = list(self.running)
        found = self._validate() if self.validation is not None and ended else {}
        means = self._means(self.epoch_sums)
        for i in ended:
            loss = found[i][0] if found else means[i][0]
            limit = DIVERGED * max(
                self.first_loss[i], chance(self.configs[i], self.source.classes[self.source.routes[i].end])
            )
            if not math.isfinite(loss) or means[i][0] > limit:
                self._stop(i, "diverged")
                lost.append(i)
            elif loss < self.best_loss[i]:
                self.best_loss[i], self.best[i], self.waited[i] = loss, self._copy(i), 0
            else:
                self.waited[i] += 1
                if self.schedule.patience is not None and self.waited[i] >= self.schedule.patience:
                    self._stop(i, "patience")
        if self.schedule.record_every is None or found:
            self._record(ended, found)
        self.epoch_sums.zero_()
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    @torch.no_grad()
    def _validate(self) -> dict[int, tuple[float, float]]:
        """(loss, accuracy) of every running stitch on the validation data."""
        assert self.validation is not None
        sums = torch.zeros(3, len(self.trainees), dtype=torch.float64, device=self.device)
        for part in self.validation.in_order(self.schedule.batch_size):
            for some in self.objective.groups(self.running):
                losses, right = self.objective(part, some)
                sums[:, some] += torch.stack([losses.double(), right.double(), torch.ones_like(right)]) * len(part)
        means = self._means(sums)
        return {i: means[i] for i in self.running}

    def _means(self, sums: Tensor) -> list[tuple[float, float]]:
        total = processes.total_(sums.clone())
        loss, right = (total[:2] / total[2]).tolist()
        return list(zip(loss, right, strict=True))

    # ------------------------------------------------------------------------------------------ what is kept

    def _note_start(self, losses: Tensor, right: Tensor, running: list[int]) -> None:
        found = self._means(torch.stack([losses, right, torch.ones_like(losses)]))
        for at, i in enumerate(running):
            self.first_loss[i] = found[at][0]
            self._entry(i, found[at], self.start_validation.get(i, (math.nan, math.nan)))

    def _record(self, which: list[int], validated: dict[int, tuple[float, float]] | None = None) -> None:
        means = self._means(self.sums)
        for i in which:
            if not (self.histories[i].step and self.histories[i].step[-1] == self.step and not validated):
                self._entry(i, means[i], (validated or {}).get(i, (math.nan, math.nan)))
        self.sums.zero_()

    def _entry(self, i: int, trained: tuple[float, float], validated: tuple[float, float]) -> None:
        weight, bias = self._affine(i)
        start_weight, start_bias = self.starts[i]
        moved = (weight - start_weight).square().sum() + (bias - start_bias).square().sum()
        self.histories[i].add(
            step=self.step,
            epoch=self.epoch,
            loss=trained[0],
            accuracy=trained[1],
            validation_loss=validated[0],
            validation_accuracy=validated[1],
            cka=float(self.closeness[i].cka(weight)),
            r2=float(self.closeness[i].r2(weight, bias)),
            distance=float(moved.sqrt()),
            zeros=float((weight == 0).double().mean()),
        )

    def _stop_what_is_lost(self) -> list[int]:
        means = self._means(self.epoch_sums)
        lost = [i for i in self.running if not math.isfinite(means[i][0]) or not self._is_finite(i)]
        for i in lost:
            self._stop(i, "diverged")
        return lost

    def _stop(self, i: int, why: str) -> None:
        self.running.remove(i)
        self.histories[i].stopped = why
        if why == "diverged":
            name = self.configs[i].name or f"stitch {i}"
            warnings.warn(
                f"the loss of {name} diverged by step {self.step}, in epoch {self.epoch + 1}; its best state before is "
                f"kept. Lower the learning rate ({self.rates[i]:g})",
                stacklevel=2,
            )

    @torch.no_grad()
    def _affine(self, i: int) -> tuple[Tensor, Tensor]:
        weight, bias = self.trainees[i].affine()
        return weight.detach().double().clone(), (
            weight.new_zeros(len(weight), dtype=torch.float64) if bias is None else bias.detach().double().clone()
        )

    def _is_finite(self, i: int) -> bool:
        return all(bool(t.isfinite().all()) for t in self.trainees[i].module.parameters())

    def _copy(self, i: int) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.trainees[i].module.state_dict().items()}

    def _put(self, i: int, state: dict[str, Tensor]) -> None:
        self.trainees[i].module.load_state_dict(state)

    # ------------------------------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        assert self.path is not None
        processes.total_(self.sums)
        if processes.rank() == 0:
            checkpoint.save(self.path, self._state(), self.identity)
        else:
            self.sums.zero_()  # which the first process has now

    _PLAIN = ("running", "best", "best_loss", "waited", "first_loss", "epoch", "step_in_epoch", "step")

    def _state(self) -> dict[str, Any]:
        return {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "starts": self.starts,
            "histories": [history.state() for history in self.histories],
            "sums": self.sums,
            "epoch_sums": self.epoch_sums,
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.starts = [(w.to(self.device), b.to(self.device)) for w, b in state["starts"]]
        self.histories = [History.of(one) for one in state["histories"]]
        self.sums, self.epoch_sums = (state[name].to(self.device) for name in ("sums", "epoch_sums"))
        if processes.rank():
            self.sums.zero_()
        for name in self._PLAIN:
            setattr(self, name, state[name])
