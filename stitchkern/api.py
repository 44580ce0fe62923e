"""The public names of `import stitchkern as sk`."""

from stitchkern import errors, nn
from stitchkern.matching import match_direct
from stitchkern.models import StitchedModel
from stitchkern.moments import Moments
from stitchkern.similarity import cka, hsic, linear_r2
from stitchkern.solvers import AffineMap, least_squares

__all__ = [
    "AffineMap",
    "Moments",
    "StitchedModel",
    "cka",
    "errors",
    "hsic",
    "least_squares",
    "linear_r2",
    "match_direct",
    "nn",
]
