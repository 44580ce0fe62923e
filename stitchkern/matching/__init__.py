"""Models × data → moments → maps → accuracy."""

from stitchkern.matching.direct import METHODS, collect_moments, common_layers, match_direct
from stitchkern.matching.evaluate import Evaluation, evaluate
from stitchkern.matching.stream import Pair, Progress

__all__ = [
    "METHODS",
    "Evaluation",
    "Pair",
    "Progress",
    "collect_moments",
    "common_layers",
    "evaluate",
    "match_direct",
]
