"""One typed line per native op, and its shape function. No mathematics: see :mod:`stitchkern.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from stitchkern import _C

#: precision name -> code, and the names of the entries of ``totals``; both come from csrc/moments/moments.h.
PRECISIONS: dict[str, int] = dict(sorted(_C.precisions().items(), key=lambda item: item[1]))
TOTALS: dict[str, int] = _C.totals()

_library = torch.ops.stitchkern


def moments_update_(
    second: Tensor,
    first: Tensor,
    third: Tensor,
    origin: Tensor,
    totals: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    precision: int,
    check_finite: bool,
) -> None:
    """Add the rows of x (n, h, w, p) and y (n, h, w, q) to the sums about ``origin``; see :class:`stitchkern.Moments`.

    ``second`` (P, P; upper triangle), ``first`` (P,), ``third`` (2 or 0, P), ``origin`` (P,) and ``totals`` are float64
    and contiguous, P = p + q. ``weight`` (n, h, w) float64. Where ``check_finite`` finds NaN, Inf or a negative weight,
    only the ``bad_*`` entries of ``totals`` change.
    """
    _library.moments_update_(second, first, third, origin, totals, x, y, weight, precision, check_finite)


@torch.library.register_fake("stitchkern::moments_update_")
def _(second, first, third, origin, totals, x, y, weight, precision, check_finite) -> None:
    return None


LSQ_MAX_FEATURES = 0  # TEMPORARY
