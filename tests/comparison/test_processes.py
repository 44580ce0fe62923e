"""Two processes with batches of their own find what one finds with all of them."""

from __future__ import annotations

import os
import subprocess
import sys

WORKER = """
import sys, warnings
import torch
import torch.distributed as dist
import stitchkern as sk
from stitchkern.errors import NotFiniteError, StatisticsError
from tests.comparison.conftest import cnn, images, split

dist.init_process_group("gloo")
rank, group = dist.get_rank(), dist.group.WORLD
a, b = cnn(0, norm=False), cnn(1, norm=False)
batches = split(images(70, shift=3.0), 20, 15, 15, 20)
mine = batches[rank::2]
layers = dict(layers_a=["0", "2", "6"], layers_b=["4", "8"])

for options in (dict(), dict(features="pool"), dict(features="pool", estimator="exact"),
                dict(features="pool", estimator="exact", unbiased=True), dict(features="pool", measure="svcca"),
                dict(features="pool", measure="linear_r2")):
    for other in (a, b):
        one = sk.compare(a, other, batches, **layers, **options)
        both = sk.compare(a, other, mine, group=group, **layers, **options)
        assert both.samples == 70, both
        assert (one.values - both.values).abs().max() < 1e-6, (options, one.values - both.values)
        if "measure" not in options:  # blocks of the jackknife are filled in turn, in another order here
            assert one.blocks == both.blocks
            assert (one.standard_error - both.standard_error).abs().max() < 1e-7
        assert not both.standard_error.isnan().any()
        told = [None, None]
        dist.all_gather_object(told, (both.values, both.standard_error))
        assert all(torch.equal(x, y) for x, y in zip(*told)), told

try:
    sk.compare(a, b, mine, estimator="exact", group=group, features="flatten", kernel="rbf", **layers)
    raise AssertionError("not refused")
except ValueError as error:
    assert "needs the features of all samples" in str(error), error

# one fails: so do all, instead of waiting for it
if rank == 1:
    mine[0][0][0, 0, 0, 0] = float("nan")
try:
    sk.compare(a, b, mine, group=group, **layers)
    raise AssertionError("not noticed")
except NotFiniteError:
    assert rank == 1
except StatisticsError as error:
    assert rank == 0 and "process 1 of the group failed: NotFiniteError: layer '0' of model_a" in str(error), error

try:
    sk.compare(a, b, batches[::2], layers_a=["0", "2"][: rank + 1], layers_b=["0"], group=group)
    raise AssertionError("not noticed")
except StatisticsError as error:
    assert "of the group" in str(error), error
print("agreed", rank)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_are_as_one(tmp_path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("agreed") == 2
