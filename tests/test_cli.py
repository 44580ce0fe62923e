"""The command line: exit codes, one clear line for every expected error, and whole runs."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.testing import assert_close

import stitchkern
import stitchkern as sk
from stitchkern import cli
from stitchkern.comparison import SimilarityMatrix, counterparts, headline
from stitchkern.models import activations
from stitchkern.studies.result import StitchingResult
from tests.page import check_alone

NETS = """
import torch
from torch import nn

class Small(nn.Sequential):
    def __init__(self, seed=0, channels=6, stride=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.add_module("conv1", nn.Conv2d(3, channels, 3, stride, padding=1))
            self.add_module("bn1", nn.BatchNorm2d(channels))
            self.add_module("relu1", nn.ReLU(inplace=True))
            self.add_module("conv2", nn.Conv2d(channels, 5, 3, padding=1))
            self.add_module("bn2", nn.BatchNorm2d(5))
            self.add_module("pool", nn.AdaptiveAvgPool2d(1))
            self.add_module("flatten", nn.Flatten())
            self.add_module("fc", nn.Linear(5, 3))

def strided():
    return Small(stride=2)

def wide():
    return Small(seed=1, channels=7)

def broken():
    raise RuntimeError("no\\nluck")

def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        yield torch.randn(5, 3, 8, 8, generator=generator), torch.randint(0, 3, (5,), generator=generator)

def others():
    return batches(1)

def grey():
    for x, y in batches():
        yield x[:, :1], y

def tiny():
    for x, y in batches():
        yield x[:, :, :0, :0], y

def missing():
    yield from batches()
    open("no such file.png")

def none():
    return iter(())

def badly_labelled():
    for x, y in batches():
        yield x, y + 1

def negative():
    for x, y in batches():
        yield x, y - 1

def inputs():
    for x, y in batches():
        yield x

def dead():
    model = Small()
    model.bn1.bias.data.fill_(-100.0)
    return model

def quits():
    raise SystemExit(1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models, weights and data of many kinds."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "nets.py").write_text(NETS)
    small = runpy.run_path(str(folder / "nets.py"))["Small"]
    for seed in (0, 1):
        torch.save(small(seed).state_dict(), folder / f"seed{seed}.pt")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "garbage.pt").write_bytes(b"not a state dict")
    torch.save({"fc.weight": torch.zeros(1)}, folder / "other.pt")
    rng = np.random.default_rng(0)

    def part(n):
        return rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, n)

    (a, b), (c, d) = part(40), part(10)
    np.savez(folder / "splits.npz", train_images=a, train_labels=b, test_images=c, test_labels=d)
    np.savez(folder / "whole.npz", images=a, labels=b)
    np.savez(folder / "unlabelled.npz", images=a)
    np.savez(folder / "grey.npz", images=a[..., 0], labels=b)
    np.savez(folder / "empty.npz", images=a[:, :0, :0], labels=b)
    np.savez(folder / "flat.npz", images=np.zeros((40, 0), "f4"), labels=b)
    with (folder / "array.npz").open("wb") as file:
        np.save(file, a)
    (folder / "text.npz").write_text("text")
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """Run the command in that folder; `.stdout`, `.stderr`, `.exit_code`."""
    monkeypatch.chdir(place)
    return lambda *args: CliRunner().invoke(cli.commands, [str(arg) for arg in args])


A, B = "nets.py:Small@seed0.pt", "nets.py:Small@seed1.pt"


