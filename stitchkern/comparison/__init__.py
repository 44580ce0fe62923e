"""Similarity of all layers of two models."""

from stitchkern.comparison.compare import compare
from stitchkern.comparison.counterparts import Counterpart, counterparts, headline
from stitchkern.comparison.result import SimilarityMatrix

__all__ = ["Counterpart", "SimilarityMatrix", "compare", "counterparts", "headline"]
