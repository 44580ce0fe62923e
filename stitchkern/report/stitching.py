"""Writes a stitching result as files; `index.html` needs none of the others, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchkern.report import plots
from stitchkern.report.page import new_folder, render, save_png, write_csv
from stitchkern.studies.result import OrthogonalResult, PairResult, RankResult, StitchingResult

if TYPE_CHECKING:  # `stitchkern doctor` must print without torch
    from stitchkern.comparison import SimilarityMatrix

# x: the front's channels at one position of one image, y: the end's, Σ and means over all of them.
DEFINITIONS = (
    (
        "Accuracy",
        "Share of test images that the stitched network classifies correctly.",
        "a = correct / images",
    ),
    ("Relative accuracy", "That accuracy as a share of the end network’s own.", "a(stitched) / a(end)"),
    (
        "s.e.",
        "Standard error of the relative accuracy r, given that both networks saw the same n images.",
        "√(Σ (stitched correct − r · end correct)² / (n (n − 1))) / a(end)",
    ),
    (
        "Stitch",
        "The affine map of least squared error at all positions.",
        "min over W, b of Σ ‖W x + b − y‖²",
    ),
    (
        "R²",
        "Share of the end layer’s variance that the stitch explains.",
        "1 − Σ ‖W x + b − y‖² / Σ ‖y − ȳ‖²",
    ),
    ("Residual", "What the stitch leaves unexplained, summed over channels.", "mean ‖W x + b − y‖²"),
    ("Rank", "Rank of the map that the data support.", "rank W"),
    (
        "Rank k",
        "The affine map of least squared error among those that pass through k channels at most (reduced-rank "
        "regression). At the full rank nothing is bound, and it is the stitch.",
        "min over rank W ≤ k, b of Σ ‖W x + b − y‖²",
    ),
    (
        "Procrustes",
        "The best rotation or reflection with a shift: what the layers share up to the choice of axes. Where one has "
        "more channels, W keeps lengths on the side with fewer.",
        "min over WᵀW = I, b of Σ ‖W x + b − y‖²",
    ),
    (
        "CKA",
        "Linear centred kernel alignment, every position of every image a sample.",
        "‖cov(x, y)‖² / (‖cov(x, x)‖ · ‖cov(y, y)‖)",
    ),
    (
        "CKA, unbiased",
        "The same ratio from unbiased estimates of HSIC; may be negative.",
        "HSIC₁(x, y) / √(HSIC₁(x, x) · HSIC₁(y, y))",
    ),
)

_NESTED = ("rank_curve", "r2_by_rank", "procrustes")  # fields of PairResult


def write(result: StitchingResult, out_dir: str | Path, *, similarity: SimilarityMatrix | None = None) -> Path:
    """Write `index.html`, `layers.png`, `similarity.png`, `layers.csv`, `result.json`; return the page.

    Also `ranks.png` where the result has a rank curve, and `ranks.csv` where it has that or Procrustes. The folder
    is made if need be; files of these names and of another report are replaced or removed. Raises OSError where that
    fails.
    """
    out = new_folder(out_dir)
    (out / "result.json").write_text(result.to_json(), encoding="utf-8")
    write_csv([_numbers(pair) for pair in result.pairs], out / "layers.csv")
    title = f"How well the front of {result.front.name} drives the end of {result.end.name}"
    save_png(plots.by_layer(result, title=title), out / "layers.png")
    save_png(plots.heat_map(result, title="Linear CKA of all layer pairs"), out / "similarity.png")
    if result.has_rank_curve:
        title = f"Rank of the map from {result.front.name} to {result.end.name}"
        save_png(plots.by_rank(result, title=title), out / "ranks.png")
    if result.has_rank_curve or result.has_procrustes:
        write_csv([row for pair in result.pairs for row in _rank_rows(pair)], out / "ranks.csv")
    page = out / "index.html"
    page.write_text(html(result, similarity), encoding="utf-8")
    return page


def html(result: StitchingResult, similarity: SimilarityMatrix | None = None) -> str:
    """The page: one document with style and plots inside, for light and dark screens.

    `similarity`: what the report in the folder `similarity` beside it is of, where there is one.
    """
    drawn = {
        "by_layer": (partial(plots.by_layer, result), "Relative accuracy, CKA and R² by layer"),
        "heat_map": (partial(plots.heat_map, result), "Heat map of CKA"),
    }
    if result.has_rank_curve:
        words = "Relative accuracy and R² by rank of the map, one panel per layer"
        drawn["by_rank"] = (partial(plots.by_rank, result), words)
    return render("stitching.html.j2", drawn, result=result, similarity=similarity, definitions=DEFINITIONS)


def _numbers(pair: PairResult) -> dict[str, Any]:
    """Of the map without a bound; what hangs on a bound has a file of its own."""
    return {f.name: getattr(pair, f.name) for f in fields(pair) if f.name not in _NESTED}


def _rank_rows(pair: PairResult) -> Iterator[dict[str, Any]]:
    """One row per rank, the full one last, then Procrustes; ranks that were not tested have an R² alone."""
    found: RankResult | OrthogonalResult | None
    for rank, r2 in enumerate(pair.r2_by_rank, start=1):
        found = pair.at_rank(rank)
        numbers = asdict(found) if found else {"rank": rank, "r2": r2}
        yield _rank_row(pair, "full" if rank == len(pair.r2_by_rank) else "reduced rank", numbers)
    if found := pair.procrustes:
        yield _rank_row(pair, "procrustes", asdict(found))


def _rank_row(pair: PairResult, kind: str, numbers: dict[str, Any]) -> dict[str, Any]:
    names = ("rank", "r2", "residual", "accuracy", "relative_accuracy", "relative_se", "distance")
    start = {"front_layer": pair.front_layer, "end_layer": pair.end_layer, "map": kind}
    return start | {name: numbers.get(name, "") for name in names}
