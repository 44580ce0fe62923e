"""How similar are all layers of two networks, or of one? `compare` for networks and data named by specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from stitchkern.comparison import SimilarityMatrix, compare
from stitchkern.errors import SpecError, StitchkernError
from stitchkern.models import load_model
from stitchkern.models.taps import map_tensors
from stitchkern.studies.layers import check_takes, count_parameters
from stitchkern.studies.names import short_name, short_names
from stitchkern.studies.stitching import Progress


def compare_specs(
    a: str,
    b: str | None,
    batches: Iterable[Any],
    *,
    device: str = "cpu",
    made: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> SimilarityMatrix:
    """`stitchkern.compare` for models named by specs (`load_model`); without b, of one model with itself.

    Args:
        a, b: the models.
        batches: what both read; can be read more than once.
        made: more to say about how the result came about; the models are said in any case.
        progress: see `Progress`; the one stage is "compare".
        options: of `compare`.

    Raises:
        SpecError: as `load_model`, no batch, or options that `compare` does not take.
        LayerError, ShapeError, NotFiniteError, StatisticsError: as `compare`; ShapeError also for a model that does not
            take the inputs.
    """
    models = [load_model(spec, device) for spec in (a, b) if spec is not None]
    sides = [(name, spec) for name, spec in (("A", a), ("B", b)) if spec is not None]
    first = next(iter(batches), None)
    if first is None:
        raise SpecError("the data gave no batch")
    inputs = map_tensors(first[0], lambda tensor: tensor.to(device))
    for model, (side, spec) in zip(models, sides, strict=True):
        check_takes(model, inputs, f"{side} {spec!r}")
    names = short_names(a, b, ("a", "b")) if b is not None else (short_name(a),) * 2
    report = progress and partial(progress, "compare")
    try:
        found = compare(models[0], models[-1], batches, names=names, progress=report, **options)
    except StitchkernError:
        raise
    except (ValueError, TypeError) as error:  # which is how compare says what it does not take
        raise SpecError(str(error)) from error
    said = {
        f"Model {side}" if b is not None else "Model": f"{name}, {count_parameters(model):,} parameters, {spec}"
        for model, name, (side, spec) in zip(models, names, sides, strict=False)
    }
    return replace(found, made={**(made or {}), **said, **found.made})
