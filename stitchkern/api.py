"""The public names of `import stitchkern as sk`."""

from stitchkern import errors, nn, weighting
from stitchkern.matching import match_direct
from stitchkern.models import StitchedModel
from stitchkern.moments import Moments
from stitchkern.qr import StreamingQR
from stitchkern.similarity import CanonicalCorrelations, cca, cka, hsic, linear_r2, pwcca, svcca
from stitchkern.solvers import (
    AffineMap,
    CrossValidation,
    Interval,
    MatchedMap,
    ProcrustesMap,
    ReducedRankPath,
    RidgePath,
    bootstrap,
    cross_validate,
    full_rank,
    least_squares,
    lstsq,
    permutation,
    procrustes,
    reduced_rank_path,
    reweighted_least_squares,
    ridge_path,
    semi_matching,
    soft_matching,
)
from stitchkern.statistics import Statistics

__all__ = [
    "AffineMap",
    "CanonicalCorrelations",
    "CrossValidation",
    "Interval",
    "MatchedMap",
    "Moments",
    "ProcrustesMap",
    "ReducedRankPath",
    "RidgePath",
    "Statistics",
    "StitchedModel",
    "StreamingQR",
    "bootstrap",
    "cca",
    "cka",
    "cross_validate",
    "errors",
    "full_rank",
    "hsic",
    "least_squares",
    "linear_r2",
    "lstsq",
    "match_direct",
    "nn",
    "permutation",
    "procrustes",
    "pwcca",
    "reduced_rank_path",
    "reweighted_least_squares",
    "ridge_path",
    "semi_matching",
    "soft_matching",
    "svcca",
    "weighting",
]
