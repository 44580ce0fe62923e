"""Task-loss matching: stitches trained so that the stitched network does what the end does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stitchkern.matching.stream import Pair, Progress
from stitchkern.matching.task import processes
from stitchkern.matching.task.config import TaskConfig, as_config
from stitchkern.matching.task.history import History
from stitchkern.matching.task.identity import identity
from stitchkern.matching.task.route import Route, routes_of
from stitchkern.matching.task.samples import Samples
from stitchkern.matching.task.schedule import Schedule
from stitchkern.matching.task.source import Source
from stitchkern.matching.task.structure import trainee
from stitchkern.matching.task.trainer import Callback, Trainer
from stitchkern.models.cut import StitchedModel
from stitchkern.models.taps import device_of, frozen, leaves
from stitchkern.nn import ChannelMap, check_resize
from stitchkern.statistics import Statistics


@dataclass(frozen=True)
class TaskMatch:
    """One trained stitch.

    Attributes:
        config: what was asked for.
        model: front ▷ stitch ▷ end; ``model.stitch`` is the stitch.
        history: how it got there.
    """

    config: TaskConfig
    model: StitchedModel
    history: History

    @property
    def stitch(self) -> ChannelMap:
        return self.model.stitch  # type: ignore[return-value]


def match_task(
    front: nn.Module,
    end: nn.Module,
    layer: str | Pair,
    batches: Iterable[Any],
    *,
    init: Any = "least_squares",
    target: str = "soft",
    validation: Iterable[Any] | None = None,
    resize: str | None = None,
    cache: bool = True,
    memory: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    compile: bool | dict[str, Any] = False,
    callback: Callback | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    precision: str = "highest",
    **options: Any,
) -> StitchedModel:
    r"""Train the stitch W x + b with which front ▷ stitch ▷ end does best what ``target`` says.

    .. math:: \min_{W, b}\ E\,\ell\big(\mathrm{end}(W x + b),\ t\big) + \text{penalties}

    Front and end stay as they are. The front's activations and the end's targets are computed once, and each step runs
    only what follows the layer in the end, and its gradient only as far back as the stitch.

    Args:
        front, end: trained networks; they run frozen and in eval mode and are left as they were. The end's outputs are
            logits (n, classes), as for :func:`stitchkern.matching.evaluate`.
        layer: a name that both have, or (front layer, end layer).
        batches: (inputs, labels) or inputs alone; labels are needed for ``target="hard"``, and for accuracies.
        init: where W and b start: ``"least_squares"`` (in the structure asked for: of reduced rank, on the mask, or
            Procrustes), ``"random"`` (as torch.nn.Linear starts), ``"identity"``, ``"random_permutation"``,
            ``"procrustes"``, ``"permutation"`` (of least squared error), an :class:`stitchkern.AffineMap`, a stitch, or
            (weight, bias).
        target: ``"soft"``: the end's own probabilities; ``"soft_front"``, ``"soft_mean"``, ``"soft_mean_logits"``:
            those of the front, the mean of both, or of their mean logits; ``"hard"``: the labels; ``"latent"``:
            functional latent alignment, the mean over the stitched layer and all that follow of ‖a−b‖/‖b‖ to the end's
            own activations; ``"hint"``: mean squared error at the stitched layer alone.
        validation: batches that early stopping looks at; the state with the least loss there is then returned.
        resize: ``"bilinear"`` or ``"nearest"`` where spatial sizes differ; None makes that an error.
        cache: False reads the batches anew in every epoch, in their own order and sizes: for augmented data. The
            front then runs in every step, and so does the end for its targets.
        memory, folder: bytes of cache to keep in memory (None: a quarter of what is free) and where to put the rest.
        compile: True, or options of torch.compile, for stitch and end.
        callback: called as ``callback(step, steps, losses)`` after every step; see `Callback`.
        progress: of computing the cache, as for :func:`stitchkern.match_direct`.
        checkpoint, save_every: a file that the state is written to after each epoch, and (of one process) within one
            every so many seconds. Where it is there, the run goes on from it, to the same bits as without the
            interruption (on one machine, with as many threads).
        precision: of `Moments`.
        options: attributes of :class:`stitchkern.TaskConfig` (``loss``, ``temperature``, ``l1``, ``cka``, ``rank``,
            ``mask``, ``orthogonal``, …) and of :class:`stitchkern.Schedule` (``epochs``, ``batch_size``, ``optimizer``,
            ``learning_rate``, ``patience``, ``amp``, ``seed``, …), whose defaults are the paper's.

    Returns:
        The stitched network, with its :class:`stitchkern.matching.task.History` as ``.history``. It is the last state;
        with validation data, or where it stopped early, the best one.

    With torch.distributed initialised (torchrun), each process trains on its own batches, and gradients are averaged.

    Raises:
        ValueError: no batch; an option out of its range; labels missing; a checkpoint of another run.
        TypeError: an unknown option; a layer that is neither a name nor two of them.
        LayerError: an unknown layer, one that does not run once, or one that the end's outputs do not depend on.
        ShapeError: positions, tokens or channels that do not fit; other classes in the front than in the end where the
            target is made of both; labels that are no class of the end; outputs that are no logits.
        NotFiniteError: activations or targets hold NaN or Inf.
        StatisticsError: too few samples for the start; a damaged checkpoint.
        SampleMismatchError: the checkpoint was written over other samples, or another order.

    Warns when the loss diverges: the stitch then stops and its best state is kept.

    Source: Csiszárik et al. 2021 (arXiv 2110.14633), section 4.
    """
    for what, model in (("front", front), ("end", end)):
        if len(_several(what, model)) > 1:
            raise TypeError(f"{what} must be one torch.nn.Module; match_tasks takes several")
    names = {f.name for f in fields(TaskConfig)}
    own = {name: value for name, value in options.items() if name in names and name not in ("learning_rate", "seed")}
    run = {name: value for name, value in options.items() if name not in own}
    if "seed" in run:
        own["seed"] = run["seed"]
    found = match_tasks(
        front, end, layer, batches, [TaskConfig(init=init, target=target, **own)],
        validation=validation, resize=resize, cache=cache, memory=memory, folder=folder, compile=compile,
        callback=callback, progress=progress, checkpoint=checkpoint, save_every=save_every, precision=precision, **run,
    )[0]  # fmt: skip
    return found.model


def match_tasks(
    front: nn.Module | Sequence[nn.Module],
    end: nn.Module | Sequence[nn.Module],
    layer: str | Pair | None,
    batches: Iterable[Any],
    configs: Sequence[TaskConfig | Mapping[str, Any]],
    *,
    validation: Iterable[Any] | None = None,
    resize: str | None = None,
    cache: bool = True,
    memory: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    compile: bool | dict[str, Any] = False,
    callback: Callback | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    precision: str = "highest",
    **schedule: Any,
) -> list[TaskMatch]:
    """Several stitches trained together: see :func:`stitchkern.match_task`.

    Each may have its own start, target, penalties, structure and learning rate, and go between layers and networks of
    its own; they do not influence one another beyond rounding. Every network runs once over the data for all of them.
    In each step all stitches that enter one end at one layer go through what follows it as one batch, whatever layers
    and fronts they come from.

    Args:
        front, end: a network each, or several, which configs name by number (``front=1``).
        layer: for configs that name none (``layer="conv2"``, or (front layer, end layer)); None where all do.
        configs: a :class:`stitchkern.TaskConfig`, or a mapping of its attributes, for each stitch.
        schedule: attributes of :class:`stitchkern.Schedule`, for all.
        others: as for :func:`stitchkern.match_task`.

    Returns:
        A `TaskMatch` for each config, in order.

    Raises: as :func:`stitchkern.match_task`; ValueError for no config, for some with one and some with several labels
        per sample, for a front or end that there is not, or for networks on several devices.
    """
    check_resize(resize)
    if isinstance(configs, (TaskConfig, Mapping)):
        raise TypeError(f"configs must be a list, of one for each stitch; got {configs!r} alone")
    wanted = [as_config(config) for config in configs]
    if not wanted:
        raise ValueError("configs must hold at least one stitch")
    if len({config.loss == "binary" for config in wanted if config.of_classes}) > 1:
        raise ValueError("loss='binary' is for several labels per sample, which then is so for all configs")
    if compile is not False and any(config.target == "latent" for config in wanted):
        raise ValueError("target='latent' looks into the end while it runs, which compile does not allow")
    plan = Schedule(**schedule)
    if not cache and isinstance(batches, Iterator):
        raise ValueError("cache=False reads the batches more than once: pass a list or a DataLoader, not an iterator")
    fronts, ends = _several("front", front), _several("end", end)
    routes = routes_of(wanted, layer, len(fronts), len(ends))
    _check_devices(fronts, ends)
    source = Source(fronts, ends, routes, wanted, resize, precision)
    with ExitStack() as stack:
        # training needs gradients, whatever the caller is in
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(frozen(*dict.fromkeys([*fronts, *ends])))
        train: Samples | Iterable[Any]
        if cache:
            train = stack.enter_context(
                Samples(source, batches, memory=memory, folder=folder, moments=True, progress=progress)
            )
        else:
            for _ in source.parts(batches, progress, moments=True):
                pass
            train = batches
        if processes.active():
            for moments in source.moments.values():
                moments.all_reduce()
        held_out = None
        if validation is not None:
            held_out = stack.enter_context(Samples(source, validation, memory=memory, folder=folder))
        of_routes = {route: Statistics.of(moments) for route, moments in source.moments.items()}
        stats = [of_routes[route] for route in routes]
        trainees = [
            trainee(config, one, **_placed(source, route))
            for config, one, route in zip(wanted, stats, routes, strict=True)
        ]
        trainer = Trainer(
            source, trainees, wanted, stats, plan, train, held_out,
            compile=compile, callback=callback, path=None if checkpoint is None else Path(checkpoint),
            save_every=save_every, identity={} if checkpoint is None else identity(source, plan, train, held_out),
        )  # fmt: skip
        trainer.run()
    found = []
    for one, config, route, history in zip(trainees, wanted, routes, trainer.histories, strict=True):
        model = StitchedModel(fronts[route.front], ends[route.end], *route.pair, one.plain())
        model.history = history  # type: ignore[assignment]
        found.append(TaskMatch(config, model, history))
    return found


def _several(what: str, given: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList):
        return [given]
    found = list(given) if isinstance(given, Iterable) else [given]
    if not found or not all(isinstance(model, nn.Module) for model in found):
        got = ", ".join(type(one).__name__ for one in found) or "none"
        raise TypeError(f"{what} must be a torch.nn.Module, or a list of some; got {got}")
    return found


def _check_devices(fronts: list[nn.Module], ends: list[nn.Module]) -> None:
    models = [*fronts, *ends]
    where = dict.fromkeys(
        str(device_of(model)) for model in models if next(leaves(model.state_dict()), None) is not None
    )
    if len(where) > 1:
        raise ValueError(f"fronts and ends must be on one device; got {', '.join(where)}")


def _placed(source: Source, route: Route) -> dict[str, Any]:
    """Type, device and sizes of a stitch on this route: those of the end's parameters, which it feeds."""
    end = source.ends[route.end]
    dtype = next((t.dtype for t in end.parameters() if t.is_floating_point()), torch.float32)
    found: dict[str, Any] = {"dtype": dtype, "device": device_of(end)}
    return found | ({"size": source.sizes[route], "resize": source.resize} if route in source.sizes else {})
