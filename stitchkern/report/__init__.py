"""Turns results into a page, pictures, CSV and JSON, and into tables for the terminal."""

from stitchkern.report.stitching import write
from stitchkern.report.terminal import doctor_table, layer_table, rank_table, stitching_table

__all__ = ["doctor_table", "layer_table", "rank_table", "stitching_table", "write"]
