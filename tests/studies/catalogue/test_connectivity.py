"""Lines end at the stitches, planes hold all three, and barriers are measured from the line between the ends."""

from functools import partial

import pytest
import torch

from stitchkern.studies.catalogue.connectivity import _barrier, _plane

distances = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")


def test_lines_and_surfaces(study, table, networks):
    result = study("connectivity")
    rows = table(result, "layers")
    assert [row["Layer"] for row in rows] == networks.some_layers(2)
    for row in rows:
        assert row["Highest barrier"] >= 0  # at the ends it is 0
        assert row["Lowest on a line"] <= row["Lowest end"]
        assert row["Relative accuracy lost at most"] >= 0
    assert {matrix.measure for matrix in result.matrices} == {"cross-entropy", "relative accuracy"}
    assert all(len(matrix.values) == len(matrix.rows) == 7 for matrix in result.matrices)
    (lines,) = [curves for curves in result.curves if curves.name == "lines"]
    ends = {round(line.y[0], 12) for line in lines.panels[0].lines}
    assert len(ends) == 1  # all start at the same stitch


def test_a_barrier_rises_above_the_line_between_the_ends():
    assert _barrier([1.0, 2.0, 3.0], [0, 0.5, 1]) == pytest.approx(0)
    assert _barrier([1.0, 2.5, 3.0], [0, 0.5, 1]) == pytest.approx(0.5)
    assert _barrier([1.0, 0.5, 3.0], [0, 0.5, 1]) == pytest.approx(0)


def test_the_plane_goes_through_three_stitches(generator):
    points = [(torch.randn(3, 4, generator=generator).double(), torch.randn(3, generator=generator).double())
              for _ in range(3)]  # fmt: skip
    grid, (x, y), places = _plane(points, 9)
    flat = torch.stack([torch.cat([w.flatten(), b]) for w, b in grid])
    own = torch.stack([torch.cat([w.flatten(), b]) for w, b in points])
    at = torch.tensor([(u, v) for v in y for u in x], dtype=torch.float64)
    # distances in the plane are those of the weights, to each other and to the three stitches
    assert torch.allclose(distances(flat, flat), distances(at, at), atol=1e-9)
    assert torch.allclose(distances(flat, own), distances(at, torch.tensor(places, dtype=torch.float64)), atol=1e-9)
    assert y[0] > y[-1] and x[0] < x[-1]
    assert min(x) < min(p[0] for p in places) and max(x) > max(p[0] for p in places)


def test_a_plane_of_stitches_that_are_one():
    same = (torch.ones(2, 2).double(), torch.zeros(2).double())
    grid, _, places = _plane([same] * 3, 3)
    assert all(torch.equal(w, same[0]) for w, _ in grid) and places == [[0.0, 0.0]] * 3
