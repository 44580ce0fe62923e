"""What is kept of a run, for each stitch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class History:
    r"""How one stitch changed. Lists of equal length, an entry at the start and for each epoch (or ``record_every``).

    Attributes:
        step, epoch: steps done, and the epoch that they were in.
        loss, accuracy: means since the entry before, on the batches as they came, without penalties; at the start,
            of the first batch. NaN where there are no labels, or no outputs to look at (target "hint").
        validation_loss, validation_accuracy: on the validation data; NaN where there are none or it was no epoch's end.
        cka, r2: of the stitched activation with the end's own, over all data: see `Closeness`.
        distance: ‖(W, b) − (W₀, b₀)‖ from the start.
        zeros: share of weights of W that are exactly zero.
        stopped: why it stopped before the end: "", "patience", "diverged".
    """

    step: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    cka: list[float] = field(default_factory=list)
    r2: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    zeros: list[float] = field(default_factory=list)
    stopped: str = ""

    def add(self, **entry: Any) -> None:
        for name, value in entry.items():
            getattr(self, name).append(value)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> History:
        return cls(**state)

    def __len__(self) -> int:
        return len(self.step)

    def rows(self) -> list[dict[str, float]]:
        """An entry for each line of a table."""
        names = [f.name for f in fields(self) if f.name != "stopped"]
        return [{name: getattr(self, name)[i] for name in names} for i in range(len(self))]
