"""How similar are all layers of two models? One pass over the data answers for every pair of layers."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

from stitchkern._version import __version__
from stitchkern.comparison.estimation import Estimate, Estimator, Plan, estimator_for
from stitchkern.comparison.features import FEATURES, Reader
from stitchkern.comparison.matrices import Held, matrix_where_small
from stitchkern.comparison.measures import find_measure
from stitchkern.comparison.processes import agree, gathered
from stitchkern.comparison.progress import reporter
from stitchkern.comparison.result import SimilarityMatrix
from stitchkern.comparison.samples import both_sides, is_pair
from stitchkern.errors import SampleMismatchError, ShapeError
from stitchkern.matching.stream import Progress
from stitchkern.models.taps import device_of, frozen, layer_shapes, resolve_layer
from stitchkern.ops import HSIC_KERNELS, PRECISIONS

ESTIMATORS = ("minibatch", "exact")


def compare(
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any] | tuple[Iterable[Any], Iterable[Any]],
    *,
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    measure: str | Callable[..., Any] = "cka",
    features: str = "flatten",
    estimator: str | None = None,
    unbiased: bool | None = None,
    kernel: str = "linear",
    bandwidth: float | str | None = None,
    blocks: int | None = None,
    mask: str | None = "attention_mask",
    identifiers: str = "id",
    names: tuple[str, str] | None = None,
    precision: str = "highest",
    memory: int | None = None,
    store: str | os.PathLike[str] | None = None,
    group: Any = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> SimilarityMatrix:
    r"""The similarity of every layer of one model with every layer of another, in one pass over the data.

    .. math:: \mathrm{CKA}_{ij} = \frac{\sum_k \mathrm{HSIC}_1(x^i_k, y^j_k)}{\sqrt{\sum_k \mathrm{HSIC}_1(x^i_k, x^i_k)
              \sum_k \mathrm{HSIC}_1(y^j_k, y^j_k)}} \text{ (minibatch)},\qquad
              \frac{\mathrm{HSIC}(x^i, y^j)}{\sqrt{\mathrm{HSIC}(x^i, x^i)\,\mathrm{HSIC}(y^j, y^j)}} \text{ (exact)}

    with x^i and y^j the activations of layer i of model_a and layer j of model_b for the same samples, and k the
    batches. "minibatch" (Nguyen et al. 2021) sums the unbiased HSIC₁ (Song et al. 2012) of each batch with equal
    weight, and keeps nothing of a batch: it is the estimate for any number of samples and features. Batches of fewer
    than 4 samples are left out, with a warning. "exact" takes all pairs of samples: from joint moments of all layers
    where these have at most 4,096 features together, and otherwise from the features of all samples, which are kept.

    Both models run once per batch, one model with itself once in all, frozen and in eval mode, and are left as they
    were. Of linear CKA by minibatches each layer's kernel matrix is made as soon as the layer has run, and nothing else
    is held, on a CPU and up to 1,024 rows a batch. Otherwise the layers of a batch are held until it is done
    ("flatten"), those that the model overwrites in place as copies; "pool" and "positions" hold their features alone.

    Args:
        model_a, model_b: the models; one object may be both.
        batches: what both models read: inputs, (inputs, labels) or (inputs, labels, identifiers), inputs being a
            tensor or a mapping of keyword inputs, which may hold the identifiers itself. Or, for models that want
            different inputs of the same samples, a pair (batches_a, batches_b) of such iterables, always a tuple of
            two. Of a pair every batch is checked: sizes, and identifiers where there are some, or else labels.
        layers_a, layers_b: names of layers; None for all that run once and give a tensor of two to four dimensions, as
            they run (`stitchkern.models.layer_shapes`).
        measure: "cka", another index of this package by name ("svcca", "procrustes_distance", "rsa", "mutual_knn", …),
            or a function (x, y) of features (n, p) and (n, q) that gives a number. ``options`` go to it. Those that
            moments can express are computed from moments where there are at most 4,096 features in all.
            ``values[i, j]`` is the index with layer i as x and layer j as y.
        features: of a layer that gives more than (n, c). "flatten": every number of a sample is a feature.
            "positions": every position (pixel, token) of every sample is a row of c features; all layers must have the
            same number of positions. "pool": the mean over positions.
        estimator: "minibatch" or "exact"; None: minibatch for CKA, exact for everything else, which has no other.
        unbiased: of exact CKA, the U-statistic of HSIC; by default not, as in :func:`stitchkern.cka`. The minibatch
            estimator always is.
        kernel, bandwidth: as in :func:`stitchkern.hsic`; a median distance is that of each batch (minibatch).
        blocks: how many blocks of batches standard errors come from; 0: none. By default every batch is a block for
            CKA (at most 1,024, of neighbours), there are 8 for indices from moments, and none for those that need all
            features, where each block costs one more evaluation of the index.
        mask: where batches are mappings, the key of masks (n, t): tokens where it is 0 are left out of "pool" and
            "positions". None: take all.
        identifiers: where batches are mappings, the key of the identifiers of their samples, which no model sees.
        names: what to call the models; by default their classes.
        precision: of `Moments`.
        memory, store: bytes of features to keep where the models are (a quarter of what is free), and the folder for
            temporary files of what exceeds them (the system's). Only what needs the features of all samples uses them.
        group: a torch.distributed group in which every process has batches of its own, for one result in all of them;
            None: this process alone, also where there is a default group. Not for what needs all features.
        progress: called as ``progress(done, total)`` after each batch (total is 0 where unknown), or True for a bar.

    Returns:
        :class:`SimilarityMatrix`. Standard errors are over blocks of samples: the delta method on the sums of HSIC₁
        (exact CKA: the same, which is slightly too large there), the jackknife for other indices. NaN with fewer than
        two blocks. Rows and columns of layers that never vary are NaN, and a warning names them.

    Raises:
        ValueError: an unknown word, an estimator that the measure does not have, no batch.
        TypeError: an option that the measure does not take, or layers that give no real floating-point numbers.
        LayerError: a layer that is not there, or does not run exactly once.
        ShapeError: layers whose samples do not come first, with different positions ("positions"), or (exact) with
            other features in one batch than in another.
        SampleMismatchError: the sides of a pair hold different samples, or the same ones in another order.
        NotFiniteError: a layer holds NaN or Inf. StatisticsError: too few samples; another process failed.
    """
    plan = _plan(measure, features, estimator, unbiased, kernel, bandwidth, blocks, precision, options)
    plan = replace(plan, memory=memory, folder=store, group=group)
    asked = _asked(model_a, layers_a, "layers_a"), _asked(model_b, layers_b, "layers_b")
    one = model_a is model_b and not is_pair(batches)
    pass_ = _Pass(model_a, model_b, asked, features, mask, one, plan)
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(pass_.close)
        report = stack.enter_context(reporter(progress))
        stack.enter_context(frozen(model_a, model_b))
        devices = device_of(model_a), device_of(model_b)
        failure: Exception | None = None
        try:
            for samples in both_sides(batches, devices, report, identifiers):
                pass_.add(samples.inputs_a, samples.inputs_b, samples.count)
        except Exception as e:
            failure = e
        agree(failure, pass_.layers if failure is None else None, group)
        if failure is not None:
            raise failure
        found = pass_.finish()
        samples_in_all = sum(gathered(pass_.samples, group))
    for note in [*pass_.notes, *found.notes, *_undefined(found)]:
        warnings.warn(note, stacklevel=2)
    layers = pass_.layers
    a, b = names or _names(model_a, model_b)
    return SimilarityMatrix(
        values=found.values,
        standard_error=found.standard_error,
        layers_a=layers[0],
        layers_b=layers[1],
        measure="cka" if plan.measure is None else plan.measure.name,
        estimator=plan.estimator,
        features=features,
        samples=samples_in_all,
        blocks=found.blocks,
        names=(a, b),
        made=_made(plan, options, model_a, time.perf_counter() - start),
    )


class _Pass:
    """What happens to each batch: the models run, and their features go into the estimator."""

    def __init__(
        self,
        model_a: nn.Module,
        model_b: nn.Module,
        asked: tuple[list[str] | None, list[str] | None],
        features: str,
        mask: str | None,
        one: bool,
        plan: Plan,
    ) -> None:
        self._models, self._asked, self._one, self._plan = (model_a, model_b), asked, one, plan
        self._features, self._mask = features, mask
        self._readers: list[Reader] = []
        self._wanted: tuple[list[str], list[str]] = ([], [])
        self._estimator: Estimator | None = None
        self.samples = 0

    def add(self, inputs_a: Any, inputs_b: Any, count: int) -> None:
        if not self._readers:
            self._open((inputs_a, inputs_b))
        xs = self._readers[0](inputs_a, count)
        ys = None if self._one else self._readers[1](inputs_b, count)
        if ys is not None and ys[0].device != xs[0].device:
            ys = [y.to(xs[0].device) for y in ys]
        self._check_rows(xs, ys, count)
        if self._estimator is None:
            labels = [[reader.label(name) for name in reader.layers] for reader in self._readers]
            sizes = [t.shape[1] for t in [*xs, *(ys or [])]]
            self._estimator = estimator_for(self._plan, labels[0], None if self._one else labels[1], sizes)
        self._estimator.add(xs, ys)
        self.samples += count

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """The names of those that were compared."""
        kept = [set(reader.layers) for reader in self._readers]
        a, b = self._wanted
        return [name for name in a if name in kept[0]], [name for name in b if name in kept[-1]]

    @property
    def notes(self) -> list[str]:
        return [note for reader in self._readers for note in reader.notes]

    def finish(self) -> Estimate:
        """With a row for each of `layers` of model_a, and a column for each of model_b."""
        assert self._estimator is not None  # batches hold at least one
        rows, columns = (
            torch.tensor([reader.layers.index(name) for name in names])
            for reader, names in zip((self._readers[0], self._readers[-1]), self.layers, strict=True)
        )
        pairs = list(dict.fromkeys((i, j) for i in rows.tolist() for j in columns.tolist()))
        found = self._estimator.finish(pairs)
        values, errors = (t[rows[:, None], columns] for t in (found.values, found.standard_error))
        return Estimate(values, errors, found.blocks, found.undefined, found.notes)

    def close(self) -> None:
        if self._estimator is not None:
            self._estimator.close()

    def _open(self, inputs: tuple[Any, Any]) -> None:
        """Readers for the layers that are wanted, now that there is something to run the models on."""
        a, b = (
            list(layer_shapes(model, x)) if names is None else names
            for model, names, x in zip(self._models, self._asked, inputs, strict=True)
        )
        self._wanted = a, b
        asked_a, asked_b = (set(names or []) for names in self._asked)
        if self._one:
            union = list(dict.fromkeys([*a, *b]))
            sides = [(self._models[0], union, asked_a | asked_b, "the model")]
        else:
            sides = list(zip(self._models, self._wanted, (asked_a, asked_b), ("model_a", "model_b"), strict=True))
        keep = matrix_where_small if self._plan.estimator == "minibatch" and self._plan.is_linear else None
        self._readers = [Reader(m, names, asked, self._features, s, self._mask, keep) for m, names, asked, s in sides]

    def _check_rows(self, xs: list[Held], ys: list[Held] | None, count: int) -> None:
        """Layers that are compared must have the same rows."""
        if self._features != "positions":
            return
        sides = [xs] if ys is None else [xs, ys]
        rows = [(r.label(name), len(t)) for r, s in zip(self._readers, sides, strict=True)
                for name, t in zip(r.layers, s, strict=True)]  # fmt: skip
        other = next((found for found in rows if found[1] != rows[0][1]), None)
        if other is not None:
            raise ShapeError(
                f"features='positions' needs the same positions in all layers: {rows[0][0]} has {rows[0][1]} in "
                f"{count} samples and {other[0]} has {other[1]}; name layers of one size, or take 'pool' or 'flatten'"
            )
        masks = [reader.token_mask for reader in self._readers if reader.token_mask is not None]
        if len(masks) == 2 and not torch.equal(*(mask.sum(1).cpu() for mask in masks)):
            raise SampleMismatchError("features='positions': the masks of the two sides keep different tokens")


def _plan(
    measure: str | Callable[..., Any],
    features: str,
    estimator: str | None,
    unbiased: bool | None,
    kernel: str,
    bandwidth: float | str | None,
    blocks: int | None,
    precision: str,
    options: dict[str, Any],
) -> Plan:
    """What was asked for, checked before any data are read."""
    for name, value, known in (("features", features, FEATURES), ("precision", precision, tuple(PRECISIONS))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, or None; got {estimator!r}")
    if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 0 or blocks == 1):
        raise ValueError(f"blocks must be 0 (none), at least 2, or None; got {blocks!r}")
    given = {"kernel": kernel, "bandwidth": bandwidth, "unbiased": unbiased}
    given = {name: value for name, value in given.items() if value not in (None, "linear")}
    found = find_measure(measure, {**options, **given} if measure != "cka" else options)
    if found is not None:
        if estimator == "minibatch":
            raise ValueError(
                f"measure {found.name!r} has no minibatch estimator (a mean over batches is no estimate of it); "
                f"take estimator='exact'"
            )
        return Plan(found, "exact", blocks=blocks, precision=precision)
    if options:
        raise TypeError(f"measure 'cka' takes kernel, bandwidth and unbiased; got {', '.join(sorted(options))}")
    if kernel not in HSIC_KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(HSIC_KERNELS)}; got {kernel!r}")
    if kernel == "linear" and bandwidth is not None:
        raise ValueError("bandwidth is given, but the linear kernel has none")
    if bandwidth is not None and not isinstance(bandwidth, str | int | float):
        raise TypeError(f"bandwidth must be one number or a multiple of the median here; got {bandwidth!r}")
    estimator = estimator or "minibatch"
    if estimator == "minibatch" and unbiased is False:
        raise ValueError("the minibatch estimator is unbiased HSIC; take estimator='exact' for the biased one")
    kernel_options = {"kernel": kernel} if bandwidth is None else {"kernel": kernel, "bandwidth": bandwidth}
    return Plan(None, estimator, bool(unbiased), kernel_options, blocks, precision)


def _asked(model: nn.Module, layers: Sequence[str] | None, name: str) -> list[str] | None:
    if layers is None:
        return None
    if isinstance(layers, str) or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"{name} must be a list of layer names, or None for all; got {layers!r}")
    if not layers:
        raise ValueError(f"{name} must name at least one layer, or be None for all")
    for layer in layers:
        resolve_layer(model, layer)
    return list(layers)


def _undefined(found: Estimate) -> list[str]:
    if not found.undefined:
        return []
    why = "; ".join(f"{label} {reason}" for label, reason in found.undefined.items())
    return [f"similarity is undefined, NaN: {why}"]


def _names(model_a: nn.Module, model_b: nn.Module) -> tuple[str, str]:
    a, b = type(model_a).__name__, type(model_b).__name__
    return (a, b) if a != b or model_a is model_b else (f"{a} (a)", f"{b} (b)")


def _made(plan: Plan, options: dict[str, Any], model: nn.Module, seconds: float) -> dict[str, str]:
    made = {name: str(value) for name, value in options.items()}
    if plan.measure is None:
        unbiased = plan.unbiased or plan.estimator == "minibatch"
        made = {name.capitalize(): str(value) for name, value in plan.kernel.items()}
        made["HSIC"] = "unbiased" if unbiased else "biased"
    versions = {"stitchkern": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    return {
        **made,
        "Date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Time": f"{seconds:.1f} s",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Machine": f"{platform.system()} {platform.machine()}, CPU threads: {torch.get_num_threads()}",
        "Device": str(device_of(model)),
    }
