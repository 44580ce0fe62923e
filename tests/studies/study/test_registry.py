"""What a study's units depend on."""

from __future__ import annotations

import stitchkern
from stitchkern.studies.study import registry


def test_units_follow_what_numbers_come_from_and_not_what_shows_them(tmp_path, monkeypatch) -> None:
    shown, beneath = ("report/page.py", "studies/catalogue/rank.py"), ("solvers/linear.py", "studies/digits.py")
    for name in ("__init__.py", *shown, *beneath):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(stitchkern, "__file__", str(tmp_path / "__init__.py"))

    def source() -> str:
        registry._beneath.cache_clear()
        return registry.study_source("rank")

    first = source()
    for name in shown:  # of a catalogue, the study's own file counts
        (tmp_path / name).write_text("2")
        assert source() == first
    for name in beneath:
        (tmp_path / name).write_text("2")
        assert source() != first
        first = source()
    registry._beneath.cache_clear()
