"""Builds the test executor: CUDA sources compiled as C++ for the CPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "executor"
CXX = os.environ.get("CXX", "g++")
AVAILABLE = shutil.which(CXX) is not None


def build(sanitize: bool = False) -> Path:
    """The library of ops stitchkern_executor: every *_cuda.cu of csrc/, registered for CPU tensors.

    sanitize: with AddressSanitizer and UBSan, any finding ending the process.
    """
    kernels = sorted((ROOT / "csrc").rglob("*_cuda.cu"))
    return _library(
        "stitchkern_executor", [HERE / "executor.cpp", HERE / "library.cpp", *kernels], sanitize, torch=True
    )


def build_faults(sanitize: bool = False) -> Path:
    """The library of faulty kernels (faults.cu), without torch."""
    return _library("faults", [HERE / "executor.cpp", HERE / "faults.cu"], sanitize, torch=False)


def sanitizer_environment() -> dict[str, str]:
    """What a Python process needs that loads a sanitized library."""
    asan = subprocess.run(
        [CXX, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def _library(name: str, sources: list[Path], sanitize: bool, torch: bool) -> Path:
    """Compiled once for each content of the sources, under build/executor/."""
    flags = ["-std=c++20", "-O2", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
    flags += ["-DSTITCHKERN_EXECUTOR", f"-I{HERE}/include"]
    libraries, version = [], ""
    if torch:
        import torch as installed

        root = Path(installed.__file__).parent
        flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(root / "include")]
        flags += ["-isystem", str(root / "include/torch/csrc/api/include")]
        version = installed.__version__
        libraries = [f"-L{root}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    if sanitize:
        flags += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

    digest = hashlib.sha256(f"{CXX} {flags} {sources} {version}".encode())
    for folder in (ROOT / "csrc", HERE):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".cpp")):
            digest.update(path.read_bytes())
    out = ROOT / "build" / "executor" / f"{name}-{digest.hexdigest()[:16]}"
    library = out / f"{name}.so"
    if library.exists():
        return library

    out.mkdir(parents=True, exist_ok=True)
    objects = [out / f"{source.stem}.{os.getpid()}.o" for source in sources]  # several test processes may build at once
    compilers = [
        subprocess.Popen([CXX, *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
        for source, target in zip(sources, objects, strict=True)
    ]
    if any([c.wait() for c in compilers]):
        raise RuntimeError(f"{name} does not compile; the compiler's message is above")
    partial = out / f"{os.getpid()}.so"
    subprocess.run([CXX, *flags, "-shared", *map(str, objects), *libraries, "-o", str(partial)], check=True)
    os.replace(partial, library)
    for target in objects:
        target.unlink()
    return library
