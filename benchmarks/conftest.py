"""What a run of benchmarks is preceded by, and what its result file says about the machine."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import stitchkern
from benchmarks.bounds import bounds_by_threads
from benchmarks.measure import SMALL
from benchmarks.quick import is_quick, unknown

BOUNDS = pytest.StashKey[dict[str, dict[str, float]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the cases of benchmarks/quick.py alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    names = [item.nodeid.split("/")[-1] for item in items]
    if not SMALL and (missing := unknown(names)):  # small runs have other names
        raise pytest.UsageError(f"benchmarks/quick.py names what is not there: {', '.join(missing)}")
    config.hook.pytest_deselected(items=[i for i, name in zip(items, names, strict=True) if not is_quick(name)])
    items[:] = [item for item, name in zip(items, names, strict=True) if is_quick(name)]


@pytest.fixture(scope="session", autouse=True)
def bounds(request: pytest.FixtureRequest) -> None:
    """Measured before the first case, alone."""
    sizes = {"elements": 2**16, "side": 64} if SMALL else {}
    request.config.stash[BOUNDS] = bounds_by_threads(**sizes)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The machine's kind and not its name, and what else a time depends on."""
    machine_info.pop("node", None)
    machine_info.get("cpu", {}).pop("flags", None)
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    machine_info.update(
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        vectors=torch.backends.cpu.get_cpu_capability(),
        blas=blas[1] if blas else "",
        stitchkern=stitchkern.__version__,
        bounds=config.stash.get(BOUNDS, {}),
    )
