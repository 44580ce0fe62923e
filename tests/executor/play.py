"""The test executor from Python: the library of kernels, what it plays, and a second run under sanitizers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import torch

from stitchkern import ops
from tests.executor import build

SANITIZED = os.environ.get("STITCHKERN_SANITIZE") == "1"
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}
KINDS = ["plain", "float64", "bf16x1", "bf16x3", "bf16x6"]  # of moments: moments_plan.h


class Executor:
    """The library of kernels, and what it plays."""

    def __init__(self) -> None:
        path = str(build.build(SANITIZED))
        torch.ops.load_library(path)
        self.native = ctypes.CDLL(path)

    def play(
        self, kind: str | None = None, *, order: str = "forward", capability: int = 90, processors: int = 4
    ) -> None:
        index = -1 if kind is None else KINDS.index(kind)
        self.native.executor_set(ORDERS[order], capability, processors, index)

    def plan(
        self, rows: int, p: int, q: int, *, float64: bool, precision: str, capability: int, processors: int
    ) -> dict:
        out = (ctypes.c_int64 * 6)()
        code = ops.PRECISIONS[precision]
        sizes = [ctypes.c_int64(v) for v in (rows, p, q)]
        self.native.executor_moments_plan(*sizes, int(float64), code, capability, processors, out)
        names = ("kind", "pairs", "splits", "split_rows", "bytes", "norm_chunks")
        plan = dict(zip(names, out, strict=True))
        return {**plan, "kind": KINDS[plan["kind"]]}


def run_under_sanitizers(file: str, selection: str) -> None:
    """Those tests of `file` that `selection` (pytest's -k) names, in a process of their own; any finding fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", file, "-k", selection]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=build.ROOT,
        env={**build.sanitizer_environment(), "STITCHKERN_SANITIZE": "1"},
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[:8000]
    assert "passed" in run.stdout and "Sanitizer" not in run.stderr
