"""What the processes of a torch.distributed group tell each other."""

from __future__ import annotations

from typing import Any

from stitchkern.errors import StatisticsError


def gathered(value: Any, group: Any) -> list[Any]:
    """The value of every process, in order of rank; of this one alone without a group."""
    if group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def agree(failure: BaseException | None, plan: Any, group: Any) -> None:
    """Raise in every process where one has failed, or has another plan: the others would wait for it for ever.

    Raises:
        StatisticsError: another process failed, or compares other layers.
    """
    if group is None:
        return
    found = gathered((None if failure is None else f"{type(failure).__name__}: {failure}", plan), group)
    if failure is not None:
        return
    for rank, (said, theirs) in enumerate(found):
        if said is not None:
            raise StatisticsError(f"process {rank} of the group failed: {said}")
        if theirs != plan:
            raise StatisticsError(f"process {rank} of the group compares {theirs}, this one {plan}")
