"""Tables and picture of a run that is made up, and the bounds they stand beside."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from benchmarks import plot
from benchmarks.bounds import Work, bounds_by_threads, least_seconds, measure_bounds
from benchmarks.measure import OURS, measure
from benchmarks.quick import is_quick, unknown
from benchmarks.run import Run, best_other
from benchmarks.table import insert, tables, time

BOUNDS = {"read": 8e9, "write": 5e9, "copy": 10e9, "add": 9e9, "float32": 100e9, "float64": 50e9}


def bench(case: str, contender: str, seconds: float, **info: Any) -> dict[str, Any]:
    info = {"family": "moments", "case": case, "contender": contender, "threads": 2, "error": 1e-9, **info}
    return {"extra_info": info, "stats": {"data": [seconds, 0.9 * seconds, 4 * seconds]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    work = asdict(Work(bytes=1e8, flop=2e9))  # 10 ms for the bytes, 20 ms for the operations
    benchmarks = [
        bench("a", OURS, 0.04, memory=2**20, **work),
        bench("a", "wrong", 0.01, wrong=True, error=1.0, **work),
        bench("a", "plain", 0.06, **work),
        bench("a", "slow", 0.12, **work),
        bench("a", f"{OURS}, another road", 0.05, **work),
        bench("a", "ends", 0.01, stopped="ValueError: no", **work),
        bench("errors", OURS, 0.02, accuracy=True),
        bench("errors", "plain", 0.01, accuracy=True),
        bench("alone", OURS, 0.02),
    ]
    machine = {"cpu": {"brand_raw": "A $5 chip"}, "threads": 2, "bounds": {"2": BOUNDS}}
    machine |= {"torch": "2.13.0", "vectors": "AVX2", "blas": "mkl", "python_version": "3.11"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": benchmarks, "datetime": "2026-11-24T00:00:00"}))
    return path


def cells(table: str, way: str) -> list[str]:
    return next([c.strip() for c in line.split("|")] for line in table.splitlines() if f"{way}`" in line or way in line)


def test_the_share_is_of_the_larger_bound():
    assert least_seconds(Work(bytes=1e8, flop=2e9), BOUNDS) == pytest.approx(0.02)
    assert least_seconds(Work(bytes=1e8, flop=2e9, arithmetic="float64"), BOUNDS) == pytest.approx(0.04)
    assert least_seconds(Work(bytes=1e9, flop=2e9), BOUNDS) == pytest.approx(0.1)  # at the highest bandwidth seen


def test_work_names_its_arithmetic():
    with pytest.raises(ValueError, match="'float16'"):
        Work(1.0, 1.0, "float16")


def test_table_of_a_family(path):
    table = tables(Run.read(path))["moments"]
    ours = cells(table, f"**{OURS}**")
    assert ours[1:] == ["a", f"**{OURS}**", "40.0 ms", "2.5", "50", "50%", "1", "1e-09", "1.50×", ""]
    assert cells(table, "`plain`")[-2] == "1.00×"
    assert cells(table, "`slow`")[-2] == "0.50×"
    assert cells(table, "`wrong`")[-2] == "(6.00×)"
    assert cells(table, "`ends`")[3:] == ["", "", "", "", "", "stops", "", ""]


def test_the_bounds_have_a_table(path):
    lines = tables(Run.read(path))["machine"].splitlines()
    assert lines[0] == "A $5 chip, torch 2.13.0 (AVX2, MKL), Python 3.11, 2026-11-24."
    assert lines[-1] == "| 2 | 8.0 | 5.0 | 10.0 | 9.0 | 100.0 | 50.0 |"


def test_best_other_is_right_and_not_ours(path):
    (group, *_) = Run.read(path).families()["moments"]
    assert best_other(group).contender == "plain"


def test_summary_has_one_row_per_case_with_another_way(path):
    lines = tables(Run.read(path))["summary"].splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == ["| a | 40.0 ms | 50% | 1e-09 | `plain` | 60.0 ms | 1e-09 | 1.50× |"]


def test_without_bounds_there_is_no_share(path):
    content = json.loads(path.read_text())
    del content["machine_info"]["bounds"]
    path.write_text(json.dumps(content))
    assert "share" not in tables(Run.read(path))["moments"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (12.345, "12.3 s"),
        (1.0, "1.00 s"),
        (0.9999, "1.00 s"),
        (0.1234, "123 ms"),
        (9.5e-4, "950 µs"),
        (5e-6, "5.00 µs"),
    ],
)
def test_times_have_three_digits(seconds, text):
    assert time(seconds) == text


def test_tables_go_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- benchmark table: x -->\nold\n<!-- end of benchmark table: x -->\nb\n")
    insert("x", "new", page)
    insert("y", "not here", page)
    assert page.read_text() == "a\n<!-- benchmark table: x -->\nnew\n<!-- end of benchmark table: x -->\nb\n"


def test_picture(path, tmp_path):
    outs = [tmp_path / f"{i}.svg" for i in range(2)]
    for out in outs:
        plot.main(path, out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    (axes,) = plot.draw(Run.read(path)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]
    assert [text.get_text() for text in axes.texts] == ["1.50×"]


def test_picture_of_nothing(path):
    run = Run.read(path)
    with pytest.raises(ValueError, match="no case"):
        plot.draw(Run(run.machine, run.date, [m for m in run.measurements if m.ours]))


def test_bounds_are_rates():
    found = measure_bounds(elements=2**14, side=64)
    assert set(found) == set(BOUNDS) and all(rate > 1e6 for rate in found.values())


def test_bounds_of_each_number_of_threads():
    found = bounds_by_threads(elements=2**14, side=64)
    assert list(found) == [str(threads) for threads in sorted({1, torch.get_num_threads()})]
    assert all(set(bounds) == set(BOUNDS) for bounds in found.values())


class Benchmark:
    """As much of pytest-benchmark's fixture as `measure` asks for."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.rounds = 0

    def pedantic(self, run, *, setup, rounds, warmup_rounds):
        for _ in range(rounds + warmup_rounds):
            self.rounds += 1
            arguments, options = setup()
            answer = run(*arguments, **options)
        return answer


