"""SimilarityMatrix: what it says of itself, and its way to JSON, pandas and back."""

from __future__ import annotations

import builtins
import json
import math

import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from stitchkern.comparison import SimilarityMatrix
from stitchkern.errors import ShapeError
from stitchkern.plotting import LIGHT


def matrix(**changes) -> SimilarityMatrix:
    parts = {
        "values": torch.tensor([[0.25, math.nan, 1.0], [0.1, 0.2, -0.3]], dtype=torch.float64),
        "standard_error": torch.tensor([[0.01, math.nan, 0.0], [0.1, 0.2, math.nan]], dtype=torch.float64),
        "layers_a": ["conv1", "fc"],
        "layers_b": ["a", "b", "c"],
        "measure": "cka",
        "estimator": "minibatch",
        "features": "flatten",
        "samples": 300,
        "blocks": 3,
        "names": ("Net", "Other"),
        "made": {"Kernel": "linear"},
    }
    return SimilarityMatrix(**(parts | changes))


def test_json_keeps_everything_and_is_strict(tmp_path) -> None:
    before = matrix()
    text = before.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert json.loads(text)["values"][0] == [0.25, None, 1.0]
    before.save(tmp_path / "matrix.json")
    after = SimilarityMatrix.load(tmp_path / "matrix.json")
    assert after == before and after != matrix(samples=301)
    for name in ("values", "standard_error"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0, equal_nan=True)
    assert after.names == ("Net", "Other") and after.made == {"Kernel": "linear"}


def test_json_of_another_kind_is_refused() -> None:
    for text, why in (("[1]", "no format"), ('{"format": "stitchkern-stitching-2"}', "stitchkern-stitching-2")):
        with pytest.raises(ValueError, match=why):
            SimilarityMatrix.from_json(text)
    damaged = json.loads(matrix().to_json())
    damaged["values"] = damaged["values"][:1]
    with pytest.raises(ValueError, match="damaged"):
        SimilarityMatrix.from_json(json.dumps(damaged))
    del damaged["values"]
    with pytest.raises(ValueError, match="damaged"):
        SimilarityMatrix.from_json(json.dumps(damaged))
    with pytest.raises(ValueError):
        matrix(values=torch.full((2, 3), math.inf)).to_json()


def test_shapes_are_those_of_the_names() -> None:
    assert matrix().shape == (2, 3)
    assert matrix(values=torch.zeros(2, 3)).values.dtype == torch.float64
    with pytest.raises(ShapeError, match=r"standard_error must be \(2, 3\)"):
        matrix(standard_error=torch.zeros(2, 2))


def test_it_says_what_it_is() -> None:
    text = repr(matrix())
    for part in ("cka", "minibatch", "flatten", "300", "2 × 3", "Net"):
        assert part in text


def test_pandas_has_names_and_says_how(monkeypatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = matrix().to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["conv1", "fc"] and list(frame.columns) == ["a", "b", "c"]
    assert frame.loc["fc", "c"] == -0.3 and math.isnan(frame.loc["conv1", "b"])
    assert frame.attrs["estimator"] == "minibatch"


def test_without_pandas_it_says_so(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        matrix().to_pandas()


def test_the_heat_map_shows_the_numbers_under_their_names() -> None:
    axes = matrix().plot().axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["conv1", "fc"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "c"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("Net", "Other")
    shown = {t.get_text() for t in axes.texts}
    assert {".25", "1.00", ".10", ".20", "−.30", "± .01", "± .1"} <= shown
    (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
    assert mesh.get_clim() == (-0.3, 1.0) and mesh.get_array().mask.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_of_a_distance_the_smallest_is_strongest() -> None:
    near, far = torch.tensor([[0.5, 0.25], [2.0, 0.0]]), torch.zeros(2, 2)
    pair = {"layers_b": ["a", "b"], "measure": "procrustes_distance"}
    (mesh,) = (
        c for c in matrix(values=near, standard_error=far, **pair).plot().axes[0].collections if isinstance(c, QuadMesh)
    )
    assert mesh.get_clim() == (0, 2)
    assert [to_hex(c) for c in mesh.to_rgba([0.0, 2.0])] == [LIGHT.ramp[-1], LIGHT.ramp[0]]
    assert matrix(values=far, standard_error=far, **pair).plot(title="t", limits=(0, 3)) is not None


def test_it_is_drawn_where_it_is_wanted() -> None:
    axes = Figure().subplots()
    assert matrix().plot(ax=axes) is axes.figure and axes.get_title(loc="left") == "CKA of all layers of Net and Other"
