"""Models × data → moments → maps → accuracy."""

from stitchkern.matching.direct import METHODS, collect_moments, common_layers, match_direct
from stitchkern.matching.evaluate import Evaluation, evaluate
from stitchkern.matching.stream import Pair, Progress
from stitchkern.matching.task import Schedule, TaskConfig, TaskMatch, match_task, match_tasks

__all__ = [
    "METHODS",
    "Evaluation",
    "Pair",
    "Progress",
    "Schedule",
    "TaskConfig",
    "TaskMatch",
    "collect_moments",
    "common_layers",
    "evaluate",
    "match_direct",
    "match_task",
    "match_tasks",
]
