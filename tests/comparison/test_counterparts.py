"""The best counterpart of each layer, and the finding in a sentence."""

import inspect
import math

import torch

from stitchkern import similarity
from stitchkern.comparison import SimilarityMatrix, counterparts, headline

NAN = math.nan


def matrix(values, a="xyz", b="xyz", names=("A", "B"), measure="cka", **more) -> SimilarityMatrix:
    a = a[: len(values)]
    values = torch.tensor(values)
    parts = {"estimator": "exact", "features": "pool", "samples": 30, "blocks": 3}
    return SimilarityMatrix(values, values / 10, list(a), list(b), measure, **parts, names=names, **more)


def test_the_largest_of_each_row_and_of_a_distance_the_smallest():
    values = [[0.9, 0.3, NAN], [0.2, 0.4, 0.6], [-0.5, NAN, -0.1]]
    found = counterparts(matrix(values))
    assert [c.layer for c in found] == ["x", "y", "z"]
    assert [c.best for c in found] == ["x", "z", "z"]
    assert [round(c.value, 3) for c in found] == [0.9, 0.6, -0.1]
    assert [round(c.standard_error, 3) for c in found] == [0.09, 0.06, -0.01]
    assert [round(c.namesake, 3) for c in found] == [0.9, 0.4, -0.1]
    assert [c.is_namesake for c in found] == [True, False, True]
    found = counterparts(matrix(values, measure="procrustes_distance"))
    assert [(c.best, round(c.value, 3)) for c in found] == [("y", 0.3), ("x", 0.2), ("x", -0.5)]


def test_of_equals_the_one_of_the_same_name():
    found = counterparts(matrix([[0.5, 0.5, 0.5]] * 3))
    assert [c.best for c in found] == ["x", "y", "z"]
    found = counterparts(matrix([[0.5, 0.5 - 1e-9, 0.4], [0.5 + 1e-9, 0.5, 0.5], [0.5 + 1e-4, 0, 0.5]]))
    assert [c.best for c in found] == ["x", "y", "x"]  # rounding is no reason
    (other,) = counterparts(matrix([[0.5, 0.5, 0.5]], a="w"))
    assert (other.best, other.namesake) == ("x", None)


def test_what_is_undefined_has_no_counterpart():
    found = counterparts(matrix([[NAN] * 3, [0.1, NAN, 0.2], [0.0, 0.0, 1.0]]))
    assert found[0].best is None and math.isnan(found[0].value) and not found[0].is_namesake
    assert found[1].best == "z" and math.isnan(found[1].namesake)


def test_a_layer_is_no_counterpart_of_itself():
    found = counterparts(matrix([[1, 0.2, 0.3], [0.2, 1, 0.8], [0.3, 0.8, 1.0]], names=("A", "A")))
    assert [(c.best, c.namesake) for c in found] == [("z", None), ("z", None), ("y", None)]
    (alone,) = counterparts(matrix([[1.0]], a="x", b="x", names=("A", "A")))
    assert alone.best is None


def test_headlines():
    assert headline(matrix([[0.9, 0, 0], [0, 0.5, 0.6], [0, 0, 0.8]])) == (
        "2 of 3 layers of A are most similar to the layer of the same name in B (CKA 0.50 to 0.90)."
    )
    assert headline(matrix(torch.eye(3).tolist())).startswith("Each of the 3 layers of A is most similar to")
    assert headline(matrix([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])).startswith("None of the 3 layers of A is most")
    assert headline(matrix([[0.5, 0.75]], a="w", b="xy", measure="rsa")) == (
        "Most similar are w of A and y of B (RSA 0.75)."
    )
    assert headline(matrix([[0.5, 0.75]], a="w", b="xy", measure="procrustes_distance")) == (
        "Most similar are w of A and x of B (Procrustes distance 0.50)."
    )
    assert headline(matrix([[1, 0.2, 0.3], [0.2, 1, 0.8], [0.3, 0.8, 1.0]], names=("A", "A"))) == (
        "Of all layers of A, most similar are y and z (CKA 0.80)."
    )
    assert headline(matrix([[NAN] * 3])).startswith("CKA is undefined for every pair of layers")


def test_small_numbers_of_these_are_similar_layers():
    indices = [name for name in similarity.__all__ if name.islower()]
    distances = {name for name in indices if matrix([[0.5]], "x", "x", measure=name).is_distance}
    said = {name for name in indices if "istance of x (n, p)" in (inspect.getdoc(getattr(similarity, name)) or "")}
    assert distances >= said | {"bures_distance", "procrustes_distance", "shape_distance", "gulp", "rsm_norm"}
    assert not distances & {"cka", "svcca", "procrustes_similarity", "linear_r2"}


def test_labels_are_those_of_the_field():
    for measure, label in {
        "cka": "CKA",
        "svcca": "SVCCA",
        "mutual_knn": "Mutual k-NN",
        "linear_r2": "Linear R²",
        "bures": "Bures",
        "procrustes_distance": "Procrustes distance",
    }.items():
        assert matrix([[0.5]], "x", "x", measure=measure).label == label
    for kernel, label in {"linear": "CKA", "rbf": "RBF CKA", "laplace": "Laplace CKA"}.items():
        assert matrix([[0.5]], "x", "x", made={"Kernel": kernel}).label == label
