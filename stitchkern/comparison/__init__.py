"""Similarity of all layers of two models."""

from stitchkern.comparison.compare import compare
from stitchkern.comparison.result import SimilarityMatrix

__all__ = ["SimilarityMatrix", "compare"]
