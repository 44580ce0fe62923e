"""A step of task-loss matching beside the plain way: the cases of `benchmarks.test_task`, on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import test_task
from benchmarks.gpu.case import Case, Way
from benchmarks.measure import OURS


def cases() -> Iterator[Case]:
    for name, stitches in test_task.CASES.items():
        expected = test_task.expected_weights(name)
        moved = [float((w - test_task.start(i)[0].to(w)).norm()) for i, w in enumerate(expected)]
        times: dict[str, list[float]] = {}

        # norms: Adam's first steps take single weights whose gradient is rounding one way or the other
        def error(way: str, name: str = name, moved: list[float] = moved, times: dict = times) -> float:
            found, times[way] = test_task.WAYS[way](name)
            pairs = zip(found, test_task.expected_weights(name), moved, strict=True)
            return max(float((a - b).norm()) / far for a, b, far in pairs)

        ways = {
            way: Way(
                lambda _: None,
                lambda way=way, error=error: error(way),
                0.05 if way == OURS else None,
                seconds=lambda way=way, times=times: times[way],
            )
            for way in test_task.WAYS
        }
        yield Case("task", f"a step of {name} at the middle of ResNet-20", [None] * len(stitches), ways)
