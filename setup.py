"""Builds stitchkern._C: one shared object for CPU and CUDA, on torch's stable ABI.

The settings are environment variables, so that they reach a build inside pip:

    STITCHKERN_CUDA=auto|0|1      compile the CUDA kernels if nvcc is found (auto, the default), never, or always
    STITCHKERN_CUDA_ARCHS=80;90a  architectures to compile for, as nvcc names them
    MAX_JOBS=2                    compilers at once (default: one per core, at most one per 2 GB of memory)
    CUDA_HOME, NVCC, CXX          where the compilers are

torch.utils.cpp_extension is not used: it ties a CUDA build to a CUDA torch and a visible GPU, and the stable ABI needs
neither. ninja does what it is good at: rebuild what changed, in parallel.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
STABLE_ABI = "0x020b000000000000"  # torch 2.11
X86 = platform.machine().lower() in ("x86_64", "amd64")
PATHS = {  # instruction sets that *_path.cpp files are compiled for
    "baseline": [],
    **({"avx2": ["-mavx2", "-mfma", "-mf16c"]} if X86 else {}),
    **(
        {
            "avx512": [
                "-mavx512f",
                "-mavx512dq",
                "-mavx512bw",
                "-mavx512vl",
                "-mfma",
                "-mprefer-vector-width=512",
            ]
        }
        if X86
        else {}
    ),
}


def version() -> str:
    text = (ROOT / "stitchkern" / "_version.py").read_text()
    return re.search(r'"(.+)"', text).group(1)  # type: ignore[union-attr]


def find_nvcc() -> str | None:
    """Path of nvcc, or None with one line that says why."""
    wanted = os.environ.get("STITCHKERN_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"stitchkern: STITCHKERN_CUDA must be auto, 0 or 1; got {wanted!r}")
    if wanted == "0":
        print("stitchkern: CPU only (STITCHKERN_CUDA=0)", file=sys.stderr)
        return None
    named = [os.environ.get("NVCC"), *(f"{h}/bin/nvcc" for k in ("CUDA_HOME", "CUDA_PATH") if (h := os.environ.get(k)))]
    candidates = [c for c in named if c] or ["nvcc", "/usr/local/cuda/bin/nvcc"]  # what is named is not second-guessed
    nvcc = next((found for c in candidates if (found := shutil.which(c))), None)
    if nvcc is None:
        message = (
            "stitchkern: nvcc not found: building for the CPU only (set CUDA_HOME or NVCC to include the CUDA kernels)"
        )
        if wanted == "1":
            sys.exit(message.replace("building for the CPU only", "STITCHKERN_CUDA=1 needs it"))
        print(message, file=sys.stderr)
    return nvcc


def nvcc_version(nvcc: str) -> str:
    out = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", out).group(1)  # type: ignore[union-attr]


def cudart_folder(nvcc: str) -> Path:
    """Where libcudart_static.a is. nvcc itself is asked: the one on PATH may be a link or a script."""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(\S+)", dry)
    root = Path(top.group(1) if top else Path(nvcc).resolve().parent.parent).resolve()
    folders = [root / "lib64", root / "lib", *root.glob("targets/*/lib")]
    for folder in folders:
        if (folder / "libcudart_static.a").exists():
            return folder
    sys.exit(
        f"stitchkern: libcudart_static.a is in none of {', '.join(map(str, folders))}; STITCHKERN_CUDA=0 builds without"
    )


def jobs() -> int:
    if value := os.environ.get("MAX_JOBS"):
        return max(1, int(value))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = 8 << 30
    return max(1, min(cores, memory // (2 << 30)))


class Ninja:
    """Just enough of a ninja file. Ninja rebuilds what changed (headers and commands included), in parallel."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lines = folder, ["ninja_required_version = 1.5"]

    def rule(self, name: str, command: str, depfile: bool = True) -> None:
        deps = "\n  depfile = $out.d\n  deps = gcc" if depfile else ""
        self.lines.append(f"rule {name}\n  command = {command}\n  description = {name} $out{deps}")

    def build(self, name: str, rule: str, inputs: list[Path], more: list[str] | None = None) -> Path:
        out = self.folder / name
        paths = [str(p).replace(" ", "$ ").replace(":", "$:") for p in (out, *inputs)]
        self.lines.append(f"build {paths[0]}: {rule} {' '.join(paths[1:])}\n  more = {shlex.join(more or [])}")
        return out

    def run(self) -> None:
        import ninja

        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(self.folder), "-j", str(jobs())]
        if subprocess.run(command).returncode:
            sys.exit("stitchkern: the native build failed; the compiler's message is above")


