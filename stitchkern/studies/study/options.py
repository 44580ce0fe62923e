"""What the user asked of a study, and what it keeps its work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stitchkern.studies.study.networks import Network, NetworkPair
from stitchkern.studies.study.work import Work

Value = TypeVar("Value")

#: epochs of task-loss training: the paper's, and those of a reduced set
EPOCHS, QUICK_EPOCHS = 30, 4


@dataclass(frozen=True)
class Options:
    """Of one run of a study.

    Attributes:
        work: where units are kept.
        quick: a reduced set: fewer layers, seeds and epochs, as each study sees fit.
        layers: that were asked for; None: those that the study chooses.
        epochs: of task-loss training.
        repeats: how often random things are drawn; None: as the study sees fit.
        key: what every unit depends on: the study, its file, the data, the device. `run_study` fills it in.
    """

    work: Work
    quick: bool = False
    layers: list[str] | None = None
    epochs: int = EPOCHS
    repeats: int | None = None
    device: str = "cpu"
    key: dict[str, Any] = field(default_factory=dict)

    def keep(self, of: Network | NetworkPair, compute: Callable[[Path], Value], **key: Any) -> Value:
        """What ``compute(checkpoint)`` returns, or returned in an earlier run: see `Work.keep`.

        ``key``: all that tells this unit of these networks from others, beside what ``self`` says: quick, epochs, data.
        """
        everything = {**self.key, "networks": of.key, "quick": self.quick, "epochs": self.epochs}
        if taken := sorted(everything.keys() & key.keys()):
            raise ValueError(f"{taken[0]!r} is part of every key")
        return self.work.keep({**everything, **key}, compute)

    def either(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full
