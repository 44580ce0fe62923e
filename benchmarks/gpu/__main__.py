"""Times every family on the GPU and writes a result file: `python -m benchmarks.gpu OUT.json [FAMILY …]`.

The file is like that of `make bench`, so that `benchmarks.table` and `benchmarks.compare` read it. The table is last.
"""

from __future__ import annotations

import datetime
import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import stitchkern
from benchmarks.bounds import measure_bounds
from benchmarks.gpu.case import DEVICE, SMALL, least
from benchmarks.run import Run
from benchmarks.table import family_table, summary_table

FAMILIES = ("moments", "lsq", "hsic", "spconv", "lasso", "task")


def main(out: Path, families: list[str]) -> int:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    entries: list[dict[str, Any]] = []
    failed = 0
    content = {"machine_info": machine(), "datetime": datetime.datetime.now().isoformat(), "benchmarks": entries}
    out.write_text(json.dumps(content))  # nothing of an earlier run is left to be read below
    for family in families:
        try:
            for case in importlib.import_module(f"benchmarks.gpu.{family}").cases():
                found = list(case.measured())
                entries += found
                out.write_text(json.dumps(content, indent=1))  # what there is survives whatever comes
                print(f"measured {case.name}", flush=True)
                for info in (entry["extra_info"] for entry in found if entry["extra_info"]["stopped"]):
                    failed = 1
                    print(f"FAILED {case.name}, {info['contender']}: {info['stopped']}", flush=True)
        except Exception as error:  # the other families are to be seen too
            failed = 1
            print(f"FAILED {family}: {type(error).__name__}: {error}", flush=True)
    run = Run.read(out)
    for family, groups in run.families().items():
        print(f"\n## {family}\n\n{family_table(run, groups)}")
    print(f"\n## summary: {run.processor}, torch {torch.__version__}\n")
    print({name: f"{value:.3g}" for name, value in run.machine["bounds"]["1"].items()}, end="\n\n")
    print(summary_table(run, [group for groups in run.families().values() for group in groups]), flush=True)
    return failed


def machine() -> dict[str, Any]:
    """The device's kind, its bounds, and what else a time depends on."""
    sizes = {"elements": 2**16, "side": 64} if SMALL else {"elements": 2**28, "side": 8192}
    kinds = ("float32", "float64", "bfloat16")
    name = platform.machine() if SMALL else torch.cuda.get_device_name()
    return {
        "cpu": {"brand_raw": name},
        "python_version": platform.python_version(),
        "threads": 1,
        "torch": torch.__version__,
        "vectors": str(torch.version.cuda),
        "blas": "cublas",
        "stitchkern": stitchkern.__version__,
        "bounds": {"1": measure_bounds(**sizes, arithmetic=kinds, device=DEVICE, least=least)},
    }


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(FAMILIES):
        raise SystemExit(f"usage: python -m benchmarks.gpu OUT.json [{' | '.join(FAMILIES)}] …; got {sys.argv[1:]}")
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:] or list(FAMILIES)))
