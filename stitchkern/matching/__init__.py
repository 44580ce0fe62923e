"""Models × data → moments → maps → accuracy."""

from stitchkern.matching.along import PathAccuracy, along_path
from stitchkern.matching.behaviour import Behaviour, behaviour
from stitchkern.matching.direct import METHODS, collect_moments, common_layers, match_direct
from stitchkern.matching.evaluate import Evaluation, evaluate
from stitchkern.matching.partners import Partner, best_partners
from stitchkern.matching.spectrum import Spectrum, spectrum
from stitchkern.matching.stream import Pair, Progress
from stitchkern.matching.task import Schedule, TaskConfig, TaskMatch, match_task, match_tasks

__all__ = [
    "METHODS",
    "Behaviour",
    "Evaluation",
    "Pair",
    "Partner",
    "PathAccuracy",
    "Progress",
    "Schedule",
    "Spectrum",
    "TaskConfig",
    "TaskMatch",
    "along_path",
    "behaviour",
    "best_partners",
    "collect_moments",
    "common_layers",
    "evaluate",
    "match_direct",
    "match_task",
    "match_tasks",
    "spectrum",
]
