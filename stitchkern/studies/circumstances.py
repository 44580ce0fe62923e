"""When, where and with what a result was made, for people to read."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timezone

import torch

from stitchkern._version import __version__


def circumstances(device: torch.device | str, seconds: Mapping[str, float]) -> dict[str, str]:
    """Date, seconds by stage, versions, machine, device."""
    versions = {"stitchkern": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    return {
        "Date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Time": ", ".join(f"{stage} {time:.1f} s" for stage, time in seconds.items()),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Machine": f"{platform.system()} {platform.machine()}, CPU threads: {torch.get_num_threads()}",
        "Device": str(device),
    }
