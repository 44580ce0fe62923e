"""The cases of `make bench-quick`: of each family some, as large as in `make bench`, under the same names.

A case is named by what its test's id begins with, so that a look takes less than three minutes and its result file can
still be compared with that of a whole run.
"""

from __future__ import annotations

from collections.abc import Iterable

QUICK = (
    "test_moments.py::test_second_moments[(65536, 64)-",
    "test_moments.py::test_second_moments[(32768, 512)-stitchkern",
    "test_moments.py::test_second_moments[(32768, 512)-x.T @ x",
    "test_moments.py::test_second_moments[NCHW 128×256×28×28-stitchkern",
    "test_moments.py::test_second_moments[NCHW 128×256×28×28-x.T @ x",
    "test_lsq.py::test_small_problems[64-",
    "test_lsq.py::test_small_problems[256-",
    "test_hsic.py::test_cka[RBF-stitchkern",
    "test_hsic.py::test_cka[RBF-cdist, exp, centring (float32)",
    "test_lasso.py::test_path[p = q = 256, well-conditioned-stitchkern",
    "test_lasso.py::test_path[p = q = 256, well-conditioned-FISTA",
    "test_spconv.py::test_forward[NCHW 32×256×28×28-0.9-",
    "test_spconv.py::test_forward_and_gradients[0.9-",
    "test_similarity.py::test_linear_cka[-",
    "test_similarity.py::test_canonical_correlations[SVCCA-stitchkern",
    "test_similarity.py::test_canonical_correlations[SVCCA-covariances",
    "test_similarity.py::test_distances[mutual k-NN, k = 10-stitchkern",
    "test_similarity.py::test_distances[mutual k-NN, k = 10-products",
    "test_task.py::test_step[1 stitch-",
    "test_scaling.py::",
    "test_threads.py::",
)


def is_quick(name: str) -> bool:
    """Whether `file.py::test[id]` is one of them."""
    return _plain(name).startswith(QUICK)


def unknown(names: Iterable[str]) -> list[str]:
    """Those of QUICK that nothing collected answers to, of files that were collected."""
    names = [_plain(name) for name in names]
    files = {name.split("::")[0] for name in names}
    return [q for q in QUICK if q.split("::")[0] in files and not any(name.startswith(q) for name in names)]


def _plain(name: str) -> str:
    """pytest writes letters beyond ASCII as escapes."""
    return name.encode("ascii", "backslashreplace").decode("unicode_escape")
