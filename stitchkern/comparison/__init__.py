"""Similarity of all layers of two models."""

from stitchkern.comparison.result import SimilarityMatrix

__all__ = ["SimilarityMatrix"]
