"""Heat maps: every cell in its place, readable at any size, and what is undefined or out of range shows."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from stitchkern.errors import ShapeError
from stitchkern.plotting import DARK, LIGHT, heat_map


def names(count, form="layer{}.conv"):
    return [form.format(i) for i in range(count)]


def numbers_of(axes):
    """Text in cells by (row, column); of the standard errors, which stand below, nothing."""
    found = {}
    for text in axes.texts:
        x, y = text.get_position()
        if not text.get_text().startswith("±"):
            found[int(y), int(x)] = text.get_text()
    return found


def mesh_of(axes):
    (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
    return mesh


def hatched(axes):
    """Cells (row, column) that are hatched."""
    corners = [
        path.vertices.min(0)
        for c in axes.collections
        if isinstance(c, PatchCollection) and c.get_hatch()
        for path in c.get_paths()
    ]
    return {(int(y), int(x)) for x, y in corners}


def test_cells_hold_their_numbers_and_the_first_row_is_on_top():
    values = [[0.0, 0.255, 1.0], [-0.001, -0.25, 0.999]]
    axes = heat_map(values, ["a", "b"], ["x", "y", "z"], measure="CKA", names=("A", "B")).axes[0]
    assert numbers_of(axes) == {
        (0, 0): ".00", (0, 1): ".26", (0, 2): "1.00", (1, 0): ".00", (1, 1): "−.25", (1, 2): "1.00",
    }  # fmt: skip
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["x", "y", "z"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("A", "B")
    assert np.array_equal(mesh_of(axes).get_array(), values)


@pytest.mark.parametrize("size, written", [((12, 3), True), ((3, 12), True), ((13, 3), False), ((60, 60), False)])
def test_numbers_are_written_where_they_fit(size, written):
    axes = heat_map(np.full(size, 0.5), names(size[0]), names(size[1])).axes[0]
    assert len(axes.texts) == (size[0] * size[1] if written else 0)


@pytest.mark.parametrize("count", [2, 12, 13, 30, 60, 100, 250])
def test_names_do_not_overlap_and_figures_stay_on_a_page(count):
    figure = heat_map(np.full((count, count), 0.5), names(count), names(count), title="t", measure="CKA")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for labels, side in ((axes.get_yticklabels(), "y"), (axes.get_xticklabels(), "x")):
        boxes = [label.get_window_extent() for label in labels]
        low = sorted(getattr(box, f"{side}0") for box in boxes)
        thickness = max(getattr(box, "height" if side == "y" else "width") for box in boxes)
        assert all(b - a >= 0.8 * thickness for a, b in itertools.pairwise(low))  # 0.8: room between lines
    assert len(axes.get_yticklabels()) == (count if count <= 60 else -(-count // -(-count // 86)))
    assert max(figure.get_size_inches()) < 15
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0 and inside.y0 >= 0
    assert inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight()


@pytest.mark.parametrize("shape, measure", [((1, 1), "CKA"), ((2, 9), "procrustes_distance"), ((9, 1), "unbiased CKA")])
def test_nothing_covers_anything(shape, measure):
    rows, columns = names(shape[0], "a{}"), names(shape[1], "a.very.long.name.of.layer.number.{}")
    figure = heat_map(np.full(shape, 0.5), rows, columns, measure=measure, title="A title of some length")
    figure.draw_without_rendering()
    cells, bar = figure.axes
    box = bar.get_tightbbox()
    assert not box.overlaps(cells.get_window_extent())
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0 and inside.y0 >= 0
    assert inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight()


def test_what_is_not_finite_is_hatched_and_explained():
    values = np.full((3, 4), 0.5)
    values[0, 1], values[2, 3], values[1, 0] = math.nan, math.inf, -math.inf
    figure = heat_map(values, names(3), names(4))
    assert hatched(figure.axes[0]) == {(0, 1), (2, 3), (1, 0)}
    assert len(numbers_of(figure.axes[0])) == 9
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["undefined"]
    plain = heat_map(np.full((3, 4), 0.5), names(3), names(4))
    assert not hatched(plain.axes[0]) and plain.axes[1].get_legend() is None
    nothing = heat_map(np.full((2, 2), math.nan), names(2), names(2))
    nothing.draw_without_rendering()
    assert len(hatched(nothing.axes[0])) == 4


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_run_from_nothing_to_one(theme):
    mesh = mesh_of(heat_map([[0.0, 1.0]], ["a"], ["x", "y"], theme=theme).axes[0])
    assert mesh.get_clim() == (0, 1)
    assert [to_hex(colour) for colour in mesh.to_rgba([0.0, 1.0])] == [theme.ramp[0], theme.ramp[-1]]
    near = mesh_of(heat_map([[1 + 1e-9, -1e-9]], ["a"], ["x", "y"], theme=theme).axes[0])
    assert near.get_clim() == (0, 1)  # rounding is no range


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_numbers_below_zero_have_a_hue_of_their_own_and_zero_none(theme):
    mesh = mesh_of(heat_map([[-1.0, 0.0, 1.0]], ["a"], ["x", "y", "z"], theme=theme).axes[0])
    assert mesh.get_clim() == (-1, 1)
    low, middle, high = mesh.to_rgba([-1.0, 0.0, 1.0])[:, :3]
    assert low[0] > low[2] and high[2] > high[0]  # warm, cold
    assert to_hex(high) == theme.ramp[-1] and to_hex(low) == theme.below[-1]
    assert np.abs(middle - mesh.to_rgba([-1e-3])[0, :3]).max() < 0.02  # no step at zero
    slightly = mesh_of(heat_map([[-0.1, 0.1, 1.0]], ["a"], ["x", "y", "z"], theme=theme).axes[0])
    assert slightly.get_clim() == (-0.1, 1)
    assert to_hex(slightly.to_rgba([1.0])[0]) == theme.ramp[-1]
    assert to_hex(slightly.to_rgba([-0.1])[0]) != theme.below[-1]  # the same strength as 0.1


def test_larger_numbers_stretch_the_range_and_are_written_with_three_digits():
    axes = heat_map([[12.0, 0.5], [3.25, 0.0]], ["a", "b"], ["x", "y"]).axes[0]
    assert mesh_of(axes).get_clim() == (0, 12)
    assert set(numbers_of(axes).values()) == {"12.0", "0.500", "3.25", "0.00"}


def test_limits_can_be_given_and_the_bar_shows_what_lies_beyond():
    figure = heat_map([[0.2, 0.9], [0.5, 1.7]], ["a", "b"], ["x", "y"], limits=(0.5, 1.0))
    assert mesh_of(figure.axes[0]).get_clim() == (0.5, 1.0)
    assert mesh_of(figure.axes[0]).colorbar.extend == "both"
    for wrong in ((1.0, 0.0), (0.0, math.nan), (0.0, math.inf), (0.5, 0.5)):
        with pytest.raises(ValueError, match="limits must be finite and ascending"):
            heat_map([[0.2]], ["a"], ["x"], limits=wrong)


def test_standard_errors_stand_below_where_they_are_known():
    errors = [[0.012, math.nan], [0.1, 0.0]]
    axes = heat_map([[0.2, 0.9], [0.5, 0.7]], ["a", "b"], ["x", "y"], standard_error=errors).axes[0]
    found = {
        (int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts if "±" in t.get_text()
    }
    assert found == {(0, 0): "± .012", (1, 0): "± .1", (1, 1): "± 0"}
    assert len(numbers_of(axes)) == 4


def test_draws_into_axes_that_are_given():
    figure = Figure(figsize=(10, 5))
    left, right = figure.subplots(1, 2)
    assert heat_map(np.eye(4), names(4), names(4), ax=left, title="one $x$") is figure
    assert heat_map(np.eye(40), names(40), names(40), ax=right) is figure
    assert len(left.texts) == 16 and not right.texts  # there is no room
    assert len(right.get_yticklabels()) < 40
    part = Figure(figsize=(10, 5)).subfigures(1, 2)[0]
    assert heat_map(np.eye(4), names(4), names(4), ax=part.subplots()) is part.figure


@pytest.mark.parametrize(
    "values, errors, what",
    [
        ([[1.0, 2.0]], None, r"values must be \(2, 2\).*got \(1, 2\)"),
        ([1.0, 2.0], None, r"values must be .*got \(2,\)"),
        (np.eye(2), np.eye(3), r"standard_error must be \(2, 2\).*got \(3, 3\)"),
    ],
)
def test_shapes_are_checked(values, errors, what):
    with pytest.raises(ShapeError, match=what):
        heat_map(values, ["a", "b"], ["x", "y"], standard_error=errors)


def test_names_are_text_and_no_formulas():
    figure = heat_map(np.eye(2), ["$x_1$", "b"], ["$", "y"], names=("$a$", "b"), measure="$m$", title="$t$")
    figure.draw_without_rendering()
    assert figure.axes[0].get_yticklabels()[0].get_text() == r"\$x_1\$"


def test_a_matrix_of_many_cells_is_one_picture_in_a_page():
    mesh = mesh_of(heat_map(np.full((70, 70), 0.5), names(70), names(70)).axes[0])
    assert mesh.get_rasterized()
    assert not mesh_of(heat_map(np.full((60, 60), 0.5), names(60), names(60)).axes[0]).get_rasterized()