@pytest.mark.parametrize(
    "args, expected",
    [
        (["stitch", A, B], ["Missing option '--data'"]),
        (["stitch", A], ["Missing argument 'END'"]),
        (["nonsense"], ["No such command 'nonsense'"]),
        (["stitch", "nets.py", B, "--data", "splits.npz"], ["nets.py", "file_or_module:callable[@weights]"]),
        (["stitch", "nts.py:Small", B, "--data", "splits.npz"], ["no such file nts.py"]),
        (["stitch", "nets.py:Smal", B, "--data", "splits.npz"], ["no 'Smal'", "Small"]),
        (["stitch", "nets.py:broken", B, "--data", "splits.npz"], ["RuntimeError", "no luck"]),
        (["stitch", "nets.py:Small@none.pt", B, "--data", "splits.npz"], ["no such weights file none.pt"]),
        (["stitch", "nets.py:Small@garbage.pt", B, "--data", "splits.npz"], ["garbage.pt"]),
        (["stitch", "nets.py:Small@other.pt", B, "--data", "splits.npz"], ["other.pt do not fit"]),
        (["stitch", A, B, "--data", "none.npz"], ["no such data file none.npz"]),
        (["stitch", A, B, "--data", "text.npz"], ["text.npz cannot be read"]),
        (["stitch", A, B, "--data", "unlabelled.npz"], ["no images and labels", "'images'"]),
        (["stitch", A, B, "--data", "splits.npz", "--split", "valid"], ["'valid'", "'train_images'"]),
        (["stitch", A, B, "--data", "splits.npz", "--mean", "1,2"], ["mean must have 3 values"]),
        (["stitch", A, B, "--data", "splits.npz", "--mean", "1,x"], ["'--mean'", "numbers separated", "'1,x'"]),
        (["stitch", A, B, "--data", "splits.npz", "--layers", "bn3"], ["no layer 'bn3'", "nearest: bn2, bn1"]),
        (
            ["stitch", A, B, "--data", "splits.npz", "--layers", "bn1", "--front-layer", "bn1"],
            ["--layers", "--front-layer"],
        ),
        (["stitch", A, B, "--data", "splits.npz", "--front-layer", "bn1"], ["equally often", "1 and 0"]),
        (["stitch", A, B, "--data", "splits.npz", "--resize", "cubic"], ["'--resize'", "bilinear"]),
        (["stitch", A, B, "--data", "splits.npz", "--ranks", "2,7"], ["ranks must be 6 at most", "got 7"]),
        (["stitch", A, B, "--data", "splits.npz", "--ranks", "2,0"], ["'--ranks'", "1 at least", "'2,0'"]),
        (["stitch", A, B, "--data", "splits.npz", "--ranks", "2,x"], ["'--ranks'", "integers", "none", "'2,x'"]),
        (["stitch", A, B, "--data", "splits.npz", "--ranks", ""], ["'--ranks'", "integers", "''"]),
        (["stitch", A, B, "--data", "splits.npz", "--device", "tpu7"], ["'--device'", "tpu7"]),
        (["stitch", A, B, "--data", "splits.npz", "--limit", "0"], ["'--limit'"]),
        (["stitch", A, B, "--data", "splits.npz", "--out", "nets.py/report"], ["--out"]),
        (
            ["stitch", "nets.py:strided", B, "--data", "splits.npz", "--layers", "bn1"],
            ["spatial size", "4×4", "8×8", "resize"],
        ),
        (["stitch", A, B, "--data", "grey.npz"], ["front 'nets.py:Small@seed0.pt' does not take inputs (32, 1, 8, 8)"]),
        (["stitch", A, B, "--data", "nets.py:batches", "--test-data", "nets.py:grey"], ["does not take", "5, 1, 8, 8"]),
        (["stitch", A, "torch.nn:Flatten", "--data", "nets.py:tiny"], ["front", "does not take", "(5, 3, 0, 0)"]),
        (["stitch", A, B, "--data", "empty.npz"], ["images must not be empty; each is (3, 0, 0)"]),
        (["stitch", A, B, "--data", "flat.npz"], ["images must not be empty"]),
        (["stitch", A, B, "--data", "array.npz"], ["array.npz cannot be read as .npz", "one array"]),
        (["stitch", A, B, "--data", "nets.py:missing"], ["nets.py:missing", "FileNotFoundError", "no such file.png"]),
        (
            ["stitch", A, B, "--data", "nets.py:batches", "--test-data", "nets.py:badly_labelled"],
            ["labels must be 0 … 2", "got 3"],
        ),
        (
            ["stitch", A, B, "--data", "nets.py:batches", "--test-data", "nets.py:negative"],
            ["labels must be 0 … 2", "got -1"],
        ),
        (["stitch", "nets.py:quits", B, "--data", "splits.npz"], ["quits() raised SystemExit: 1"]),
        (["stitch", "nets.py:Small@empty.pt", B, "--data", "splits.npz"], ["empty.pt cannot be read: EOFError"]),
        (["stitch", A, B, "--data", "splits.npz", "--device", "meta"], ["'--device'", "meta"]),
        (["stitch", A, B, "--data", "splits.npz", "--std", "1,nan,1"], ["std must be finite"]),
        (["stitch", A, B, "--data", "splits.npz", "--std", "1,-1,1"], ["std must be positive"]),
        (["stitch", A, B, "--data", "splits.npz", "--mean", "inf"], ["mean must be finite"]),
        (["compare", A], ["Missing option '--data'"]),
        (["compare", "nets.py:Smal", B, "--data", "splits.npz"], ["no 'Smal'", "Small"]),
        (["compare", A, B, "--data", "none.npz"], ["no such data file none.npz"]),
        (["compare", A, B, "--data", "splits.npz", "--split", "valid"], ["no images of split 'valid'"]),
        (["compare", A, B, "--data", "nets.py:none"], ["gave no batch"]),
        (["compare", A, B, "--data", "grey.npz"], ["A 'nets.py:Small@seed0.pt' does not take inputs (40, 1, 8, 8)"]),
        (["compare", A, "torch.nn:Flatten", "--data", "splits.npz"], ["model_b has no layer"]),
        (["compare", A, B, "--data", "splits.npz", "--layers-a", "bn3"], ["no layer 'bn3'", "nearest: bn2, bn1"]),
        (["compare", A, "--data", "splits.npz", "--layers-b", "bn3"], ["no layer 'bn3'", "nearest: bn2, bn1"]),
        (["compare", A, B, "--data", "splits.npz", "--measure", "ckka"], ["measure must be one of", "'ckka'"]),
        (["compare", A, B, "--data", "splits.npz", "--features", "mean"], ["'--features'", "pool"]),
        (["compare", A, B, "--data", "splits.npz", "--features", "positions"], ["the same positions", "'conv1'"]),
        (["compare", A, B, "--data", "splits.npz", "--biased"], ["minibatch estimator is unbiased"]),
        (["compare", A, B, "--data", "splits.npz", "--bandwidth", "2"], ["the linear kernel has none"]),
        (
            ["compare", A, B, "--data", "splits.npz", "--measure", "svcca", "--estimator", "minibatch"],
            ["'svcca' has no minibatch estimator"],
        ),
        (["compare", A, B, "--data", "splits.npz", "--option", "k5"], ["'--option'", "NAME=VALUE", "'k5'"]),
        (["compare", A, B, "--data", "splits.npz", "--option", "kernel=rbf"], ["--kernel"]),
        (
            ["compare", A, B, "--data", "splits.npz", "--measure", "mutual_knn", "--option", "q=5"],
            ["'mutual_knn'", "'q'"],
        ),
        (["compare", A, B, "--data", "splits.npz", "--batch-size", "3"], ["four samples"]),
        (["compare", A, B, "--data", "splits.npz", "--out", "nets.py/report"], ["--out"]),
        (["compare", A, B, "--data", "nets.py:missing"], ["nets.py:missing", "FileNotFoundError", "no such file.png"]),
        (["layers", A, "--data", "nets.py:none"], ["gave no batch"]),
        (["layers", A, "--input-shape", "3,0,8"], ["'--input-shape'", "must be positive", "3,0,8"]),
        (["layers", A, "--input-shape=-3,8,8"], ["'--input-shape'", "must be positive"]),
        (["layers", A, "--input-shape", "3,999999,999999"], ["'--input-shape'", "2^31"]),
        (["layers", A, "--input-shape", "3,99999999999999999999999,1"], ["'--input-shape'", "2^31"]),
        (["layers", A, "--data", "whole.npz", "--input-shape", "3,8,8"], ["--data", "--input-shape"]),
        (["layers", A, "--input-shape", "4,8,8"], ["does not take inputs (2, 4, 8, 8)"]),
        (["layers", A, "--input-shape", "big"], ["'--input-shape'", "integers separated by commas"]),
    ],
)  # fmt: skip
def test_an_expected_error_is_one_line_and_exit_code_2(run, args, expected):
    result = run(*args)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("stitchkern: testing on")]
    assert result.exit_code == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith("stitchkern: "), result.stderr
    for words in expected:
        assert words in lines[0]


