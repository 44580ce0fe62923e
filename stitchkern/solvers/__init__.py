"""Direct maps from moments."""

from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.linear import least_squares

__all__ = ["AffineMap", "least_squares"]
