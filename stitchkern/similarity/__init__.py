"""Similarity indices, from moments or from features."""

from stitchkern.similarity.canonical import CanonicalCorrelations, cca, pwcca, svcca
from stitchkern.similarity.kernel import cka, hsic
from stitchkern.similarity.regression import linear_r2

__all__ = ["CanonicalCorrelations", "cca", "cka", "hsic", "linear_r2", "pwcca", "svcca"]
