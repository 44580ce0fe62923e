"""Writes a similarity matrix as files; `index.html` needs none of the others, and nothing from elsewhere."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stitchkern import similarity
from stitchkern.comparison import SimilarityMatrix, counterparts, headline
from stitchkern.plotting import Theme
from stitchkern.report.formula import plain
from stitchkern.report.page import new_folder, render, save_png, write_csv

FEATURES = {
    "flatten": "Every number that a layer gives for a sample is a feature of it.",
    "positions": "Every position (pixel, token) of every sample is a row by itself, its channels are the features.",
    "pool": "The features of a sample are the means of the channels over its positions.",
}
ESTIMATORS = {
    "minibatch": "From sums over batches: batches of other sizes give other estimates of the same quantity.",
    "exact": "From all samples at once.",
}
KERNELS = {
    "linear": "K the inner products of the rows of x",
    "rbf": "K = exp(−‖xᵢ − xₖ‖² / (2 σ²))",
    "laplace": "K = exp(−‖xᵢ − xₖ‖ / σ)",
}
# What the docstring of cka says in general, for each way to estimate it; K and L are the sides' kernel matrices.
CKA = {
    ("minibatch", "unbiased"): "Σ HSIC₁(x, y) / √(Σ HSIC₁(x, x) · Σ HSIC₁(y, y)), sums over batches",
    ("exact", "unbiased"): "HSIC₁(x, y) / √(HSIC₁(x, x) · HSIC₁(y, y))",
    ("exact", "biased"): "HSIC(x, y) / √(HSIC(x, x) · HSIC(y, y))",
}
HSIC = {
    "biased": "HSIC = tr(K H L H) / n², with H = I − 1/n",
    "unbiased": "HSIC₁, the unbiased estimate of Song et al. 2012, which may be negative",
}


def write(result: SimilarityMatrix, out_dir: str | Path) -> Path:
    """Write `index.html`, `similarity.png`, `similarity.csv`, `result.json`; return the page.

    The folder is made if need be; files of these names and of another report are replaced or removed. Raises OSError
    where that fails.
    """
    out = new_folder(out_dir)
    result.save(out / "result.json")
    write_csv(_rows(result), out / "similarity.csv")
    save_png(result.plot(), out / "similarity.png")
    page = out / "index.html"
    page.write_text(html(result), encoding="utf-8")
    return page


def html(result: SimilarityMatrix) -> str:
    """The page: one document with style and plots inside, for light and dark screens."""

    def heat_map(theme: Theme) -> Figure:
        return result.plot(title="", theme=theme)

    found = counterparts(result)
    return render(
        "comparison.html.j2",
        {"heat_map": (heat_map, f"Heat map: {result.title}")},
        result=result,
        headline=headline(result),
        counterparts=found,
        has_namesakes=any(c.namesake is not None for c in found),
        extremes=_extremes(result),
        undefined=bool(result.values.isnan().any()),
        definitions=list(_definitions(result)),
    )


def _rows(result: SimilarityMatrix) -> Iterator[dict[str, Any]]:
    """The long form; empty where a number is undefined or unknown."""
    columns = {"value": result.values.tolist(), "standard_error": result.standard_error.tolist()}
    for i, a in enumerate(result.layers_a):
        for j, b in enumerate(result.layers_b):
            numbers = {name: rows[i][j] for name, rows in columns.items()}
            yield {"layer_a": a, "layer_b": b, **{k: "" if math.isnan(v) else v for k, v in numbers.items()}}


def _extremes(result: SimilarityMatrix) -> list[tuple[str, float, str]]:
    """(what, value, of which layers) of the most and the least similar pair; without layers beside themselves."""
    one = result.names[0] == result.names[1]
    pairs = [
        (value, f"{a} – {b}")
        for a, row in zip(result.layers_a, result.values.tolist(), strict=True)
        for b, value in zip(result.layers_b, row, strict=True)
        if not math.isnan(value) and not (one and a == b)
    ]
    if len(pairs) < 2:
        return []
    low, high = (choose(pairs, key=lambda pair: pair[0]) for choose in (min, max))
    most, least = (low, high) if result.is_distance else (high, low)
    return [("Most similar layers", *most), ("Least similar layers", *least)]


def _definitions(result: SimilarityMatrix) -> Iterator[tuple[str, str, str]]:
    """(name, meaning, formula) of everything on the page."""
    yield _measure(result)
    yield ("Features", FEATURES[result.features], "")
    yield ("Estimator", ESTIMATORS[result.estimator], "")
    if result.blocks:
        kind = "by the delta method" if result.measure == "cka" else "by the jackknife"
        yield ("s.e.", f"Standard error over {result.blocks:,} blocks of samples, {kind}.", "")
    least = "smallest" if result.is_distance else "largest"
    yield ("Most similar layer", f"That with the {least} number in the row of a layer.", "")


def _measure(result: SimilarityMatrix) -> tuple[str, str, str]:
    if result.measure == "cka":
        kernel, hsic = result.made.get("Kernel", "linear"), result.made.get("HSIC", "biased")
        meaning = f"Centred kernel alignment (Kornblith et al. 2019). {HSIC[hsic]}; {KERNELS[kernel]}."
        return (result.label, meaning, CKA[result.estimator, hsic])
    index = getattr(similarity, result.measure, None)
    if not inspect.isfunction(index):
        return (result.label, "A function of the caller’s, of the features of both layers.", "")
    first, *rest = (inspect.getdoc(index) or "").split("\n\n")
    formula = next((part.removeprefix(".. math::") for part in rest if part.startswith(".. math::")), "")
    mean = " Here: their mean." if result.measure == "cca" else ""
    return (result.label, _unmarked(first) + mean, plain(formula))


def _unmarked(text: str) -> str:
    """Of a docstring: without line breaks and marks."""
    text = re.sub(r":\w+:`~?(.*?)`", r"\1", text)
    return " ".join(re.sub(r"`+|\*\*", "", text).split())