def test_debug_shows_where_an_error_came_from(run):
    for args in (["--debug", "layers", "nets.py"], ["layers", "nets.py", "--debug"]):
        result = run(*args)
        assert result.exit_code == 2 and "Traceback" in result.stderr and "SpecError" in result.stderr


def test_an_unexpected_error_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr("stitchkern.models.load_model", lambda *args: 1 / 0)
    result = run("layers", A)
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)


def test_version_and_help(run):
    assert run("--version").stdout == f"stitchkern {stitchkern.__version__}\n"
    for args in ([], ["--help"], ["stitch", "-h"], ["compare", "-h"]):
        result = run(*args)
        assert result.exit_code == 0 and "Usage: " in result.stdout


def test_layers(run):
    result = run("layers", A)
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert result.exit_code == 0 and rows["bn2"] == ["BatchNorm2d", "10"]
    for shape in (["--input-shape", "3,8,8"], ["--data", "whole.npz"]):
        result = run("layers", A, *shape)
        rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
        assert result.exit_code == 0 and rows["bn1"] == ["BatchNorm2d", "6×8×8", "12"]


def test_stitch_writes_a_report(run, tmp_path):
    out = tmp_path / "new" / "report"
    result = run("stitch", A, B, "--data", "splits.npz", "--mean", ".5,.5,.5", "--std", ".2,.2,.2", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"Report: {out / 'index.html'}\n")
    assert result.stderr == "stitchkern: testing on split 'test' of splits.npz\n"  # no bars where there is no terminal
    found = StitchingResult.load(out / "result.json")
    assert [pair.name for pair in found.pairs] == ["bn1", "bn2"]
    assert (found.fit_images, found.test_images) == (40, 10)
    assert (found.front.name, found.end.name, found.end.source) == ("seed0", "seed1", B)
    assert found.made["Command"].startswith(f"stitchkern stitch {A} {B} --data splits.npz --mean .5,.5,.5")
    assert found.headline in result.stdout
    assert f"By themselves: seed0 {found.front.accuracy:.1%} · seed1 {found.end.accuracy:.1%}, on 10" in result.stdout
    listed = run("layers", A, "--data", "splits.npz")  # the split that is fitted on, as above
    assert listed.exit_code == 0 and "bn1" in listed.stdout


