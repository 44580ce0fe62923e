"""Real change is told from noise: runs made up from known times and known noise."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare, main
from benchmarks.measure import OURS
from benchmarks.run import Run

MACHINE = {"cpu": {"brand_raw": "A", "count": 2}, "system": "L", "machine": "x", "threads": 2, "torch": "2.13.0"}
CASES = 30


def write(
    path: Path,
    seed: int,
    *,
    drift: float = 1.0,
    noise: float = 0.03,
    changed: dict[int, float] | None = None,
    threads: int = 2,
    ways: tuple[str, ...] = (OURS, "x.T @ x"),
    cases: range = range(CASES),
    **machine: Any,
) -> Path:
    """A run of `cases`, of 10 ms · (1 + i) each: all × drift × noise between runs, ours × what was changed."""
    draw = random.Random(seed)
    benchmarks = []
    for i in cases:
        for way in ways:
            base = 0.01 * (1 + i) * drift * draw.lognormvariate(0, noise)
            base *= (changed or {}).get(i, 1.0) if way == OURS else 1.0
            info = {"family": "moments", "case": f"case {i}", "contender": way, "threads": threads, "error": 0.0}
            data = [base * draw.lognormvariate(0, noise) for _ in range(7)]
            benchmarks.append({"extra_info": info, "stats": {"data": data}})
    content = {"machine_info": {**MACHINE, **machine}, "benchmarks": benchmarks, "datetime": "2026-11-24T00:00:00"}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path / "old.json", 0)


def run_both(old: Path, new: Path):
    return compare(Run.read(old), Run.read(new))


@pytest.mark.parametrize("seed", range(1, 6))
def test_noise_alone_is_no_change(old, tmp_path, seed):
    new = write(tmp_path / "new.json", seed)
    assert {c.verdict for c in run_both(old, new).changes} == {"same"}
    assert main([str(old), str(new)]) == 0


def test_false_alarms_are_as_rare_as_they_are_said_to_be(tmp_path):
    alarms = 0
    for seed in range(100):
        runs = [write(tmp_path / f"{i}.json", 1000 + 2 * seed + i, noise=0.05) for i in range(2)]
        alarms += any(c.verdict != "same" for c in run_both(*runs).changes)
    assert alarms <= 12  # of 100, at 5 % each: more than 12 has a probability below 0.2 %


def test_what_became_slower_or_faster_is_found(old, tmp_path, capsys):
    new = write(tmp_path / "new.json", 1, changed={3: 1.5, 7: 0.6})
    verdicts = {c.case: c.verdict for c in run_both(old, new).changes}
    assert {case: v for case, v in verdicts.items() if v != "same"} == {"case 3": "slower", "case 7": "faster"}
    assert main([str(old), str(new)]) == 1
    assert "1 faster, 1 slower, 28 same" in capsys.readouterr().out


def test_what_became_faster_alone_is_no_failure(old, tmp_path):
    assert main([str(old), str(write(tmp_path / "new.json", 1, changed={7: 0.6}))]) == 0


def test_the_interval_holds_the_true_ratio(old, tmp_path):
    new = write(tmp_path / "new.json", 1, drift=1.3, changed={3: 1.5})
    change = next(c for c in run_both(old, new).changes if c.case == "case 3")
    assert change.low < 1.5 < change.high
    assert change.low < change.ratio < change.high


def test_a_machine_that_is_slower_as_a_whole_is_no_change_of_ours(old, tmp_path):
    found = run_both(old, write(tmp_path / "new.json", 1, drift=1.4))
    assert found.drift == pytest.approx(1.4, rel=0.03)
    assert {c.verdict for c in found.changes} == {"same"}


def test_noisier_runs_have_wider_intervals(tmp_path):
    widths = []
    for noise in (0.03, 0.15):
        runs = [write(tmp_path / f"{i}.json", i, noise=noise) for i in range(2)]
        found = run_both(*runs)
        widths.append(max(c.high / c.low for c in found.changes))
        assert 0.5 * noise < found.noise / 2**0.5 < 2 * noise
    assert widths[1] > 2 * widths[0]


def test_without_others_noise_is_assumed(tmp_path, capsys):
    runs = [write(tmp_path / f"{i}.json", i, ways=(OURS,), noise=0.01, changed={0: 1.08 * i or 1}) for i in range(2)]
    assert {c.verdict for c in run_both(*runs).changes} == {"same"}  # 8 % may be the machine
    assert main([str(run) for run in runs]) == 0
    assert "assumed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "machine, word",
    [({"cpu": {"brand_raw": "B", "count": 2}}, "processor"), ({"threads": 4}, "threads"), ({"machine": "arm"}, "arm")],
)
def test_other_machines_are_said_and_not_compared(old, tmp_path, capsys, machine, word):
    new = write(tmp_path / "new.json", 1, changed={3: 5.0}, **machine)
    assert main([str(old), str(new)]) == 2
    out = capsys.readouterr().out
    assert "not compared" in out and word in out and "slower" not in out


def test_cases_with_other_threads_are_said_and_not_compared(old, tmp_path):
    new = write(tmp_path / "new.json", 1, cases=range(4), threads=1)
    found = run_both(old, new)
    assert not found.changes and found.status == 2
    assert sum("ran with 2 and 1 threads" in remark for remark in found.remarks) == 4


def test_another_torch_leaves_no_control(old, tmp_path):
    found = run_both(old, write(tmp_path / "new.json", 1, torch="2.14.0"))
    assert found.others == 0 and len(found.changes) == CASES
    assert any("2.13.0 and 2.14.0" in remark for remark in found.remarks)


def test_cases_in_one_run_alone_are_counted(old, tmp_path):
    found = run_both(old, write(tmp_path / "new.json", 1, cases=range(5, CASES + 2)))
    assert len(found.changes) == CASES - 5
    assert "5 cases are in the old run alone" in found.remarks and "2 cases are in the new run alone" in found.remarks
