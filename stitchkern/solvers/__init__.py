"""Direct maps from moments: every constraint, one problem or a batch."""

from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.assignment import MatchedMap, permutation, semi_matching, soft_matching
from stitchkern.solvers.lasso import LassoPath, lasso_path
from stitchkern.solvers.linear import full_rank, least_squares
from stitchkern.solvers.orthogonal import ProcrustesMap, procrustes
from stitchkern.solvers.reduced_rank import ReducedRankPath, reduced_rank_path
from stitchkern.solvers.resampling import CrossValidation, Interval, bootstrap, cross_validate
from stitchkern.solvers.reweighted import reweighted_least_squares, solve_reweighted
from stitchkern.solvers.ridge import RidgePath, ridge_path
from stitchkern.solvers.roads import ROADS, lstsq, solve_by_road

__all__ = [
    "ROADS",
    "AffineMap",
    "CrossValidation",
    "Interval",
    "LassoPath",
    "MatchedMap",
    "ProcrustesMap",
    "ReducedRankPath",
    "RidgePath",
    "bootstrap",
    "cross_validate",
    "full_rank",
    "lasso_path",
    "least_squares",
    "lstsq",
    "permutation",
    "procrustes",
    "reduced_rank_path",
    "reweighted_least_squares",
    "ridge_path",
    "semi_matching",
    "soft_matching",
    "solve_by_road",
    "solve_reweighted",
]
