"""stitchkern: can one trained network work with another's representation, and in what way?

The public names are listed in :mod:`stitchkern.api`. They are imported at first use, so that ``stitchkern doctor`` can
say what is wrong where torch or the extension is missing, and ``stitchkern --version`` need not wait for torch.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from stitchkern._version import __version__ as __version__

if TYPE_CHECKING:
    from stitchkern.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if not name.startswith("__") and importlib.util.find_spec(f"stitchkern.{name}"):
        return importlib.import_module(f"stitchkern.{name}")
    if not name.startswith("_") or name == "__all__":
        api = importlib.import_module("stitchkern.api")
        if name in ("__all__", *api.__all__):
            return getattr(api, name)
    raise AttributeError(f"module 'stitchkern' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
