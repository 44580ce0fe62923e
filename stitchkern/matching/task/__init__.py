"""Task-loss matching: source (the two models) → samples (computed once) → structure (stitches at their start) → trainer
(steps, on a stack of stitches) → matches with their history."""

from stitchkern.matching.task.config import INITS, LOSSES, MASKS, TARGETS, TaskConfig
from stitchkern.matching.task.history import History
from stitchkern.matching.task.match import TaskMatch, match_task, match_tasks
from stitchkern.matching.task.schedule import Schedule

__all__ = [
    "INITS",
    "LOSSES",
    "MASKS",
    "TARGETS",
    "History",
    "Schedule",
    "TaskConfig",
    "TaskMatch",
    "match_task",
    "match_tasks",
]
