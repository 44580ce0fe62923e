"""stitchkern: can one trained network work with another's representation, and in what way?"""

import torch  # noqa: F401  (its libraries must be loaded before the extension)

from stitchkern import errors, nn
from stitchkern._version import __version__
from stitchkern.matching import match_direct
from stitchkern.models import StitchedModel
from stitchkern.moments import Moments
from stitchkern.similarity import cka, hsic, linear_r2
from stitchkern.solvers import AffineMap, least_squares

__all__ = [
    "AffineMap",
    "Moments",
    "StitchedModel",
    "__version__",
    "cka",
    "errors",
    "hsic",
    "least_squares",
    "linear_r2",
    "match_direct",
    "nn",
]
