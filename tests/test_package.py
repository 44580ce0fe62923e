"""The package as others get it: source archive, wheel, a binary that needs nothing but torch's stable ABI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import stitchkern
from stitchkern import _C, ops

ROOT = Path(__file__).resolve().parent.parent


def run(*command: object, **options) -> str:
    done = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a source archive and the wheel built from that where no nvcc is found; what the build printed."""
    pytest.importorskip("build")
    if not (ROOT / "csrc").exists() or not (ROOT / "setup.py").exists():
        pytest.skip("no source tree")
    source = tmp_path_factory.mktemp("source") / "stitchkern"
    made = {"build", "dist", "report", "out"} | {p.name for p in ROOT.glob(".*") if p.is_dir()}

    def ignore(folder: str, names: list[str]) -> set[str]:
        top = made if Path(folder) == ROOT else set()
        return {n for n in names if n in top or n == "__pycache__" or n.endswith((".so", ".egg-info"))}

    shutil.copytree(ROOT, source, ignore=ignore)
    dist = tmp_path_factory.mktemp("dist")
    env = {k: v for k, v in os.environ.items() if k not in ("NVCC", "CUDA_PATH", "STITCHKERN_CUDA")}
    env["CUDA_HOME"] = str(dist / "nowhere")
    return dist, run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, env=env)


def test_absent_nvcc_is_one_clear_line(built):
    lines = [line for line in built[1].splitlines() if "nvcc not found" in line]
    assert len(set(lines)) == 1 and "building for the CPU only (set CUDA_HOME or NVCC" in lines[0]


def test_archives_are_complete(built):
    sdist, wheel = next(built[0].glob("*.tar.gz")), next(built[0].glob("*.whl"))
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[-1] for name in archive.getnames()}
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    for path in ROOT.rglob("*"):
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir() or "__pycache__" in name or path.suffix == ".so":
            continue
        if name.split("/")[0] in ("csrc", "stitchkern", "tests", "benchmarks", "examples", "docs"):
            assert name in in_sdist, f"{name} is missing from the source archive"
        if name.startswith("stitchkern/") and path.suffix in (".py", ".j2", ".typed"):
            assert name in in_wheel, f"{name} is missing from the wheel"
    assert sum(name.endswith(".so") for name in in_wheel) == 1, "one shared object"
    assert not any(name.startswith(("tests/", "csrc/")) for name in in_wheel)


def test_wheel_works_in_an_empty_environment(built, tmp_path):
    wheel = next(built[0].glob("*.whl"))
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    # torch and the other requirements are lent by this environment; its own stitchkern is not
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    code = (
        "import stitchkern as sk, torch; m = sk.Moments(3, 2).update(torch.randn(9, 3), torch.randn(9, 2)); "
        "print(sk.__file__, sk.__version__, sk.least_squares(m).method, sk._C.build_info()['cuda'] == '')"
    )
    out = run(python, "-c", code, cwd=tmp_path).split()
    assert out[0].startswith(str(tmp_path)) and out[1:] == [stitchkern.__version__, "cholesky", "True"]
    assert stitchkern.__version__ in run(tmp_path / "env" / "bin" / "stitchkern", "--version", cwd=tmp_path)


def test_only_the_stable_abi_is_used():
    """Every undefined symbol of torch is one of its stable C entry points, so any torch from 2.11 on will do."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    symbols = run(nm, "-D", "--undefined-only", _C.__file__).split()
    mangled = [s for s in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", s)]
    assert not mangled, mangled
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in symbols)


def test_cuda_kernels_are_in_the_same_object_and_need_no_cuda_torch():
    """The binary imported here, or no test would run; where it was built with nvcc, the CUDA kernels are in it."""
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key("stitchkern::moments_update_", "CUDA")
    assert has_cuda == bool(_C.build_info()["cuda"])
    assert torch._C._dispatch_has_kernel_for_dispatch_key("stitchkern::moments_update_", "CPU")


def test_build_info_and_constants():
    info = _C.build_info()
    assert info["version"] == stitchkern.__version__ and "-std=c++20" in info["flags"]
    plan = _C.moments_plan(2**20, 512, 0, False, ops.PRECISIONS["highest"], 90, 132)
    assert plan["kind"] == "float64" and plan["splits"] * plan["split_rows"] >= 2**20
    assert list(ops.PRECISIONS) == ["medium", "high", "highest", "float64"]


@pytest.mark.parametrize(
    "setting,message",
    [("yes", "STITCHKERN_CUDA must be auto, 0 or 1; got 'yes'"), ("1", "STITCHKERN_CUDA=1 needs it")],
)
def test_settings_of_the_build_are_checked(setting, message, tmp_path):
    if not (ROOT / "setup.py").exists():
        pytest.skip("no source tree")
    env = {**os.environ, "STITCHKERN_CUDA": setting, "CUDA_HOME": str(tmp_path)}
    env.pop("NVCC", None)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr
