"""Which studies there are: the files in `stitchkern/studies/catalogue`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import stitchkern
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


def study_source(name: str) -> str:
    """A digest of the study's file and of all that its numbers come from: who changes that gets other units."""
    digest = hashlib.blake2b(Path(str(study_module(name).__file__)).read_bytes(), digest_size=12)
    digest.update(_beneath())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _beneath() -> bytes:
    """Of the package without what asks for numbers or shows them: other studies, reports, the command line."""
    package = Path(stitchkern.__file__).parent
    above = {package / name for name in ("cli", "report", "plotting.py", "studies/catalogue")}
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted([*package.rglob("*.py"), *package.glob("_C.*")]):
        if not above & {file, *file.parents}:
            digest.update(str(file.relative_to(package)).encode())
            digest.update(file.read_bytes())
    return digest.digest()
