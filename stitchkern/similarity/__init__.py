"""Similarity indices, from moments or from features."""

from stitchkern.similarity.kernel import cka, hsic
from stitchkern.similarity.regression import linear_r2

__all__ = ["cka", "hsic", "linear_r2"]
