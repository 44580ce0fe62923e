"""How well a score tells two sets of samples apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError, ShapeError


def energy(logits: Tensor) -> Tensor:
    r"""log Σ_c exp(z_c) (n,) of logits (n, classes), float64: high for inputs like those of training.

    The negative free energy at temperature 1 (Liu et al. 2020, "Energy-based out-of-distribution detection").
    """
    return logits.double().logsumexp(-1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    r"""P(score of an inside sample > that of an outside one), ties counting half: ½ where nothing tells them apart.

    Args:
        inside, outside: (n,), (m,) scores, at least one each.

    Raises:
        ShapeError: empty, or not one-dimensional. NotFiniteError: NaN.
    """
    inside, outside = _checked(inside, outside)
    ordered = outside.sort().values
    below = torch.searchsorted(ordered, inside, right=False)
    up_to = torch.searchsorted(ordered, inside, right=True)
    return float((below + up_to).double().mean() / (2 * len(outside)))


def fpr_at(inside: Tensor, outside: Tensor, recall: float = 0.95) -> float:
    """The share of outside samples that pass for inside ones at the threshold that ``recall`` of these pass.

    Args:
        inside, outside: as for `auroc`.
        recall: in (0, 1]; at least that share of ``inside`` has the threshold's score or more.

    Raises:
        As `auroc`; ValueError: recall out of range.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be in (0, 1]; got {recall}")
    inside, outside = _checked(inside, outside)
    passing = math.ceil(recall * len(inside) - 1e-9)
    threshold = inside.sort(descending=True).values[passing - 1]
    return float((outside >= threshold).double().mean())


def _checked(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    for name, t in (("inside", inside), ("outside", outside)):
        if t.ndim != 1 or not len(t):
            raise ShapeError(f"{name} must be (n,) with at least one score; got {tuple(t.shape)}")
        if bool(t.isnan().any()):
            raise NotFiniteError(f"{name} holds NaN, which has no place in an order")
    return inside.double(), outside.double()
