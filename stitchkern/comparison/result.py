"""What a comparison of all layers finds out: numbers with their standard errors, and how they came about."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "stitchkern-similarity-1"

_ACRONYMS = ("cca", "cka", "cknna", "gulp", "hsic", "pwcca", "rbf", "rsa", "rsm", "svcca")
_WORDS = {"knn": "k-NN", "r2": "R²", **{word: word.upper() for word in _ACRONYMS}}


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """`values[i, j]`: the similarity of layer i of one model with layer j of another.

    Attributes:
        values: (L, M) float64; NaN where the measure is undefined (a layer that never varies).
        standard_error: (L, M) float64, over blocks of samples; NaN where it is unknown.
        layers_a, layers_b: the L and M names.
        measure: what was measured, as `compare` calls it.
        estimator: "exact" (over all samples at once) or "minibatch" (from sums over batches).
        features: "flatten", "positions" or "pool": how activations became rows of features.
        samples: how many samples went in.
        blocks: how many blocks the standard errors come from; 0 where there are none.
        names: of the two models.
        made: how it came about (kernel, versions, seconds), for people to read.
    """

    values: Tensor
    standard_error: Tensor
    layers_a: list[str]
    layers_b: list[str]
    measure: str
    estimator: str
    features: str
    samples: int
    blocks: int
    names: tuple[str, str] = ("a", "b")
    made: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("values", "standard_error"):
            t = torch.as_tensor(getattr(self, name), dtype=torch.float64).detach().cpu()
            if tuple(t.shape) != self.shape:
                raise ShapeError(f"{name} must be {self.shape}, layers_a × layers_b; got {tuple(t.shape)}")
            object.__setattr__(self, name, t)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.layers_a), len(self.layers_b)

    def __repr__(self) -> str:
        (a, b), (rows, columns) = self.names, self.shape
        kind = f"measure={self.measure!r}, estimator={self.estimator!r}, features={self.features!r}"
        return f"SimilarityMatrix({a!r} × {b!r}: {rows} × {columns} layers, {kind}, samples={self.samples})"

    def __eq__(self, other: object) -> bool:
        """Equal in everything; NaN equals NaN."""
        return isinstance(other, SimilarityMatrix) and self.to_json() == other.to_json()

    # ------------------------------------------------------------------------------------------ for others

    def to_pandas(self) -> pandas.DataFrame:
        """The values as a DataFrame: rows `layers_a`, columns `layers_b`; `attrs` say what they are.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as e:
            raise ImportError("to_pandas needs pandas, which stitchkern does not install: pip install pandas") from e
        frame = pandas.DataFrame(
            self.values.tolist(),
            index=pandas.Index(self.layers_a, name=self.names[0]),
            columns=pandas.Index(self.layers_b, name=self.names[1]),
        )
        frame.attrs = {k: v for k, v in self._plain().items() if k not in ("values", "layers_a", "layers_b")}
        return frame

    def plot(self, ax: Axes | None = None, **options: Any) -> Figure:
        """A heat map with the layers' names, in `ax` where it is given; `options` as `stitchkern.plotting.heat_map`.

        The strongest colour is the most similar, so of a distance the smallest.
        """
        from stitchkern.plotting import heat_map

        if self.is_distance:
            largest = float(self.values.nan_to_num(0.0).max())
            options = {"reverse": True, "limits": (0.0, largest or 1.0), **options}
        options = {"title": self.title, "measure": self.label, "names": self.names, **options}
        return heat_map(self.values, self.layers_a, self.layers_b, standard_error=self.standard_error, ax=ax, **options)

    @property
    def label(self) -> str:
        """What the measure is called in print: "CKA", "RBF CKA", "Procrustes distance"."""
        first, *rest = (_WORDS.get(word, word) for word in self.measure.split("_"))
        name = " ".join([first if first in _WORDS.values() else first.capitalize(), *rest])
        kernel = self.made.get("Kernel", "linear") if self.measure in ("cka", "hsic") else "linear"
        return name if kernel == "linear" else f"{_WORDS.get(kernel, kernel.capitalize())} {name}"

    @property
    def is_distance(self) -> bool:
        """Whether small numbers are those of similar layers."""
        return self.measure.endswith("distance") or self.measure in ("gulp", "rsm_norm")

    @property
    def title(self) -> str:
        """What the numbers are, in a line."""
        return f"{self.label} of all layers of {' and '.join(dict.fromkeys(self.names))}"

    # ------------------------------------------------------------------------------------------ files

    def to_json(self) -> str:
        """Strict JSON; NaN becomes null. Raises ValueError for an infinite number."""
        return json.dumps({"format": FORMAT, **self._plain()}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SimilarityMatrix:
        """The matrix that `to_json` wrote. Raises ValueError for any other JSON."""
        data = json.loads(text)
        found = data.pop("format", None) if isinstance(data, dict) else None
        if found != FORMAT:
            got = f"format {found!r}" if isinstance(found, str) else "no format"
            raise ValueError(f"text must be JSON of format {FORMAT!r}, as this version writes it; got {got}")
        try:
            for name in ("values", "standard_error"):
                data[name] = _tensor(data[name], len(data["layers_b"]))
            data["names"] = tuple(data["names"])
            return cls(**data)
        except (KeyError, TypeError, ShapeError) as e:
            raise ValueError(f"text is damaged: {e}") from e

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the matrix as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SimilarityMatrix:
        """Read what `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def _plain(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "estimator": self.estimator,
            "features": self.features,
            "samples": self.samples,
            "blocks": self.blocks,
            "names": list(self.names),
            "layers_a": list(self.layers_a),
            "layers_b": list(self.layers_b),
            "values": _nullable(self.values),
            "standard_error": _nullable(self.standard_error),
            "made": dict(self.made),
        }


def _nullable(t: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in t.tolist()]


def _tensor(rows: Sequence[Sequence[float | None]], columns: int) -> Tensor:
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64).reshape(len(rows), columns)
