"""Similarity indices, from moments or from features."""

from stitchkern.similarity.canonical import CanonicalCorrelations, cca, pwcca, svcca
from stitchkern.similarity.kernel import cka, hsic
from stitchkern.similarity.neighbours import cknna, jaccard, mutual_knn
from stitchkern.similarity.pairs import cka_matrix
from stitchkern.similarity.regression import linear_r2
from stitchkern.similarity.rsa import rsa
from stitchkern.similarity.shape import (
    bures,
    bures_distance,
    procrustes_distance,
    procrustes_similarity,
    shape_distance,
)

__all__ = [
    "CanonicalCorrelations",
    "bures",
    "bures_distance",
    "cca",
    "cka",
    "cka_matrix",
    "cknna",
    "hsic",
    "jaccard",
    "linear_r2",
    "mutual_knn",
    "procrustes_distance",
    "procrustes_similarity",
    "pwcca",
    "rsa",
    "shape_distance",
    "svcca",
]
