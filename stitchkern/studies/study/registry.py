"""Which studies there are: the files in `stitchkern/studies/catalogue`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

from stitchkern.errors import SpecError
from stitchkern.models.taps import nearest
from stitchkern.studies import catalogue


def study_names() -> list[str]:
    """By name: `low_cka.py` is `low-cka`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(catalogue.__path__))


def study_module(name: str) -> ModuleType:
    """The file of a study. Raises SpecError where there is none of this name."""
    names = study_names()
    if name not in names:
        raise SpecError(f"there is no study {name!r}; {nearest(name, names)}")
    return importlib.import_module(f"{catalogue.__name__}.{name.replace('-', '_')}")


def study_title(name: str) -> str:
    """The first line of the file's docstring."""
    return (inspect.getdoc(study_module(name)) or name).splitlines()[0].rstrip(".")


def study_source(name: str) -> bytes:
    """The text of the file: who changes it gets other units."""
    return Path(str(study_module(name).__file__)).read_bytes()
