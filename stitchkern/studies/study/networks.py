"""The networks and the data that a study is made with: trained on digits here, or named by specs."""

from __future__ import annotations

import glob
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stitchkern.errors import SpecError
from stitchkern.models import load_model
from stitchkern.models.taps import leaves, map_tensors
from stitchkern.studies import digits
from stitchkern.studies.data import FitAndTest, Part
from stitchkern.studies.layers import check_takes, default_layers
from stitchkern.studies.names import short_name
from stitchkern.studies.stitching import Progress
from stitchkern.studies.study.work import Work, fingerprint

#: of the digits: seeds of the networks, epochs of their training
SEEDS, QUICK_SEEDS = 4, 2
EPOCHS, QUICK_EPOCHS = 20, 4


@dataclass(frozen=True)
class Network:
    """A trained network in eval mode. `key`: its `fingerprint`; `source`: where it comes from."""

    name: str
    model: nn.Module
    source: str
    key: str


@dataclass(frozen=True)
class NetworkPair:
    """The front of one network and the end of another."""

    front: Network
    end: Network

    @property
    def name(self) -> str:
        return f"{self.front.name} → {self.end.name}"

    @property
    def models(self) -> tuple[nn.Module, nn.Module]:
        return self.front.model, self.end.model

    @property
    def key(self) -> str:
        return f"{self.front.key} {self.end.key}"


def sources(pairs: Iterable[NetworkPair]) -> str:
    """Where the networks come from, each once, for people to read."""
    networks = {one.name: one.source for pair in pairs for one in (pair.front, pair.end)}
    return "; ".join(f"{name}: {source}" for name, source in networks.items())


@dataclass(frozen=True)
class Networks:
    """What a study looks at.

    Attributes:
        all: the networks, one at least.
        layers: which to look at, from input to output, where the study does not say otherwise.
        kind: ``"digits"``, the paper's ``"Tiny-10"`` or ``"ResNet-20"``, or ``""``.
        data_key: what tells these data from others.
    """

    all: list[Network]
    layers: list[str]
    kind: str
    data_key: str

    @property
    def pairs(self) -> list[NetworkPair]:
        """The first and the second, the third and the fourth, …: none shares a network with another.

        Raises SpecError for an odd number of networks.
        """
        if len(self.all) % 2:
            raise SpecError(f"this study takes pairs of networks; {len(self.all)} are given")
        return [NetworkPair(a, b) for a, b in zip(self.all[::2], self.all[1::2], strict=True)]

    def some_layers(self, count: int) -> list[str]:
        """So many of the layers at most, spread evenly."""
        if len(self.layers) <= count:
            return list(self.layers)
        return [self.layers[round((i + 0.5) * len(self.layers) / count - 0.5)] for i in range(count)]


@digits.one_thread()
def digits_networks(
    work: Work, *, quick: bool = False, device: str = "cpu", progress: Progress | None = None
) -> tuple[Networks, FitAndTest]:
    """Networks trained on scikit-learn's digits, on the CPU, or taken from `work` where they have been before.

    Raises SpecError without scikit-learn.
    """
    train, test = digits.digits()
    epochs, seeds = (QUICK_EPOCHS, QUICK_SEEDS) if quick else (EPOCHS, SEEDS)
    found = []
    for seed in range(seeds):
        report = progress and partial(progress, f"train seed {seed}")
        name = f"seed {seed}"
        found.append(digits_network(work, name, seed, train, epochs=epochs, device=device, progress=report))
    data = FitAndTest(train, test, f"the {digits.TEST} digits that the networks were not trained on")
    return Networks(found, list(digits.LAYERS), "digits", "digits"), data


def digits_network(
    work: Work,
    name: str,
    seed: int,
    data: digits.Batches,
    *,
    part: str = "",
    epochs: int,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Network:
    """One network trained on the digits, on the CPU, or taken from `work` where it has been before.

    `part` says which of the digits `data` are, where not all of those to train on; `options` go to `digits.train`.
    """
    key = {"digits": seed, "epochs": epochs, "source": inspect.getsource(digits), **options}
    made = {option: value for option, value in options.items() if option in ("width", "batch_norm")}
    model = work.train(
        {**key, "part": part} if part else key,
        partial(digits.network, seed, **made),
        partial(digits.train, seed, data, epochs=epochs, progress=progress, **options),
    )
    what = ", ".join([f"{epochs} epochs", *([part] if part else []), *(f"{k}={v}" for k, v in options.items())])
    return Network(name, model.to(device), f"stitchkern.studies.digits, {what}", fingerprint(model))


def networks_from_specs(
    specs: Sequence[str],
    data: FitAndTest,
    *,
    data_key: str = "",
    layers: Sequence[str] | None = None,
    device: str = "cpu",
) -> Networks:
    """Networks named by specs, as for `load_model`; without layers, with the `default_layers` of the first two.

    Raises as `load_model` and `default_layers`; SpecError for none or one named twice; ShapeError for a model that does
    not take the inputs.
    """
    if not specs:
        raise SpecError("name at least one model")
    if twice := [spec for spec in specs if list(specs).count(spec) > 1]:
        raise SpecError(f"each model must be named once; {twice[0]!r} is named more often")
    models = [load_model(spec, device) for spec in specs]
    test = [] if isinstance(data.test, Part) else [data.test]  # what is held out looks like the rest
    for batches in (*test, data.fit):
        inputs = map_tensors(next(iter(batches))[0], lambda tensor: tensor.to(device))
        for model, spec in zip(models, specs, strict=True):
            check_takes(model, inputs, repr(spec))
    found = [
        Network(name, model, spec, fingerprint(model))
        for name, model, spec in zip(_names(specs), models, specs, strict=True)
    ]
    chosen = list(layers) if layers else default_layers(models[0], models[min(1, len(models) - 1)], inputs)
    return Networks(found, chosen, kind_of(models[0]), f"{data_key} {_first_batches(data)} {data.note}")


def with_weights(model: str, patterns: Iterable[str]) -> list[str]:
    """Specs of one model with each of the weights files that the patterns name, in natural order within a pattern.

    Raises SpecError for a pattern that names no file, or a model that names weights already.
    """
    if "@" in model:
        raise SpecError(f"{model!r} names its weights already")
    found: list[str] = []
    for pattern in patterns:
        files = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern), key=_natural)
        if not files:
            raise SpecError(f"weights {pattern!r}: there is no such file")
        found += [f"{model}@{file}" for file in files]
    return found


def kind_of(model: nn.Module) -> str:
    """The paper's name for the network, from the shapes of its weights; "" for others."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if shapes.get("conv8.weight") == (64, 64, 1, 1) and shapes.get("fc.weight") == (10, 64):
        return "Tiny-10"
    if shapes.get("layer3.2.conv2.weight") == (64, 64, 3, 3) and shapes.get("fc.weight") == (10, 64):
        return "ResNet-20"
    return ""


def _names(specs: Sequence[str]) -> list[str]:
    """Short ones that differ, or else numbered."""
    names = [short_name(spec) for spec in specs]
    return names if len(set(names)) == len(names) else [f"{name} ({i})" for i, name in enumerate(names, start=1)]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _first_batches(data: FitAndTest) -> str:
    """A digest of the first batch of each part."""
    digest = hashlib.blake2b(digest_size=12)
    for batches in (data.fit, data.test):
        for tensor in leaves(next(iter(batches))):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
