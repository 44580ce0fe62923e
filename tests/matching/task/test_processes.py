"""Several processes, each with a share of the samples, train the stitch of all samples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.testing import assert_close

import stitchkern as sk
from tests.matching.task.networks import PLAIN, batches, conv

SCRIPT = """
import sys, torch, torch.distributed as dist
import stitchkern as sk
from tests.matching.task.networks import PLAIN, batches, conv

dist.init_process_group("gloo")
rank = dist.get_rank()
mine = [(x[rank::2], y[rank::2]) for x, y in batches((20, 20, 20))]
def run(callback=None):
    return sk.match_tasks(
        conv(0), conv(1), "bn1", mine, [{}, {"rank": 2, "target": "hard"}], **{**PLAIN, "batch_size": 10, "epochs": 2},
        checkpoint=sys.argv[1] + ".run", validation=mine, callback=callback, record_every=2,
    )

def stop(step, steps, losses):
    if step == 5:
        raise KeyboardInterrupt

try:
    run(stop)
except KeyboardInterrupt:  # and on from the end of the first epoch
    found = run()
torch.save([(m.stitch.state_dict(), m.history.state()) for m in found], f"{sys.argv[1]}.{rank}")
dist.destroy_process_group()
"""


def test_two_processes_do_what_one_does(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path / "out"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = [torch.load(f"{tmp_path}/out.{rank}", weights_only=True) for rank in (0, 1)]
    data = batches((20, 20, 20))
    configs = [{}, {"rank": 2, "target": "hard"}]
    alone = sk.match_tasks(
        conv(0), conv(1), "bn1", data, configs, **{**PLAIN, "epochs": 2}, validation=data, record_every=2
    )
    for (first, history), (second, other), match in zip(*both, alone, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert repr(history) == repr(other)  # NaN where there is nothing, so not ==
        for name, expected in match.stitch.state_dict().items():
            assert_close(first[name], expected, rtol=1e-6, atol=1e-8)
        for name in ("loss", "accuracy", "validation_loss", "cka", "r2", "distance"):
            assert_close(torch.tensor(history[name]), torch.tensor(getattr(match.history, name)), equal_nan=True)
