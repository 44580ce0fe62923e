"""Scores that tell two sets apart, beside scikit-learn and by counting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError, ShapeError
from stitchkern.matching.scores import auroc, energy, fpr_at


def sets(n: int, m: int, ties: bool) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    a, b = torch.randn(n, generator=g) + 0.5, torch.randn(m, generator=g)
    return ((a * 2).round(), (b * 2).round()) if ties else (a, b)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n, m", [(1, 1), (7, 13), (200, 150)])
def test_auroc_counts_pairs(n: int, m: int, ties: bool) -> None:
    a, b = sets(n, m, ties)
    pairs = (a[:, None] > b).double() + (a[:, None] == b).double() / 2
    assert auroc(a, b) == pytest.approx(pairs.mean().item(), abs=1e-12)
    assert auroc(a, a) == 0.5


def test_both_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = sets(200, 150, ties=False)
    truth, scores = torch.cat([torch.ones(200), torch.zeros(150)]).numpy(), torch.cat([a, b]).numpy()
    assert auroc(a, b) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at(a, b) == pytest.approx(false[(true >= 0.95).argmax()], abs=1e-12)


def test_at_least_that_share_passes() -> None:
    a = torch.arange(20.0)
    assert fpr_at(a, torch.tensor([0.0, 0.5, 1.0, 7.0])) == 0.5  # 19 of 20 pass from 1 on
    assert fpr_at(a, torch.tensor([0.0, -1.0]), 1.0) == 0.5
    assert fpr_at(torch.ones(3), torch.ones(4)) == 1.0


def test_energy_is_the_log_of_the_sum() -> None:
    z = torch.tensor([[1.0, 2.0], [1e4, 0.0]])
    assert energy(z).tolist() == pytest.approx([2.3132616875182228, 1e4])


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ShapeError, match=r"outside must be \(n,\) with at least one score; got \(0,\)"):
        auroc(torch.ones(2), torch.ones(0))
    with pytest.raises(NotFiniteError, match="inside holds NaN"):
        fpr_at(torch.tensor([torch.nan]), torch.ones(1))
    with pytest.raises(ValueError, match=r"recall must be in \(0, 1\]; got 0"):
        fpr_at(torch.ones(1), torch.ones(1), 0)
