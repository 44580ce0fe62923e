from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stitchkern.errors import SpecError
from stitchkern.models import load_model

save_file = pytest.importorskip("safetensors.torch").save_file

SOURCE = """
import torch
from torch import nn
from helper_beside import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, 2)
        self.bn = nn.BatchNorm1d(2)
    def forward(self, x):
        return self.bn(self.fc(x))

def make(): return Net()
ready = Net()
class Zoo:
    small = Net
number = 3
def not_a_model(): return [1]
def broken(): raise RuntimeError("out of cheese")
def leaves(): raise SystemExit(3)
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside.py").write_text("WIDTH = 3\n")
    (tmp_path / "nets.py").write_text(SOURCE)
    (tmp_path / "bad_syntax.py").write_text("def f(:\n")
    (tmp_path / "script.py").write_text("raise SystemExit('usage: script')\n")
    (tmp_path / "needs_more.py").write_text("import no_such_package_at_all\n")
    return tmp_path


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Module()
    model.fc, model.bn = nn.Linear(3, 2), nn.BatchNorm1d(2)
    return {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ["Net", "make", "ready", "Zoo.small"])
def test_classes_functions_and_instances_of_a_file(nets: Path, name: str) -> None:
    before = list(sys.path)
    model = load_model(f"{nets}/nets.py:{name}")
    assert type(model).__name__ == "Net"
    assert not model.training
    assert sys.path == before


def test_importable_modules_and_the_current_directory(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)
    monkeypatch.chdir(nets)
    assert load_model("nets:make").fc.in_features == 3
    monkeypatch.delitem(sys.modules, "nets")
    monkeypatch.delitem(sys.modules, "helper_beside")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_both_formats(nets: Path, suffix: str) -> None:
    state, path = weights(), nets / f"odd@name{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    model = load_model(f"{nets}/nets.py:make@{path}")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
def test_what_training_scripts_wrap_around_is_removed(nets: Path, wrap) -> None:
    state = weights()
    torch.save(wrap(state), nets / "w.pt")
    model = load_model(f"{nets}/nets.py:make@{nets}/w.pt")
    assert torch.equal(model.fc.weight, state["fc.weight"])
    assert torch.equal(model.bn.running_var, state["bn.running_var"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nets.py", ["must be file_or_module:callable[@weights]"]),
        ("{d}/none.py:make", ["no such file", "none.py"]),
        ("no_such_module_x:make", ["no such file or module 'no_such_module_x'"]),
        ("torch.no_such_part:make", ["no such file or module 'torch.no_such_part'"]),
        ("{d}/nets.py:maek", ["has no 'maek'", "nearest: make"]),
        ("{d}/nets.py:Zoo.smal", ["has no 'Zoo.smal'", "nearest: small"]),
        ("{d}/nets.py:number", ["'number'", "is a int, not callable"]),
        ("{d}/nets.py:not_a_model", ["gives a list; it must give an nn.Module"]),
        ("{d}/nets.py:broken", ["broken() raised RuntimeError: out of cheese"]),
        ("{d}/nets.py:leaves", ["leaves() raised SystemExit: 3"]),
        ("{d}/script.py:make", ["importing", "raised SystemExit: usage: script"]),
        ("{d}/bad_syntax.py:make", ["importing", "raised SyntaxError"]),
        ("{d}/needs_more.py:make", ["importing", "No module named 'no_such_package_at_all'"]),
        ("{d}/nets.py:make@{d}/none.pt", ["no such weights file", "none.pt"]),
        ("{d}/nets.py:make@{d}/nets.py", ["not a plain state dict", "weights_only=True"]),
        ("{d}/nets.py:make@{d}/damaged.safetensors", ["damaged.safetensors cannot be read"]),
        ("{d}/nets.py:make@{d}/nothing.pt", ["nothing.pt cannot be read: EOFError"]),
        ("{d}/nets.py:make@{d}/list.pt", ["hold no state dict but: list"]),
        ("{d}/nets.py:make@{d}/empty.pt", ["hold no state dict but: nothing"]),
        ("{d}/nets.py:make@{d}/optimizer.pt", ["hold no state dict but: state, param_groups"]),
        (
            "{d}/nets.py:make@{d}/other.pt",
            ["missing fc.weight, fc.bias, bn.weight, bn.bias and 2 more", "unexpected head"],
        ),
        ("{d}/nets.py:make@{d}/shape.pt", ["size mismatch for fc.weight"]),
    ],
)
def test_each_error_names_the_part_that_is_wrong(nets: Path, spec: str, words: list[str]) -> None:
    (nets / "damaged.safetensors").write_bytes(b"\x00" * 20)
    (nets / "nothing.pt").write_bytes(b"")
    torch.save([1], nets / "list.pt")
    torch.save({}, nets / "empty.pt")
    torch.save(torch.optim.SGD([torch.zeros(1)]).state_dict(), nets / "optimizer.pt")
    torch.save({"head": torch.zeros(1)}, nets / "other.pt")
    torch.save({**weights(), "fc.weight": torch.zeros(7, 7)}, nets / "shape.pt")
    with pytest.raises(SpecError) as caught:
        load_model(spec.format(d=nets))
    for word in words:
        assert word in str(caught.value)


def test_weights_are_never_unpickled_as_code(nets: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (nets / "owned",)

    torch.save({"fc.weight": Evil()}, nets / "evil.pt")
    with pytest.raises(SpecError, match="weights_only=True"):
        load_model(f"{nets}/nets.py:make@{nets}/evil.pt")
    assert not (nets / "owned").exists()


def test_a_prefix_that_is_a_name_of_the_model_stays(nets: Path) -> None:
    (nets / "wrapped.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.module = nn.Linear(3, 2)\n"
    )
    state = {"module.weight": torch.randn(2, 3), "module.bias": torch.randn(2)}
    for prefix in ("", "module.", "_orig_mod."):
        torch.save({f"{prefix}{name}": value for name, value in state.items()}, nets / "w.pt")
        model = load_model(f"{nets}/wrapped.py:Net@{nets}/w.pt")
        assert torch.equal(model.module.weight, state["module.weight"])
