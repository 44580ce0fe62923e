"""Two small networks that are trained once for all tests of studies, and a folder that studies keep their work in."""

from __future__ import annotations

import pytest

from stitchkern.studies.study import Options, Work, digits_networks


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="session")
def digits_pair(place):
    """(networks, data)"""
    return digits_networks(Work(place / "work"), quick=True)


@pytest.fixture
def options(place):
    """A reduced set, in two epochs."""
    return Options(Work(place / "work"), quick=True, epochs=2)
