"""The report's files: complete, self-contained, escaped, and saying the same everywhere."""

import csv
import dataclasses
import itertools
import math
import re

import pytest
import torch
from rich.console import Console

from stitchkern import report
from stitchkern.comparison import SimilarityMatrix
from stitchkern.plotting import DARK
from stitchkern.report import plots
from stitchkern.report.page import to_svg
from stitchkern.studies.result import (
    NetworkResult,
    OrthogonalResult,
    PairResult,
    RankResult,
    SimilarityResult,
    StitchingResult,
)
from tests.page import Page, check_alone

NESTED = ("rank_curve", "r2_by_rank", "procrustes")


def make_result(layers=("bn1", "bn2", "bn3"), front="seed 0", end="seed 1", ranks=(4, 8), orthogonal=True):
    """The first layer has 8 channels on one side: there 8 is the full rank."""

    def curve(i):
        most = 16 if i else 8
        full = 1 - 0.07 * i
        return [
            RankResult(k, 0.9 * k / most, 10 - 9 * k / most, 0.98 * share, share, 0.005)
            for k in [*(k for k in ranks if k < most), most]
            for share in [full if k == most else full * k / (k + 2)]
        ]

    pairs = [
        PairResult(
            front_layer=name,
            end_layer=name,
            front_channels=16,
            end_channels=16 if i else 8,
            rows=51200 // (i + 1),
            cka=0.95 - 0.05 * i,
            cka_unbiased=0.949 - 0.05 * i,
            r2=0.9 - 0.1 * i,
            residual=0.12345 * 10**i,
            rank=16,
            accuracy=0.98 * (1 - 0.07 * i),
            relative_accuracy=1 - 0.07 * i,
            relative_se=0.004 * (i + 1),
            rank_curve=curve(i) if ranks else [],
            r2_by_rank=[0.9 * k / (16 if i else 8) for k in range(1, (16 if i else 8) + 1)] if ranks else [],
            procrustes=OrthogonalResult(0.5, 3.0, 1.25, 0.8 - 0.1 * i, 0.815 - 0.1 * i, 0.01) if orthogonal else None,
        )
        for i, name in enumerate(layers)
    ]
    n = len(layers)
    values = [[1 / (1 + abs(i - j)) for j in range(n)] for i in range(n)]
    return StitchingResult(
        front=NetworkResult(front, 0.9871, 12345, "nets.py:small@a.pt"),
        end=NetworkResult(end, 0.98, 12345, "nets.py:small@b.pt"),
        pairs=pairs,
        similarity=SimilarityResult(list(layers), list(layers), values),
        fit_images=1198,
        test_images=599,
        made={"Command": "stitchkern demo --out report", "Versions": "torch 2.13"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert report.write(make_result(), out) == out / "index.html"
    return out


def test_writes_every_file(folder):
    assert {path.name for path in folder.iterdir()} == {
        "index.html", "layers.csv", "layers.png", "ranks.csv", "ranks.png", "result.json", "similarity.png",
    }  # fmt: skip
    for name in ("layers.png", "ranks.png", "similarity.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_page_is_whole_and_needs_nothing_from_elsewhere(folder):
    check_alone((folder / "index.html").read_text(encoding="utf-8"))


def test_page_states_the_finding_and_the_numbers(folder):
    words = Page((folder / "index.html").read_text(encoding="utf-8")).text
    assert make_result().headline in words
    for expected in (
        "98.7\N{NO-BREAK SPACE}%",
        "1,198",
        "stitchkern demo --out report",
        "nets.py:small@a.pt",
        "0.930",
        "16 → 8",
    ):
        assert expected in words


def test_headline_names_best_and_worst():
    headline = make_result().headline
    assert headline == (
        "The front of seed 0 drives the end of seed 1 best at bn1 "
        "(100.0\N{NO-BREAK SPACE}% of seed 1’s own accuracy) and worst at bn3 (86.0\N{NO-BREAK SPACE}%)."
    )
    assert "worst" not in make_result(layers=("bn1",)).headline


def test_headline_does_not_rank_what_chance_explains():
    result = make_result()
    near = [
        dataclasses.replace(p, relative_accuracy=1 - 0.004 * i, relative_se=0.01) for i, p in enumerate(result.pairs)
    ]
    headline = dataclasses.replace(result, pairs=near).headline
    assert "about equally well at every layer" in headline and "best" not in headline and "–100.0" in headline


def test_json_round_trip(folder):
    assert StitchingResult.load(folder / "result.json") == make_result()


def test_json_keeps_undefined_numbers_and_stays_strict():
    result = make_result()
    result.pairs[1] = dataclasses.replace(result.pairs[1], cka=math.nan)
    text = result.to_json()
    assert "NaN" not in text
    back = StitchingResult.from_json(text)
    assert math.isnan(back.pairs[1].cka)
    assert back.pairs[0] == result.pairs[0]


def test_json_keeps_undefined_numbers_inside_lists_and_what_was_not_asked_for():
    result = make_result()
    nan = dataclasses.replace(result.pairs[0].rank_curve[0], relative_accuracy=math.nan)
    result.pairs[0].rank_curve[0] = nan
    result.pairs[0].r2_by_rank[2] = math.nan
    rotation = dataclasses.replace(result.pairs[1].procrustes, relative_se=math.nan)
    result.pairs[1] = dataclasses.replace(result.pairs[1], procrustes=rotation)
    result.pairs[2] = dataclasses.replace(result.pairs[2], procrustes=None, rank_curve=[], r2_by_rank=[])
    text = result.to_json()
    assert "NaN" not in text
    back = StitchingResult.from_json(text)
    assert math.isnan(back.pairs[0].rank_curve[0].relative_accuracy) and math.isnan(back.pairs[0].r2_by_rank[2])
    assert math.isnan(back.pairs[1].procrustes.relative_se)
    assert dataclasses.replace(back.pairs[1].procrustes, relative_se=0) == dataclasses.replace(rotation, relative_se=0)
    assert back.pairs[0].rank_curve[1:] == result.pairs[0].rank_curve[1:]
    assert back.pairs[2] == result.pairs[2] and back.pairs[2].procrustes is None


@pytest.mark.parametrize(
    "text, got",
    [
        ("[]", "no format"),
        ("{}", "no format"),
        ('{"format": "something-else"}', "'something-else'"),
        ('{"format": "stitchkern-stitching-1"}', "'stitchkern-stitching-1'"),
    ],
)
def test_other_json_is_refused(text, got):
    with pytest.raises(ValueError, match=f"of format 'stitchkern-stitching-2', .* got .*{got}"):
        StitchingResult.from_json(text)


def test_csv_holds_the_same_numbers(folder):
    with (folder / "layers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, pair in zip(rows, make_result().pairs, strict=True):
        numbers = {name: value for name, value in dataclasses.asdict(pair).items() if name not in NESTED}
        assert list(row) == list(numbers)
        for name, value in numbers.items():
            assert type(value)(row[name]) == value


def test_csv_of_ranks_holds_every_rank_and_procrustes(folder):
    with (folder / "ranks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = make_result().pairs
    assert len(rows) == sum(len(pair.r2_by_rank) + 1 for pair in pairs)
    for pair in pairs:
        mine = [row for row in rows if row["front_layer"] == pair.name]
        *ranks, full, rotation = mine
        assert [float(row["r2"]) for row in mine[:-1]] == pair.r2_by_rank
        assert [int(row["rank"]) for row in mine[:-1]] == list(range(1, len(pair.r2_by_rank) + 1))
        assert {row["map"] for row in ranks} == {"reduced rank"}
        assert (full["map"], rotation["map"], rotation["rank"]) == ("full", "procrustes", "")
        tested = {int(row["rank"]): float(row["relative_accuracy"]) for row in mine[:-1] if row["relative_accuracy"]}
        assert tested == {found.rank: found.relative_accuracy for found in pair.rank_curve}
        for name, value in dataclasses.asdict(pair.procrustes).items():
            assert float(rotation[name]) == value


def test_page_shows_the_table_by_rank(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    table = re.search(r"What a map of lower rank keeps.*?<table>(.*?)</table>", text, re.S).group(1)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]
    assert rows[0] == ["Relative accuracy", "Rank 4", "Rank 8", "Full rank", "Procrustes"]
    assert rows[1] == ["bn1", "0.667", "1.000", "1.000", "0.815"]  # of 8 channels: rank 8 is the full one
    assert rows[3] == ["bn3", "0.573", "0.688", "0.860", "0.615"]
    assert "rank W ≤ k" in text and "WᵀW = I" in text


@pytest.mark.parametrize("ranks, orthogonal", [((), False), ((), True), ((4,), False)])
def test_what_was_not_tested_is_absent_and_leaves_no_file_of_another_result(tmp_path, ranks, orthogonal):
    report.write(make_result(), tmp_path)
    text = report.write(make_result(ranks=ranks, orthogonal=orthogonal), tmp_path).read_text(encoding="utf-8")
    body = text[: text.index("What the numbers mean")]
    assert Page(text).open == []
    assert ("What a map of lower rank keeps" in body) == ("by rank of the map" in body) == bool(ranks)
    assert ("What a rotation keeps" in body) == (orthogonal and not ranks)
    assert ("Procrustes" in body) == orthogonal
    assert ("Full rank</th>" in body) == bool(ranks or orthogonal)
    assert (tmp_path / "ranks.png").exists() == bool(ranks)
    assert (tmp_path / "ranks.csv").exists() == bool(ranks or orthogonal)
    table = report.rank_table(make_result(ranks=ranks, orthogonal=orthogonal))
    assert (table is None) == (not ranks and not orthogonal)


def test_rank_panels_show_what_was_measured():
    result = make_result()
    figure = plots.by_rank(result, DARK)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["bn1", "bn2", "bn3"]
    for axes, pair in zip(panels, result.pairs, strict=True):
        level, r2, markers = axes.get_lines()
        assert set(level.get_ydata()) == {pair.procrustes.relative_accuracy}
        assert list(r2.get_ydata()) == pair.r2_by_rank
        assert list(markers.get_xdata()) == [found.rank for found in pair.rank_curve]
        assert list(markers.get_ydata()) == [found.relative_accuracy for found in pair.rank_curve]
        (bars,) = (lines for lines in axes.collections if len(lines.get_paths()) == len(pair.rank_curve))
        ends = bars.get_paths()[0].vertices[:, 1]
        assert ends[1] - ends[0] == pytest.approx(2 * 1.96 * pair.rank_curve[0].relative_se)
        assert axes.get_xscale() == "log" and axes.get_ylim()[0] <= 0 and axes.get_ylim()[1] >= 1
    plain = plots.by_rank(make_result(orthogonal=False))
    assert len(plain.axes[0].get_lines()) == 2


@pytest.mark.parametrize("count, columns", [(1, 1), (2, 2), (4, 4), (5, 3), (6, 3), (8, 4), (9, 3), (20, 5), (40, 5)])
def test_panels_fill_rows(count, columns):
    assert plots._columns(count) == columns


def test_many_ranks_are_thinned_and_few_are_not():
    assert plots._log_spaced(1) == [1] and plots._log_spaced(64) == list(range(1, 65))
    thin = plots._log_spaced(4096)
    assert (thin[0], thin[-1]) == (1, 4096) and len(thin) < 250
    assert max(b / a for a, b in itertools.pairwise(thin[63:])) < 1.07


def test_a_similarity_report_beside_it_is_linked(tmp_path):
    values = torch.eye(2)
    matrix = SimilarityMatrix(values, values, ["x", "y"], ["x", "y"], "cka", "exact", "pool", 9, 3)
    page = Page(report.write(make_result(), tmp_path, similarity=matrix).read_text(encoding="utf-8"))
    links = [target for target in page.loads if not target.startswith(("#", "data:"))]
    assert links == ["similarity/index.html"] and (tmp_path / links[0]).exists()
    assert "CKA of all 2 × 2 layers" in page.text
    assert "similarity/index.html" not in report.write(make_result(), tmp_path).read_text(encoding="utf-8")


def test_names_are_escaped(tmp_path):
    nasty = "<script>&\"'$x_1$"
    result = make_result(layers=(nasty, "bn2"), front=nasty, end="[bold]end[/bold]")
    text = report.write(result, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and "<script" not in text
    words = "".join(page.words)
    assert words.count(nasty) >= 4
    assert words.count("$x_1$") >= 4  # and matplotlib did not take it for a formula


def test_numbers_that_are_undefined_leave_a_page(tmp_path):
    result = make_result()
    result.pairs[0] = dataclasses.replace(result.pairs[0], cka=math.nan, cka_unbiased=math.nan)
    result.similarity.values[0][0] = math.nan
    undefined = {"relative_accuracy": math.nan, "relative_se": math.nan}
    for pair in result.pairs:
        pair.rank_curve[:] = [dataclasses.replace(found, **undefined) for found in pair.rank_curve]
    assert "–" in report.write(result, tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [1, 40])
def test_one_layer_and_many(tmp_path, count):
    result = make_result(layers=tuple(f"layer{i}.0.bn" for i in range(count)))
    result = dataclasses.replace(
        result,
        pairs=[dataclasses.replace(pair, relative_accuracy=0.9, residual=1.0) for pair in result.pairs],
    )
    assert Page(report.write(result, tmp_path).read_text(encoding="utf-8")).open == []


def test_labels_at_the_end_of_lines_do_not_overlap():
    placed = plots._spread([0.98, 0.98, 0.979], 0.5, 1.0)
    ordered = sorted(placed)
    assert all(b - a >= 0.99 * plots._LABEL_GAP * 0.5 for a, b in itertools.pairwise(ordered))
    assert plots._spread([0.5, 0.9, 0.7], 0.0, 1.0) == [0.5, 0.9, 0.7]


def test_pictures_are_the_same_every_time():
    first, second = (to_svg(plots.heat_map(make_result()), "map", "a") for _ in range(2))
    assert first == second


def test_terminal_table():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.stitching_table(make_result(layers=("bn1", "[red]", "bn3"))))
    text = console.export_text()
    assert "[red]" in text
    line = next(line for line in text.splitlines() if line.startswith("bn3"))
    assert "0.860" in line and line.count("█") == 14


def test_terminal_table_by_rank():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.rank_table(make_result(layers=("bn1", "[red]", "bn3"), ranks=(4, 12))))
    lines = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    assert lines == [
        ["relative accuracy", "rank 4", "rank 12", "full rank", "Procrustes"],
        ["bn1", "0.667", "–", "1.000", "0.815"],  # 8 channels have no rank 12
        ["[red]", "0.620", "0.797", "0.930", "0.715"],
        ["bn3", "0.573", "0.737", "0.860", "0.615"],
    ]
