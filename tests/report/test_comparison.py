"""The files of a comparison: the same numbers everywhere, self-contained, and in words what they are."""

import csv
import math
import re

import pytest
import torch
from rich.console import Console

from stitchkern import report
from stitchkern.comparison import SimilarityMatrix, headline
from stitchkern.report.comparison import html
from tests.page import Page, check_alone

NAN = math.nan


def make_matrix(rows=("bn1", "bn2", "bn3"), columns=("bn1", "bn2", "out"), **changes):
    n, m = len(rows), len(columns)
    values = torch.tensor([[0.9 - 0.15 * abs(i - j) - 0.01 * i for j in range(m)] for i in range(n)])
    parts = {
        "values": values.double(),
        "standard_error": values.double() / 64,
        "layers_a": list(rows),
        "layers_b": list(columns),
        "measure": "cka",
        "estimator": "minibatch",
        "features": "pool",
        "samples": 12345,
        "blocks": 7,
        "names": ("seed 0", "seed 1"),
        "made": {"Command": "stitchkern compare a b --data x.npz", "HSIC": "unbiased", "Versions": "torch 2.13"},
    }
    return SimilarityMatrix(**(parts | changes))


def make_holey():
    values = make_matrix().values.clone()
    values[1] = NAN
    values[2, 2] = -0.125
    return make_matrix(values=values, standard_error=torch.full((3, 3), NAN), blocks=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert report.write(make_matrix(), out) == out / "index.html"
    return out


def said(matrix):
    return Page(html(matrix)).text


def table_of(text):
    table = re.search(r"<table[^>]*>(.*?)</table>", text, re.S).group(1)
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
    return [[re.sub(r"<.*?>|\s+", "", cell) for cell in row] for row in cells]


def test_writes_every_file(folder):
    names = {"index.html", "result.json", "similarity.csv", "similarity.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "similarity.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert SimilarityMatrix.load(folder / "result.json") == make_matrix()


def test_files_of_another_report_are_removed_and_others_stay(tmp_path):
    for name in ("layers.csv", "layers.png", "ranks.csv", "ranks.png", "mine.csv"):
        (tmp_path / name).write_text("old")
    report.write(make_matrix(), tmp_path)
    names = {"index.html", "result.json", "similarity.csv", "similarity.png", "mine.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("matrix", [make_matrix(), make_holey(), make_matrix(names=("a", "a"))])
def test_page_is_whole_and_needs_nothing_from_elsewhere(matrix):
    check_alone(html(matrix))


@pytest.mark.parametrize("matrix", [make_matrix(), make_holey()])
def test_csv_holds_every_pair_to_the_last_bit(tmp_path, matrix):
    report.write(matrix, tmp_path)
    with (tmp_path / "similarity.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["layer_a", "layer_b", "value", "standard_error"]
    assert [(r["layer_a"], r["layer_b"]) for r in rows] == [(a, b) for a in matrix.layers_a for b in matrix.layers_b]
    for name, numbers in (("value", matrix.values), ("standard_error", matrix.standard_error)):
        found = torch.tensor([float(row[name] or NAN) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(found.view(3, 3), numbers, rtol=0, atol=0, equal_nan=True)


def test_page_states_the_finding_and_how_it_was_made(folder):
    words = Page((folder / "index.html").read_text(encoding="utf-8")).text
    assert headline(make_matrix()) in words
    for expected in (
        "12,345", "3 × 3", "cka", "minibatch", "pool", "stitchkern compare a b --data x.npz", "torch 2.13",
        "Σ HSIC₁(x, y) / √(Σ HSIC₁(x, x) · Σ HSIC₁(y, y))", "over 7 blocks", "means of the channels",
        "Most similar layers 0.900 bn1 – bn1", "Least similar layers 0.580 bn3 – bn1",
    ):  # fmt: skip
        assert expected in words, expected


def test_page_shows_the_most_similar_layer_of_each():
    assert table_of(html(make_matrix())) == [
        ["Layerofseed0", "Mostsimilarofseed1", "CKA", "±s.e.", "Withthelayerofthesamename"],
        ["bn1", "bn1", "0.900", "0.014", "thesame"],
        ["bn2", "bn2", "0.890", "0.014", "thesame"],
        ["bn3", "out", "0.880", "0.014", "–"],
    ]
    values = make_matrix().values.flip(0)
    rows = table_of(html(make_matrix(values=values)))
    assert rows[1][:3] == ["bn1", "out", "0.880"] and rows[1][4] == "0.580"
    rows = table_of(html(make_matrix(columns=("x", "y", "z"))))
    assert len(rows[0]) == 4 and rows[2][:2] == ["bn2", "y"]


def test_one_model_with_itself_leaves_out_the_diagonal():
    matrix = make_matrix(columns=("bn1", "bn2", "bn3"), names=("net", "net"))
    words = said(matrix)
    assert "The most similar other layer of each" in words
    assert [row[:2] for row in table_of(html(matrix))[1:]] == [["bn1", "bn2"], ["bn2", "bn1"], ["bn3", "bn2"]]
    assert "Most similar layers 0.750 bn1 – bn2" in words


def test_what_is_undefined_or_unknown_is_said_and_shown_as_a_dash():
    text = html(make_holey())
    words = Page(text).text
    assert "Hatched: undefined" in words and "Hatched" not in said(make_matrix())
    assert table_of(text)[2] == ["bn2", "–", "–", "–", "–"]
    assert "Standard error over" not in words and "Blocks none" in words
    assert not re.search(r"\bnan\b", text, re.I)
    nothing = make_matrix(values=torch.full((3, 3), NAN))
    assert "CKA is undefined for every pair of layers" in said(nothing)


def test_small_distances_are_those_of_similar_layers():
    words = said(make_matrix(measure="procrustes_distance", estimator="exact", made={}))
    assert "Most similar layers 0.580 bn3 – bn1" in words and "Least similar layers 0.900" in words
    assert "A distance: small numbers" in words and "with the smallest number" in words
    assert "The orthogonal Procrustes distance" in words and "√(2 − 2s)" in words and "jackknife" in words


@pytest.mark.parametrize(
    "changes, formula",
    [
        ({"made": {"Kernel": "linear", "HSIC": "biased"}, "estimator": "exact"}, "tr(K H L H) / n²"),
        ({"made": {"Kernel": "rbf", "HSIC": "unbiased"}, "estimator": "exact"}, "exp(−‖xᵢ − xₖ‖² / (2 σ²))"),
        ({"measure": "mutual_knn", "estimator": "exact", "made": {"k": "5"}}, "share of the k nearest neighbours"),
        ({"measure": "cca", "estimator": "exact", "made": {}}, "Here: their mean."),
        ({"measure": "my_index", "estimator": "exact", "made": {}}, "A function of the caller’s"),
    ],
)
def test_every_measure_is_explained(changes, formula):
    assert formula in said(make_matrix(**changes))


def test_names_are_escaped(tmp_path):
    nasty = "<script>&\"'$x_1$"
    matrix = make_matrix(rows=(nasty, "b", "c"), names=(nasty, "[bold]b[/bold]"))
    text = report.write(matrix, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and "<script" not in text
    assert "".join(page.words).count(nasty) >= 4
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.comparison_table(matrix))
    assert "[bold]b[/bold]" in console.export_text()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (70, 70)])
def test_one_layer_and_many(tmp_path, shape):
    rows, columns = ([f"layer{i}.0.bn" for i in range(count)] for count in shape)
    matrix = make_matrix(rows, columns)
    text = report.write(matrix, tmp_path).read_text(encoding="utf-8")
    assert Page(text).open == [] and len(text) < 3e6


def printed(matrix):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.comparison_table(matrix))
    return [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]


def test_terminal_table():
    assert printed(make_matrix()) == [
        ["layer of seed 0", "most similar of seed 1", "CKA", "± s.e.", "same name"],
        ["bn1", "bn1", "█" * 14 + "░░ 0.900", "0.014", "0.900"],
        ["bn2", "bn2", "█" * 14 + "░░ 0.890", "0.014", "0.890"],
        ["bn3", "out", "█" * 14 + "░░ 0.880", "0.014", "–"],
    ]
    assert printed(make_holey())[2] == ["bn2", "–", "░" * 16 + " undefined", "–", "undefined"]
    rows = printed(make_matrix(measure="procrustes_distance", names=("a", "a"), columns=("bn1", "bn2", "bn3")))
    assert rows[0] == ["layer of a", "most similar other", "Procrustes distance", "± s.e."]
    assert rows[1] == ["bn1", "bn3", "0.600", "0.009"]
