"""What a second thread brings: problems of test_scaling.py with one thread and with as many as there are.

The last file of a run, since `torch.set_num_threads` leaves MKL in another mode for all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from benchmarks.test_scaling import Problem, lasso, maps, moments, rbf_cka, record, ways

IN_THREADS: dict[str, tuple[Callable[..., Problem], tuple[int, ...]]] = {
    "moments (32768, 256)": (moments, (32768, 256)),
    "RBF CKA, n = 2,048, p = q = 256": (rbf_cka, (2048, 256)),
    "maps, 128 problems, p = q = 64": (maps, (128,)),
    "Lasso path, 50 α, p = q = 128": (lasso, (128,)),
}
THREADS = sorted({1, torch.get_num_threads()})


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case, contender", [(c, w) for c in IN_THREADS for w in ways(IN_THREADS[c][0])])
def test_threads(case, contender, threads, benchmark):
    with using_threads(threads):
        record(benchmark, f"{case}, {threads} thread{'s' * (threads > 1)}", contender, *IN_THREADS[case])
