"""Models named by a string: ``file_or_module:callable[@weights]``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern.errors import SpecError
from stitchkern.models.taps import nearest, said

_SPEC = re.compile(r"(?P<source>.+?):(?P<name>[A-Za-z_][\w.]*)(?:@(?P<weights>.+))?")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_model(spec: str, device: torch.device | str = "cpu") -> nn.Module:
    """The model that ``spec`` names, in eval mode on ``device``.

    Args:
        spec: ``file_or_module:callable[@weights]``, such as ``nets.py:tiny10@runs/seed0.pt`` or
            ``torchvision.models:resnet18``. The callable is a class or function that returns an ``nn.Module``
            when called without arguments, or an ``nn.Module`` itself. The weights are a safetensors file or
            a torch state dict; they are read with ``weights_only=True`` onto the CPU, so files saved on a
            GPU work everywhere. A state dict inside ``{"state_dict": …}`` and the like is unwrapped, as are
            names that DataParallel or torch.compile prefixed.
        device: where the model goes in the end.

    Raises:
        SpecError: says which part of the spec cannot be used, and why.
    """
    source, name, weights = split_spec(spec, "model", "file_or_module:callable[@weights]")
    factory = load_object(source, name, spec)
    model = factory if isinstance(factory, nn.Module) else call_object(factory, source, name, spec)
    if not isinstance(model, nn.Module):
        raise SpecError(f"model spec {spec!r}: {name!r} gives a {type(model).__name__}; it must give an nn.Module")
    if weights is not None:
        _load_weights(model, Path(weights), spec)
    return model.to(device).eval()


def split_spec(spec: str, what: str, form: str) -> tuple[str, str, str | None]:
    """(file or module, attribute, what follows the @ or None)."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise SpecError(f"{what} spec {spec!r} must be {form}")
    return match["source"], match["name"], match["weights"]


def load_object(source: str, name: str, spec: str) -> Any:
    """Attribute ``name`` (dots allowed) of the Python file or importable module ``source``."""
    found: Any = _load_module(source, spec)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [known for known in dir(found) if not known.startswith("_")]
            raise SpecError(f"spec {spec!r}: {source} has no {name!r}; {nearest(part, names)}")
        found = getattr(found, part)
    return found


def call_object(factory: Any, source: str, name: str, spec: str) -> Any:
    """``factory()``; `SpecError` when it is not callable or raises."""
    if not callable(factory):
        raise SpecError(f"spec {spec!r}: {name!r} in {source} is a {type(factory).__name__}, not callable")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise SpecError(f"spec {spec!r}: {name}() raised {type(error).__name__}: {error}") from error


def _load_module(source: str, spec: str) -> ModuleType:
    path = Path(source)
    is_file = source.endswith(".py") or path.is_file()
    if is_file and not path.is_file():
        raise SpecError(f"spec {spec!r}: no such file {source}")
    try:
        if not is_file:
            # a command started from a console script does not search the current directory by itself
            with _searched_first(Path.cwd()):
                return importlib.import_module(source)
        path = path.resolve()
        module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        module_spec = importlib.util.spec_from_file_location(module_name, path)
        if module_spec is None or module_spec.loader is None:
            raise SpecError(f"spec {spec!r}: {source} is not a Python file")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_name] = module  # where pickle and dataclasses look
        with _searched_first(path.parent):
            module_spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        if not is_file and error.name and f"{source}.".startswith(f"{error.name}."):
            raise SpecError(f"spec {spec!r}: no such file or module {source!r}") from error
        raise SpecError(f"spec {spec!r}: importing {source} raised {type(error).__name__}: {error}") from error
    except SpecError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"spec {spec!r}: importing {source} raised {type(error).__name__}: {error}") from error


@contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _load_weights(model: nn.Module, path: Path, spec: str) -> None:
    state = _plain(_read_weights(path, spec), set(model.state_dict()), path, spec)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch lists the tensors of another shape
        raise SpecError(f"model spec {spec!r}: weights {path} do not fit: {error}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    problems = [
        f"{what} {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise SpecError(f"model spec {spec!r}: weights {path} do not fit: {'; '.join(problems)}")


def _read_weights(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise SpecError(f"model spec {spec!r}: no such weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SpecError(
            f"model spec {spec!r}: weights {path} are not a plain state dict (they are read with "
            f"weights_only=True): {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # each format has its own errors for a damaged file
        raise SpecError(f"model spec {spec!r}: weights {path} cannot be read: {said(error)}") from error


def _plain(state: Any, names: set[str], path: Path, spec: str) -> dict[str, Tensor]:
    """The state dict itself, without what training scripts wrap around it; ``names`` are the model's own."""
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        held = ", ".join(map(str, list(state)[:4])) if isinstance(state, Mapping) else type(state).__name__
        raise SpecError(f"model spec {spec!r}: weights {path} hold no state dict but: {held or 'nothing'}")
    plain = dict(state)
    for prefix in _PREFIXES:
        if not plain.keys() <= names and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain
