"""`stitchkern doctor` sees what is wrong and says what to do, whatever is missing."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import stitchkern
from stitchkern import _C, doctor


def by_name():
    return {finding.name: finding for finding in doctor.examine()}


def test_a_working_installation():
    findings = by_name()
    assert not any(finding.fatal for finding in findings.values())
    assert findings["build flags"].value == _C.build_info()["flags"]
    assert findings["torch"].value == torch.__version__


def test_a_build_without_cuda_says_how_to_get_it(monkeypatch):
    info = {**_C.build_info(), "cuda": "", "cuda_archs": ""}
    monkeypatch.setattr(_C, "build_info", lambda: info)
    assert "STITCHKERN_CUDA=1" in by_name()["CUDA kernels"].advice


def test_a_gpu_that_nothing_was_compiled_for(monkeypatch):
    info = {**_C.build_info(), "cuda": "13.0", "cuda_archs": "80;90a"}
    monkeypatch.setattr(_C, "build_info", lambda: info)
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_capability=lambda i: [(8, 6), (12, 0)][i],
        get_device_name=lambda i: f"Device {i}",
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    findings = by_name()
    assert findings["CUDA kernels"].value == "compiled with toolkit 13.0 for sm_80, sm_90a"
    assert findings["GPU 0"].value == "Device 0, sm_86" and not findings["GPU 0"].advice
    assert "STITCHKERN_CUDA_ARCHS=120" in findings["GPU 1"].advice


@pytest.mark.parametrize(
    "arch, capability, expected",
    [
        ("80", (8, 0), True),
        ("80", (8, 9), True),
        ("86", (8, 0), False),
        ("80", (9, 0), False),
        ("90a", (9, 0), True),
        ("100a", (10, 3), False),
        ("120", (12, 1), True),
        ("", (8, 0), False),
    ],
)
def test_runs_on(arch, capability, expected):
    assert doctor.runs_on(arch, *capability) is expected


def test_optional_packages(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert by_name()["scikit-learn"].advice.endswith("pip install 'stitchkern[demo]'")


def test_without_the_extension_it_still_says_what_to_do():
    code = "import sys; sys.modules['stitchkern._C'] = None; from stitchkern.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(Path(stitchkern.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code, "doctor"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot be imported" in done.stdout and "pip install ." in done.stdout
    assert "Traceback" not in done.stderr
