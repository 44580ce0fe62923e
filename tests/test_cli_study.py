"""`stitchkern study`: what it runs on, where it puts its report, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stitchkern import cli
from stitchkern.studies import digits
from stitchkern.studies.study import StudyResult, study_names
from tests.page import Page, check_alone

SPEC = "stitchkern.studies.digits:network"


def run(*words: object, code: int = 0):
    result = CliRunner().invoke(cli.commands, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def folder(tmp_path):
    """Two networks and the digits as a user has them."""
    for seed in (0, 1):
        torch.save(digits.network(seed).state_dict(), tmp_path / f"seed{seed}.pt")
    train, test = digits.digits()
    np.savez(
        tmp_path / "digits.npz",
        train_images=train.inputs[:100].numpy(), train_labels=train.labels[:100].numpy(),
        test_images=test.inputs[:50].numpy(), test_labels=test.labels[:50].numpy(),
    )  # fmt: skip
    return tmp_path


def test_the_list():
    printed = run("study", "--list").output
    assert all(name in printed for name in study_names()) and "layer by layer" in printed


def test_a_users_networks(folder):
    out = folder / "out"
    words = ("study", "direct-vs-task", SPEC, "--weights", f"{folder}/seed*.pt", "--data", folder / "digits.npz",
             "--layers", "bn2,bn4", "--quick", "--epochs", 1, "--out", out)  # fmt: skip
    printed = run(*words).output
    assert f"Report: {out}/direct-vs-task/index.html" in printed and "split 'test'" in printed
    result = StudyResult.load(out / "direct-vs-task" / "result.json")
    assert [row[0] for row in result.tables[0].rows] == ["bn2", "bn4"]
    assert result.made["Command"].startswith("stitchkern study direct-vs-task")
    assert "seed0.pt" in result.made["Networks"] and "1 epochs" in result.made["Task-loss training"]
    check_alone((out / "direct-vs-task" / "index.html").read_text(encoding="utf-8"))
    assert Page((out / "index.html").read_text(encoding="utf-8")).loads == ["direct-vs-task/index.html"]
    before = json.loads((out / "direct-vs-task" / "result.json").read_text())["tables"]
    run(*words)
    again = StudyResult.load(out / "direct-vs-task" / "result.json")
    assert "3 of 3 parts taken up" in again.made["Time"]
    assert json.loads((out / "direct-vs-task" / "result.json").read_text())["tables"] == before
    assert f"All studies: {out}/index.html" in run("study", "summary", "--out", out).output


@pytest.mark.parametrize(
    "words, message",
    [
        (("nothing",), "there is no study 'nothing'"),
        (("rank", SPEC), "MODELS and --data are given together"),
        (("rank", "--data", "a.npz"), "MODELS and --data are given together"),
        (("rank", "--weights", "a.pt"), "--weights goes with MODELS and --data"),
        (("rank", "--limit", 5), "--limit goes with MODELS and --data"),
        (("rank", SPEC, SPEC, "--weights", "a.pt", "--data", "digits.npz"), "--weights goes with one MODEL"),
        (("rank", SPEC, "--weights", "none*.pt", "--data", "digits.npz"), "there is no such file"),
        (("rank", SPEC, SPEC, "--data", "digits.npz"), "must be named once"),
        (("rank", SPEC, "--data", "digits.npz"), "takes pairs of networks; 1 are given"),
        (("rank", SPEC, f"{SPEC}@seed1.pt", "--data", "digits.npz", "--layers", "bn9"), "bn9"),
        (("summary",), "holds no study"),
    ],
)
def test_what_is_refused(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli.commands, ["study", *map(str, words), "--out", "out"])
    assert result.exit_code != 0
    said = result.output + str(result.exception)
    assert message in said, said
