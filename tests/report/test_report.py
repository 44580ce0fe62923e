"""The report's files: complete, self-contained, escaped, and saying the same everywhere."""

import csv
import dataclasses
import itertools
import math
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from stitchkern import report
from stitchkern.report import plots
from stitchkern.studies.result import NetworkResult, PairResult, SimilarityResult, StitchingResult


def make_result(layers=("bn1", "bn2", "bn3"), front="seed 0", end="seed 1"):
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


class Page(HTMLParser):
    """Collects tags that are open, attributes that load something, and the text."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag, attributes):
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert report.write(make_result(), out) == out / "index.html"
    return out


def test_writes_every_file(folder):
    assert {path.name for path in folder.iterdir()} == {
        "index.html", "layers.csv", "layers.png", "result.json", "similarity.png",
    }  # fmt: skip
    for name in ("layers.png", "similarity.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_page_is_whole_and_needs_nothing_from_elsewhere(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.loads and all(target.startswith(("#", "data:")) for target in page.loads)
    for loading in ("<script", "<link", "@import", "<iframe", "url(http", "@font-face"):
        assert loading not in text
    assert "prefers-color-scheme: dark" in text


def test_page_states_the_finding_and_the_numbers(folder):
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    words = re.sub("[ \n]+", " ", " ".join(page.words))
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


def test_ids_are_unique_and_references_resolve(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")

    class Ids(HTMLParser):
        def __init__(self):
            super().__init__()
            self.ids, self.used = [], set()

        def handle_starttag(self, tag, attributes):
            for key, value in attributes:
                if key == "id":
                    self.ids.append(value)
                elif key in ("href", "xlink:href"):
                    self.used |= {value[1:]} if value.startswith("#") else set()
                elif "url(#" in (value or ""):
                    self.used.add(value.split("url(#")[1].split(")")[0])

    ids = Ids()
    ids.feed(text)
    assert ids.used and ids.used <= set(ids.ids)
    targets = [name for name in ids.ids if name in ids.used]
    assert len(targets) == len(set(targets))  # two pictures must not share a marker or a clip path


def test_headline_names_best_and_worst():
    headline = make_result().headline
    assert headline == (
        "The front of seed 0 drives the end of seed 1 best at bn1 "
        "(100.0\N{NO-BREAK SPACE}% of seed 1’s own accuracy) and worst at bn3 (86.0\N{NO-BREAK SPACE}%)."
    )
    assert "worst" not in make_result(layers=("bn1",)).headline


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


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "something-else"}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="stitchkern-stitching-1"):
        StitchingResult.from_json(text)


def test_csv_holds_the_same_numbers(folder):
    with (folder / "layers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, pair in zip(rows, make_result().pairs, strict=True):
        for name, value in dataclasses.asdict(pair).items():
            assert type(value)(row[name]) == value


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
    first, second = (plots.to_svg(plots.heat_map(make_result()), "map", "a") for _ in range(2))
    assert first == second


def test_terminal_table():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.stitching_table(make_result(layers=("bn1", "[red]", "bn3"))))
    text = console.export_text()
    assert "[red]" in text
    line = next(line for line in text.splitlines() if line.startswith("bn3"))
    assert "0.860" in line and line.count("█") == 14