def test_a_wrong_answer_of_ours_is_not_timed():
    benchmark = Benchmark()
    with pytest.raises(AssertionError, match="not worth timing"):
        measure(benchmark, lambda: 0, lambda: 0.1, family="moments", case="a", contender=OURS)
    assert not benchmark.rounds


def test_what_a_measurement_keeps():
    benchmark, clock = Benchmark(), [1.0, 2.0]
    work = Work(8.0, 4.0, "float64")
    measure(
        benchmark, lambda: 0, lambda: 0.1, family="moments", case="a", contender="other", work=work, clock=lambda: clock
    )
    info = benchmark.extra_info
    assert info["wrong"] and not info["stopped"] and info["seconds"] == clock
    assert (info["bytes"], info["flop"], info["arithmetic"]) == (8.0, 4.0, "float64")


def test_what_is_short_has_more_rounds():
    rounds = {}
    for seconds in (0.0, 0.05):
        benchmark = Benchmark()
        measure(
            benchmark, lambda s=seconds: sleep(s), lambda: 0.0, family="a", case="a", contender="b", rounds=2, warmup=1
        )
        rounds[seconds] = benchmark.rounds
    assert rounds[0.0] > 20 and rounds[0.05] <= 5  # one of which is the warm-up


def test_who_stops_is_kept_with_the_reason():
    def check() -> float:
        raise RuntimeError("singular")

    benchmark = Benchmark()
    measure(benchmark, lambda: 1 / 0, check, family="moments", case="a", contender="other", clock=lambda: [])
    assert benchmark.extra_info["stopped"] == "RuntimeError: singular" and "seconds" not in benchmark.extra_info


def test_quick_names_survive_escapes():
    assert is_quick("test_moments.py::test_second_moments[NCHW 128\\xd7256\\xd728\\xd728-stitchkern]")
    assert not is_quick("test_moments.py::test_second_moments[(8192, 2048)-stitchkern]")


def test_quick_names_what_is_there():
    assert "test_task.py::test_step[1 stitch-" in unknown(["test_task.py::test_step[8 stitches-stitchkern]"])
    assert not unknown(["test_task.py::test_step[1 stitch-stitchkern]"])