def test_stitch_tests_the_ranks_that_were_asked_for(run, tmp_path):
    result = run("stitch", A, B, "--data", "splits.npz", "--ranks", "2,5", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = StitchingResult.load(tmp_path / "result.json")
    assert [[f.rank for f in pair.rank_curve] for pair in found.pairs] == [[2, 5, 6], [2, 5]]
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.split("Procrustes")[1].splitlines() if line}
    for pair in found.pairs:
        shown = [pair.at_rank(2), pair.at_rank(5), pair, pair.procrustes]
        assert rows[pair.name] == [f"{f.relative_accuracy:.3f}" for f in shown]
    result = run("stitch", A, B, "--data", "splits.npz", "--out", tmp_path / "auto")
    found = StitchingResult.load(tmp_path / "auto" / "result.json")
    assert [[f.rank for f in pair.rank_curve] for pair in found.pairs] == [[1, 2, 4, 6], [1, 2, 4, 5]]


def test_stitch_without_ranks_and_procrustes(run, tmp_path):
    result = run("stitch", A, B, "--data", "splits.npz", "--ranks", "none", "--no-procrustes", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = StitchingResult.load(tmp_path / "result.json")
    assert not found.has_rank_curve and not found.has_procrustes
    assert "full rank" not in result.stdout and "Procrustes" not in result.stdout
    assert not (tmp_path / "ranks.csv").exists()


def test_stitch_holds_out_a_fifth_where_there_is_no_test_part(run, tmp_path):
    result = run("stitch", A, B, "--data", "whole.npz", "--limit", "30", "--out", tmp_path)
    assert result.exit_code == 0
    assert "the last 6 of the 30 samples of whole.npz, held out since it has no test part" in result.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["fit_images"], found["test_images"]) == (24, 6)
    assert "held out" in found["made"]["Test data"]


