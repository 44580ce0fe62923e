"""The GPU lane as far as it goes without a GPU: its cases at small sizes on the CPU, its script with stand-ins."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import lsq
from benchmarks.gpu.__main__ import FAMILIES, main
from benchmarks.gpu.case import Case, Way
from benchmarks.run import Run, best_other

LANE = Path(__file__).parent.parent.parent / "benchmarks" / "gpu.sh"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the lane itself runs where there is a GPU")


@without_gpu
def test_every_family_is_verified_timed_and_told(tmp_path, capsys) -> None:
    families = [name for name in FAMILIES if name != "task"]  # whose cases are those of make bench
    assert main(tmp_path / "gpu.json", families) == 0
    run = Run.read(tmp_path / "gpu.json")
    found = run.families()
    assert list(found) == families
    for group in (group for groups in found.values() for group in groups):
        assert best_other(group) is not None and all(m.seconds > 0 for m in group)
        assert all(m.info["error"] < 1e-2 and m.right for m in group)
    assert all(run.share(m) is not None for group in found["lsq"] for m in group)
    text = capsys.readouterr().out
    assert text.rstrip().splitlines()[-1].startswith("| 10 α, p = q = 24")
    assert text.index("## lasso") < text.index("## summary")


@without_gpu
def test_a_wrong_answer_is_not_timed_and_the_others_are(tmp_path, capsys, monkeypatch) -> None:
    def cases():
        ran: list[str] = []
        ways = {
            "stitchkern": Way(lambda _: ran.append("wrong"), lambda: 1.0, allowed=0.5),
            "stitchkern, high": Way(lambda _: ran.append("right"), lambda: 0.1, allowed=0.5),
        }
        yield Case("lsq", "one", [None], ways)
        assert set(ran) == {"right"}
        raise RuntimeError("no memory")

    monkeypatch.setattr(lsq, "cases", cases)
    assert main(tmp_path / "gpu.json", ["lsq", "moments"]) == 1
    text = capsys.readouterr().out
    assert "FAILED one, stitchkern: an error of 1.0e+00 is not worth timing" in text
    assert "FAILED lsq: RuntimeError: no memory" in text
    (group,) = Run.read(tmp_path / "gpu.json").families()["lsq"]
    assert [m.stopped for m in group] == [True, False] and "moments" in Run.read(tmp_path / "gpu.json").families()


def lane(tmp_path: Path, script: str, **env: str) -> tuple[subprocess.CompletedProcess, float]:
    """The lane with a python that does what ``script`` says of its arguments."""
    for name, text in (("python", script), ("compute-sanitizer", 'while [[ $1 == --* ]]; do shift 2; done; exec "$@"')):
        file = tmp_path / name
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    path = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "LOGS": str(tmp_path / "out"),
    }
    begin = time.monotonic()
    ran = subprocess.run(["bash", str(LANE)], env={**os.environ, **path, **env}, capture_output=True, text=True)
    return ran, time.monotonic() - begin


def test_the_script_builds_first_times_last_and_ends_with_the_table(tmp_path) -> None:
    log = tmp_path / "log"
    script = f"""echo "$@" >> {log}
case "$*" in
  *get_device_capability*) echo 90a;;
  *benchmarks.gpu*) echo before; echo "## summary: a GPU"; echo "| the table |";;
esac"""
    ran, _ = lane(tmp_path, script)
    assert ran.returncode == 0, ran.stdout
    calls = log.read_text().splitlines()
    assert calls[1] == "setup.py build_ext --inplace" and calls[-1].startswith("-m benchmarks.gpu ")
    assert sum(call.startswith("-m pytest ") for call in calls) == 4 + 3
    assert ran.stdout.splitlines()[-2:] == ["## summary: a GPU", "| the table |"] and "before" not in ran.stdout
    assert ran.stdout.count("ok ") == 2 + 7 + 1 and "FAILED" not in ran.stdout


def test_the_script_says_what_failed_and_ends_whatever_hangs(tmp_path) -> None:
    script = """case "$*" in
  *test_spconv.py\\ tests/test_nn_sparse.py*) sleep 60;;
  *doctor*) echo "no GPU"; exit 3;;
esac"""
    ran, seconds = lane(tmp_path, script, SECONDS_IN_ALL="3")
    assert ran.returncode == 1 and seconds < 40
    assert "FAILED  doctor" in ran.stdout and "no GPU" in ran.stdout and "FAILED  tests-sparse" in ran.stdout
    assert "ok      tests-hsic" in ran.stdout and "ok      benchmarks" in ran.stdout
