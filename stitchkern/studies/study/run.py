"""Runs a study by its name, and says how its result came about."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from stitchkern.studies import digits
from stitchkern.studies.circumstances import circumstances
from stitchkern.studies.data import FitAndTest
from stitchkern.studies.study.networks import Networks
from stitchkern.studies.study.options import Options
from stitchkern.studies.study.registry import study_module, study_source, study_title
from stitchkern.studies.study.result import StudyResult


def run_study(
    name: str,
    networks: Networks,
    data: FitAndTest,
    options: Options,
    *,
    made: Mapping[str, str] | None = None,
) -> StudyResult:
    """The result of the study, with everything that its report says about how it was made.

    Args:
        networks, data: `digits_networks`, or `networks_from_specs`.
        options: its ``key`` is replaced.
        made: more to say about how the result came about.

    Raises:
        SpecError: no such study, or networks that it cannot use.
        Others as the study raises them.
    """
    module = study_module(name)
    key = {
        "study": name,
        "source": study_source(name),
        "data": networks.data_key,
        "device": options.device,
    }
    before = options.work.computed, options.work.taken_up
    start = time.perf_counter()
    with digits.one_thread() if networks.kind == "digits" else nullcontext():
        result: StudyResult = module.run(networks, data, replace(options, key=key))
        said = circumstances(options.device, {"study": time.perf_counter() - start})
    computed, taken_up = options.work.computed - before[0], options.work.taken_up - before[1]
    if taken_up:
        said["Time"] += f", with {taken_up} of {computed + taken_up} parts taken up from an earlier run"
    about = {
        "Networks": "; ".join(f"{network.name}: {network.source}" for network in networks.all),
        "Test data": data.note,
        "Task-loss training": f"{options.epochs} epochs{', a reduced set' if options.quick else ''}",
    }
    return replace(result, study=name, title=study_title(name), made={**(made or {}), **about, **result.made, **said})
