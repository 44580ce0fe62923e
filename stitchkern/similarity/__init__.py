"""Similarity indices, from moments or from features."""

from stitchkern.similarity.canonical import CanonicalCorrelations, cca, pwcca, svcca
from stitchkern.similarity.correspondence import correlation_match, soft_matching_distance
from stitchkern.similarity.distance_correlation import distance_correlation
from stitchkern.similarity.geometry import concentricity, magnitude, uniformity
from stitchkern.similarity.interval import confidence_interval
from stitchkern.similarity.kernel import cka, hsic
from stitchkern.similarity.neighbours import cknna, cycle_knn, jaccard, mutual_knn, rank_similarity, second_order_cosine
from stitchkern.similarity.pairs import cka_matrix
from stitchkern.similarity.regression import gulp, linear_r2
from stitchkern.similarity.rsa import rsa
from stitchkern.similarity.rsm_norm import rsm_norm
from stitchkern.similarity.shape import (
    bures,
    bures_distance,
    procrustes_distance,
    procrustes_similarity,
    shape_distance,
)
from stitchkern.similarity.significance import PermutationTest, permutation_test
from stitchkern.similarity.subspace import eigenspace_overlap

__all__ = [
    "CanonicalCorrelations",
    "PermutationTest",
    "bures",
    "bures_distance",
    "cca",
    "cka",
    "cka_matrix",
    "cknna",
    "concentricity",
    "confidence_interval",
    "correlation_match",
    "cycle_knn",
    "distance_correlation",
    "eigenspace_overlap",
    "gulp",
    "hsic",
    "jaccard",
    "linear_r2",
    "magnitude",
    "mutual_knn",
    "permutation_test",
    "procrustes_distance",
    "procrustes_similarity",
    "pwcca",
    "rank_similarity",
    "rsa",
    "rsm_norm",
    "second_order_cosine",
    "shape_distance",
    "soft_matching_distance",
    "svcca",
    "uniformity",
]
