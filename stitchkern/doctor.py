"""What this installation is made of, what is missing, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from stitchkern._version import __version__

OPTIONAL = (
    ("sklearn", "scikit-learn", "for `stitchkern demo`: pip install 'stitchkern[demo]'"),
    ("PIL", "Pillow", "to read .npz files that hold JPEG images: pip install pillow"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the examination. `advice`: what to do, if anything; `fatal`: stitchkern cannot work so."""

    name: str
    value: str
    advice: str = ""
    fatal: bool = False


def examine() -> list[Finding]:
    """Look at torch, the extension, the devices and the optional packages; nothing missing raises."""
    findings = [
        Finding("stitchkern", __version__),
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    torch, error = _import("torch")
    if torch is None:
        return [*findings, Finding("torch", f"cannot be imported: {error}", "pip install torch", fatal=True)]
    findings.append(Finding("torch", torch.__version__))
    extension, error = _import("stitchkern._C")  # after torch, whose libraries it is linked against
    build: dict[str, Any] = {}
    if extension is None:
        advice = (
            "build it: `pip install .` in the source folder, with a C++20 compiler (g++ 11 or later); "
            "the extension needs torch 2.11 or later, so `pip install -U torch` if yours is older"
        )
        findings.append(Finding("extension", f"cannot be imported: {error}", advice, fatal=True))
    else:
        build = extension.build_info()
        findings += _extension(build)
    return [*findings, *_devices(torch, _archs(build)), *_optional()]


def _extension(build: dict[str, Any]) -> list[Finding]:
    findings = [
        Finding(
            "extension",
            f"built against torch {build['torch_built_with']}, runs from {build['torch_minimum']} on",
        ),
        Finding("compiler", str(build["compiler"])),
        Finding("build flags", str(build["flags"])),
        Finding("CPU kernels", f"{build['cpu_path']}, chosen for this processor"),
    ]
    if build["cuda"]:
        archs = ", ".join(f"sm_{arch}" for arch in _archs(build))
        findings.append(Finding("CUDA kernels", f"compiled with toolkit {build['cuda']} for {archs or 'nothing'}"))
    else:
        advice = (
            "for a GPU, install the CUDA toolkit so that nvcc is on PATH (or set CUDA_HOME), "
            "then reinstall with STITCHKERN_CUDA=1; on a CPU nothing is missing"
        )
        findings.append(Finding("CUDA kernels", "not compiled: no nvcc when this was built", advice))
    return findings


def _devices(torch: ModuleType, archs: list[str]) -> list[Finding]:
    findings = [Finding("CPU", f"{torch.get_num_threads()} threads of {os.cpu_count()} processors")]
    if not torch.cuda.is_available():
        has_cuda = torch.version.cuda is not None
        value = "none seen by torch" if has_cuda else "none: this torch is built without CUDA"
        advice = "check the driver with nvidia-smi" if has_cuda else "for a GPU, install a CUDA build of torch"
        return [*findings, Finding("GPU", value, advice)]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        value = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"
        runs = any(runs_on(arch, major, minor) for arch in archs)
        advice = "" if runs else f"reinstall with STITCHKERN_CUDA=1 STITCHKERN_CUDA_ARCHS={major}{minor}"
        findings.append(Finding(f"GPU {index}", value + ("" if runs else ": no kernels compiled for it"), advice))
    return findings


def _optional() -> list[Finding]:
    return [
        Finding(name, "installed") if importlib.util.find_spec(module) else Finding(name, "not installed", advice)
        for module, name, advice in OPTIONAL
    ]


def runs_on(arch: str, major: int, minor: int) -> bool:
    """Whether code for `arch` ("80", "90a") runs on compute capability major.minor.

    It does on the same major and no lower minor; with a letter, on exactly that one.
    """
    match = re.fullmatch(r"(\d+)(\d)([a-z]?)", arch)
    if match is None:
        return False
    same_major, arch_minor = int(match[1]) == major, int(match[2])
    return same_major and (arch_minor == minor if match[3] else arch_minor <= minor)


def _archs(build: dict[str, Any]) -> list[str]:
    return [arch.removeprefix("sm_") for arch in re.split(r"[;,\s]+", str(build.get("cuda_archs", ""))) if arch]


def _import(name: str) -> tuple[Any, str]:
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a broken shared object raises ImportError, OSError or worse
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
