"""What the main job finds out: plain numbers and names, which travel as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "stitchkern-stitching-2"


@dataclass(frozen=True)
class NetworkResult:
    """One of the two networks. `accuracy`: on the test images."""

    name: str
    accuracy: float
    parameters: int
    source: str = ""


@dataclass(frozen=True)
class RankResult:
    """The stitch of least squared error among those of rank at most `rank`: its fit, and the stitched network."""

    rank: int
    r2: float
    residual: float
    accuracy: float
    relative_accuracy: float
    relative_se: float


@dataclass(frozen=True)
class OrthogonalResult:
    """The orthogonal stitch, Procrustes: its fit, and the stitched network.

    `distance`: the orthogonal Procrustes distance of the centred layers, in units of their features.
    """

    r2: float
    residual: float
    distance: float
    accuracy: float
    relative_accuracy: float
    relative_se: float


@dataclass(frozen=True)
class PairResult:
    """One front layer stitched into one end layer.

    `rows`: images × positions that the map was fitted on. `cka`, `cka_unbiased`, `r2`, `residual` describe
    these rows; `accuracy` and `relative_accuracy` the stitched network on the test images, `relative_se` is
    the standard error of the latter.

    `rank_curve`: the ranks that were tested, ascending; the last is min(p, q), the map without a bound.
    `r2_by_rank`: of the best map of each rank 1 … min(p, q). Both are empty where there is no rank curve.
    `procrustes`: None where it was not asked for.
    """

    front_layer: str
    end_layer: str
    front_channels: int
    end_channels: int
    rows: int
    cka: float
    cka_unbiased: float
    r2: float
    residual: float
    rank: int
    accuracy: float
    relative_accuracy: float
    relative_se: float
    rank_curve: list[RankResult] = field(default_factory=list)
    r2_by_rank: list[float] = field(default_factory=list)
    procrustes: OrthogonalResult | None = None

    @property
    def name(self) -> str:
        """`bn3` where both sides have that name, otherwise `bn3 → layer2.0`."""
        same = self.front_layer == self.end_layer
        return self.front_layer if same else f"{self.front_layer} → {self.end_layer}"

    def at_rank(self, rank: int) -> RankResult | None:
        """What was tested at this rank; None where nothing was."""
        return next((found for found in self.rank_curve if found.rank == rank), None)


@dataclass(frozen=True)
class SimilarityResult:
    """`values[i][j]`: linear CKA of front layer i and end layer j."""

    front_layers: list[str]
    end_layers: list[str]
    values: list[list[float]]


@dataclass(frozen=True)
class StitchingResult:
    """The main job's answer. `made`: how it came about (command, versions, seconds), for people to read."""

    front: NetworkResult
    end: NetworkResult
    pairs: list[PairResult]
    similarity: SimilarityResult
    fit_images: int
    test_images: int
    made: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> PairResult:
        return max(self.pairs, key=lambda pair: pair.relative_accuracy)

    @property
    def worst(self) -> PairResult:
        return min(self.pairs, key=lambda pair: pair.relative_accuracy)

    @property
    def ranks(self) -> list[int]:
        """The ranks that were tested at one layer at least, ascending, without those that bind at none."""
        return sorted({found.rank for pair in self.pairs for found in pair.rank_curve[:-1]})

    @property
    def has_rank_curve(self) -> bool:
        return any(pair.rank_curve for pair in self.pairs)

    @property
    def has_procrustes(self) -> bool:
        return any(pair.procrustes for pair in self.pairs)

    @property
    def headline(self) -> str:
        """The finding in one sentence."""
        if math.isnan(self.best.relative_accuracy):
            images = f"{self.test_images:,} test images"
            return f"{self.end.name} classifies none of the {images} correctly, so relative accuracy is undefined."
        start = f"The front of {self.front.name} drives the end of {self.end.name}"
        best, worst = (
            f"{pair.name} ({100 * pair.relative_accuracy:.1f}\N{NO-BREAK SPACE}%{{}})"
            for pair in (self.best, self.worst)
        )
        whose = f" of {self.end.name}’s own accuracy"
        if len(self.pairs) == 1:
            return f"{start} at {best.format(whose)}."
        if self.best.relative_accuracy == self.worst.relative_accuracy:
            return f"{start} equally well at every layer ({best.split('(')[-1].format(whose)}."
        apart = self.best.relative_accuracy - self.worst.relative_accuracy
        if apart <= 2 * math.hypot(self.best.relative_se, self.worst.relative_se):  # what chance alone may do
            low, high = (f"{100 * pair.relative_accuracy:.1f}" for pair in (self.worst, self.best))
            return f"{start} about equally well at every layer ({low}–{high}\N{NO-BREAK SPACE}%{whose})."
        return f"{start} best at {best.format(whose)} and worst at {worst.format('')}."

    def to_json(self) -> str:
        """Strict JSON; an undefined number (NaN) becomes null."""
        return json.dumps({"format": FORMAT, **without_nan(asdict(self))}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StitchingResult:
        """The result that `to_json` wrote. Raises ValueError for any other JSON."""
        data = json.loads(text)
        found = data.pop("format", None) if isinstance(data, dict) else None
        if found != FORMAT:
            got = f"format {found!r}" if isinstance(found, str) else "no format"
            raise ValueError(f"text must be JSON of format {FORMAT!r}, as this version writes it; got {got}")
        data["front"], data["end"] = (NetworkResult(**_with_nan(data[side])) for side in ("front", "end"))
        data["pairs"] = [_pair(pair) for pair in data["pairs"]]
        data["similarity"] = SimilarityResult(**_with_nan(data["similarity"]))
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> StitchingResult:
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _pair(data: dict[str, Any]) -> PairResult:
    curve, orthogonal = data.pop("rank_curve"), data.pop("procrustes")  # where null is None, not NaN
    return PairResult(
        **_with_nan(data),
        rank_curve=[RankResult(**_with_nan(found)) for found in curve],
        procrustes=orthogonal and OrthogonalResult(**_with_nan(orthogonal)),
    )


def without_nan(value: Any) -> Any:
    """Lists and mappings with None for every number that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_nan(v) for v in value]
    return math.nan if value is None else value