def test_stitch_other_layers_other_sizes_and_data_from_a_function(run, tmp_path):
    result = run(
        "stitch", "nets.py:strided", "nets.py:wide", "--data", "nets.py:batches", "--test-data", "nets.py:others",
        "--front-layer", "conv1", "--end-layer", "bn1", "--front-layer", "bn1", "--end-layer", "bn2",
        "--resize", "nearest", "--precision", "float64", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = StitchingResult.load(tmp_path / "result.json")
    assert [pair.name for pair in found.pairs] == ["conv1 → bn1", "bn1 → bn2"]
    assert [(pair.front_channels, pair.end_channels) for pair in found.pairs] == [(6, 7), (6, 5)]
    assert found.fit_images == found.test_images == 20


def similarity_of(out):
    """What compare wrote, the same in its files."""
    matrix = SimilarityMatrix.load(out / "result.json")
    with (out / "similarity.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["layer_a"], r["layer_b"]) for r in rows] == [(a, b) for a in matrix.layers_a for b in matrix.layers_b]
    values = torch.tensor([float(row["value"] or "nan") for row in rows], dtype=torch.float64)
    assert_close(values.view(matrix.shape), matrix.values, rtol=0, atol=0, equal_nan=True)
    page = check_alone((out / "index.html").read_text(encoding="utf-8"))
    assert headline(matrix) in page.text and matrix.made["Command"] in page.text
    return matrix


def tapped(weights, layers, images):
    """The layers of that network, as (rows, features), in float64."""
    model = runpy.run_path("nets.py")["Small"]()
    model.load_state_dict(torch.load(weights))
    found = activations(model.eval(), layers, images)
    return [x.flatten(1).double() for x in found.values()]


def test_compare_writes_a_report(run, tmp_path):
    out = tmp_path / "new" / "report"
    result = run("compare", A, B, "--data", "unlabelled.npz", "--batch-size", "8", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"Report: {out / 'index.html'}\n") and result.stderr == ""
    matrix = similarity_of(out)
    layers = ["conv1", "bn1", "relu1", "conv2", "bn2", "pool", "flatten", "fc"]
    assert matrix.layers_a == matrix.layers_b == layers and matrix.names == ("seed0", "seed1")
    assert (matrix.samples, matrix.estimator, matrix.measure) == (40, "minibatch", "cka")
    assert headline(matrix) in result.stdout
    assert matrix.made["Command"].startswith(f"stitchkern compare {A} {B} --data unlabelled.npz --batch-size 8")
    assert matrix.made["Model B"] == f"seed1, 483 parameters, {B}" and matrix.made["Data"] == "unlabelled.npz"
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    for i, c in enumerate(counterparts(matrix)):
        value = matrix.values[i].max()
        assert rows[c.layer][0] == c.best and rows[c.layer][2] == f"{value:.3f}"


def test_compare_measures_what_it_was_asked_for(run, place, tmp_path):
    images = torch.from_numpy(np.load(place / "splits.npz")["test_images"]).movedim(-1, 1) / 255
    common = ["compare", A, B, "--data", "splits.npz", "--split", "test", "--layers-a", "bn1,fc", "--layers-b", "bn2"]
    result = run(
        *common, "--estimator", "exact", "--unbiased", "--kernel", "rbf", "--bandwidth", "2", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    matrix = similarity_of(tmp_path)
    assert matrix.shape == (2, 1) and matrix.samples == 10 and matrix.made["Data"] == "split 'test' of splits.npz"
    xs, (y,) = tapped("seed0.pt", ["bn1", "fc"], images), tapped("seed1.pt", ["bn2"], images)
    expected = [sk.cka(x, y, kernel="rbf", bandwidth=2.0, unbiased=True) for x in xs]
    assert_close(matrix.values[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    result = run(
        *common, "--measure", "procrustes_distance", "--option", "kind=angular", "--blocks", "0", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    matrix = similarity_of(tmp_path)
    expected = [sk.procrustes_distance(x, y, kind="angular") for x in xs]
    assert_close(matrix.values[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    result = run(*common, "--measure", "mutual_knn", "--option", "k=3", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    expected = [sk.mutual_knn(x, y, k=3) for x in xs]
    assert_close(similarity_of(tmp_path).values[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_compare_one_model_with_itself(run, tmp_path):
    result = run("compare", A, "--data", "splits.npz", "--features", "pool", "--layers-a", "bn1,bn2", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    matrix = similarity_of(tmp_path)
    assert matrix.names == ("seed0", "seed0") and matrix.made["Model"] == f"seed0, 483 parameters, {A}"
    assert "Model B" not in matrix.made and len(matrix.layers_b) == 8
    for layer in ("bn1", "bn2"):
        i, j = matrix.layers_a.index(layer), matrix.layers_b.index(layer)
        assert matrix.values[i, j] == pytest.approx(1, abs=1e-12)
    assert "most similar other" in result.stdout and "same name" not in result.stdout


def test_compare_networks_of_any_make_on_data_from_a_function(run, tmp_path):
    result = run(
        "compare", "nets.py:strided", "nets.py:wide", "--data", "nets.py:inputs", "--limit", "12", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert "nets.py:wide names no @weights" in result.stderr
    matrix = similarity_of(tmp_path)
    assert matrix.names == ("strided", "wide") and matrix.samples == 12 and matrix.shape == (8, 8)


def test_compare_says_what_never_varies(run, tmp_path):
    result = run("compare", "nets.py:dead", B, "--data", "splits.npz", "--layers-b", "fc", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "'relu1'" in result.stderr and "Traceback" not in result.stderr
    matrix = similarity_of(tmp_path)
    assert matrix.values[matrix.layers_a.index("relu1")].isnan().all() and not matrix.values[0].isnan().any()
    line = next(line for line in result.stdout.splitlines() if line.startswith("relu1"))
    assert "undefined" in line


def test_doctor_is_content_here(run):
    result = run("doctor")
    assert result.exit_code == 0
    for words in (torch.__version__, "build flags", "compiler", "CUDA kernels", "scikit-learn"):
        assert words in result.stdout


def test_demo_end_to_end(run, tmp_path):
    pytest.importorskip("sklearn")
    result = run("demo", "--quick", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = StitchingResult.load(tmp_path / "result.json")
    assert [pair.name for pair in found.pairs] == [f"bn{i}" for i in range(1, 7)]
    assert found.front.accuracy > 0.9 and found.end.accuracy > 0.9
    assert found.pairs[0].relative_accuracy > 0.98  # 16 channels hold a 3×3 patch of one colour without loss
    assert (tmp_path / "index.html").exists() and found.headline in result.stdout
    assert [f.rank for f in found.pairs[-1].rank_curve] == [4, 8, 16, 32, 48]
    assert found.pairs[-1].procrustes.relative_accuracy > 0.5 and (tmp_path / "ranks.png").exists()
    assert "Procrustes" in result.stdout and "rank 32" in result.stdout
    matrix = similarity_of(tmp_path / "similarity")
    assert matrix.shape == (21, 21) and matrix.names == ("seed 0", "seed 1") and matrix.samples == 1198
    assert 'href="similarity/index.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_runs_as_a_module(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(stitchkern.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "stitchkern", "layers", "nowhere.py:x"],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "stitchkern: spec 'nowhere.py:x': no such file nowhere.py\n"


def test_quickstart_runs(capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "quickstart.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"bn{i}" for i in range(1, 7)]
    assert float(lines[-1].split()[-1]) > 0.9
