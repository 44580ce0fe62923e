"""Two digits networks, trained for as long as it takes to mean something, and few data: a study in a second or two."""

from __future__ import annotations

import pytest

from stitchkern.studies import digits
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study import Network, Networks, Options, Work, fingerprint, run_study


@pytest.fixture(scope="package")
def data() -> FitAndTest:
    pytest.importorskip("sklearn")
    train, test = digits.digits()
    some = [digits.Batches(part.inputs[:256], part.labels[:256]) for part in (train, test)]
    return FitAndTest(*some, "256 digits")


@pytest.fixture(scope="package")
def networks(data) -> Networks:
    train, _ = digits.digits()
    models = [digits.train(seed, train, epochs=4, width=0.5) for seed in (0, 1)]
    found = [Network(f"seed {i}", model, "here", fingerprint(model)) for i, model in enumerate(models)]
    return Networks(found, list(digits.LAYERS), "digits", "few digits")


@pytest.fixture
def asked(tmp_path) -> Options:
    return Options(Work(tmp_path), quick=True, epochs=3)


@pytest.fixture
def study(networks, data, asked):
    """study(name): its result, once computed and once taken up, which must say the same."""

    def run(name, some=networks, options=asked):
        found = run_study(name, some, data, options)
        before = options.work.computed
        again = run_study(name, some, data, options)
        assert options.work.computed == before
        assert (again.headline, again.tables, again.curves) == (found.headline, found.tables, found.curves)
        return found

    return run


@pytest.fixture
def table():
    """table(result, name): its rows as dicts."""

    def rows(result, name):
        (found,) = [one for one in result.tables if one.name == name]
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    return rows