def write_if_changed(path: Path, text: str) -> Path:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


class BuildNative(build_ext):
    """Compiles csrc/: *.cpp, each *_path.cpp once per instruction set, each *_cuda.cu when there is an nvcc."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11
        import torch

        torch_root = Path(torch.__file__).parent
        nvcc = find_nvcc()
        archs = os.environ.get("STITCHKERN_CUDA_ARCHS", "80;90a").replace(",", ";").split(";") if nvcc else []
        n = Ninja(Path(self.build_temp).resolve() / "native")

        cxx = shlex.split(os.environ.get("CXX", "g++" if sys.platform.startswith("linux") else "c++"))
        flags = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
        shared = [f"-DTORCH_TARGET_VERSION={STABLE_ABI}", f"-I{torch_root / 'include'}"]
        shared += ["-DSTITCHKERN_X86_PATHS"] if X86 else []
        info = {
            "STITCHKERN_VERSION": version(),
            "STITCHKERN_FLAGS": shlex.join([*cxx, *flags]),
            "STITCHKERN_TORCH": torch.__version__,
            "STITCHKERN_CUDA_VERSION": nvcc_version(nvcc) if nvcc else "",
            "STITCHKERN_CUDA_ARCHS": " ".join(archs),
        }
        header = write_if_changed(
            n.folder / "build_info.h", "".join(f'#define {name} "{value}"\n' for name, value in info.items())
        )
        front_door = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}", "-include", str(header)]

        # C++
        n.rule("cxx", shlex.join([*cxx, *flags, *shared]) + " $more -MMD -MF $out.d -c $in -o $out")
        objects = []
        for source in sorted(CSRC.rglob("*.cpp")):
            name = source.relative_to(CSRC).with_suffix("")
            if source.stem.endswith("_path"):
                for path, options in PATHS.items():
                    more = [*options, f"-DSTITCHKERN_PATH={path}"]
                    objects.append(n.build(f"{name}.{path}.o", "cxx", [source], more))
            else:
                more = front_door if source.parent == CSRC else []
                objects.append(n.build(f"{name}.o", "cxx", [source], more))

        # CUDA
        libraries = [f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        if nvcc:
            options = [
                "-std=c++20",
                "-O3",
                "-Xcompiler=-fPIC,-fvisibility=hidden",
                "-Xptxas=-v",
                "--threads=2",
                "-DUSE_CUDA",
            ]
            options += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
            if plain := [a for a in archs if a.isdigit()]:  # later chips compile the newest of these themselves
                newest = max(plain, key=int)
                options.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
            n.rule("nvcc", shlex.join([nvcc, *options, *shared]) + " $more -MMD -MF $out.d -c $in -o $out")
            for source in sorted(CSRC.rglob("*_cuda.cu")):
                objects.append(n.build(f"{source.relative_to(CSRC).with_suffix('')}.cu.o", "nvcc", [source]))
            libraries += [f"-L{cudart_folder(nvcc)}", "-lcudart_static", "-lrt", "-ldl", "-lpthread"]

        # one shared object
        libraries += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        n.rule("link", f"{shlex.join(cxx)} -shared $in {shlex.join(libraries)} -o $out", depfile=False)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        n.build(str(target), "link", objects)
        n.run()


setup(
    version=version(),
    ext_modules=[Extension("stitchkern._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
