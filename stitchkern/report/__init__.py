"""Turns results into a page, pictures, CSV and JSON, and into tables for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stitchkern.report import stitching
from stitchkern.report.terminal import comparison_table, doctor_table, layer_table, rank_table, stitching_table
from stitchkern.studies.result import StitchingResult

if TYPE_CHECKING:
    from stitchkern.comparison import SimilarityMatrix

__all__ = ["comparison_table", "doctor_table", "layer_table", "rank_table", "stitching_table", "write"]


def write(
    result: StitchingResult | SimilarityMatrix, out_dir: str | Path, *, similarity: SimilarityMatrix | None = None
) -> Path:
    """The files that `stitching.write` or `comparison.write` makes of a result; return the page.

    `similarity`: of the networks that were stitched; a report of its own in the folder `similarity`, and a link to it.
    """
    if isinstance(result, StitchingResult):
        page = stitching.write(result, out_dir, similarity=similarity)
        if similarity is not None:
            write(similarity, page.parent / "similarity")
        return page
    from stitchkern.report import comparison  # which needs torch, and `stitchkern doctor` must print without it

    return comparison.write(result, out_dir)
