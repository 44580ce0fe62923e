"""Stitching and comparing networks that are trained on the spot: two seeds of the digits network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from stitchkern.comparison import SimilarityMatrix, compare
from stitchkern.studies import digits
from stitchkern.studies.result import StitchingResult
from stitchkern.studies.stitching import Progress, stitch_layers


@digits.one_thread()
def demo(
    seeds: tuple[int, int] = (0, 1),
    *,
    quick: bool = False,
    made: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> tuple[StitchingResult, SimilarityMatrix]:
    """Train a digits network from each seed, stitch them at every BatchNorm, and compare all their layers.

    `quick` trains for 4 epochs instead of 20. Stages for `progress`: "train seed …" twice, those of
    `stitch_layers`, "compare". Raises SpecError without scikit-learn.
    """
    train, test = digits.digits()
    epochs = 4 if quick else 20
    names = (f"seed {seeds[0]}", f"seed {seeds[1]}")

    front, end = (
        digits.train(seed, train, epochs=epochs, progress=progress and partial(progress, f"train {name}"))
        for seed, name in zip(seeds, names, strict=True)
    )
    source = f"stitchkern.studies.digits, {epochs} epochs"
    notes = {
        "Images": "handwritten digits of 8×8 pixels, from scikit-learn",
        "Seeds": f"{seeds[0]} and {seeds[1]}",
    }
    said = {**(made or {}), **notes}
    stitched = stitch_layers(
        front, end, [(layer, layer) for layer in digits.LAYERS], train, test,
        names=names, sources=(source, source), made=said, progress=progress,
    )  # fmt: skip
    similar = compare(front, end, train, names=names, progress=progress and partial(progress, "compare"))
    return stitched, replace(similar, made={**said, "Models": source, **similar.made})
