"""Whether a stitched network does what the end does, sample by sample, beyond how often it is right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stitchkern.errors import NotFiniteError
from stitchkern.matching.evaluate import Key, check_labels, hits_of, logits_of
from stitchkern.matching.scores import auroc, energy, fpr_at
from stitchkern.matching.stream import Progress, stream
from stitchkern.models.cut import Tail
from stitchkern.models.taps import Taps, call, device_of, frozen
from stitchkern.nn import ChannelMap


@dataclass(frozen=True)
class Behaviour:
    r"""A stitched network beside the end, over the same samples.

    Attributes:
        penalty: the stitching penalty: mean cross-entropy to the labels, less that of the end itself.
        penalty_se: its standard error; samples are paired.
        agreement: share of samples that both put in the same class.
        soft_agreement: mean overlap of both probabilities, :math:`\sum_c \min(p_c, q_c) = 1 - \tfrac12\|p-q\|_1`.
        error_consistency: Cohen's κ of being right (Geirhos et al. 2020): 1 where both err on the same samples, 0 where
            only as often as chance has it; NaN where both are always right or both never.
        both_right, only_stitched, only_end, none_right: shares of samples; they add up to 1.
        energy_auroc: how well the energy score (`energy`) tells the end's own activations from stitched ones: near ½
            the stitched ones look like the end's; far above, the end is right on inputs that it takes for foreign.
        energy_fpr95: share of stitched samples that pass where 95 % of the end's own do; .95 where they look alike.
        not_finite: samples where the stitched network's outputs hold NaN or Inf. They count as wrong, as no agreement
            and as energy −∞; ``penalty`` is then infinite.
    """

    penalty: float
    penalty_se: float
    agreement: float
    soft_agreement: float
    error_consistency: float
    both_right: float
    only_stitched: float
    only_end: float
    none_right: float
    energy_auroc: float
    energy_fpr95: float
    not_finite: int = 0


def behaviour(
    front: nn.Module,
    end: nn.Module,
    stitches: Mapping[Key, nn.Module],
    batches: Iterable[Any],
    *,
    progress: Progress | None = None,
) -> dict[Key, Behaviour]:
    """What each stitched network does beside the end, in one pass over (inputs, labels) batches.

    Args, Raises: as for :func:`stitchkern.matching.evaluate`; and
    NotFiniteError where the end's own outputs hold NaN or Inf.
    """
    taps = Taps(front, [key[0] for key in stitches])
    tails = {b: Tail(end, b) for b in dict.fromkeys(key[1] for key in stitches)}
    seen: dict[Key, list[Tensor]] = {key: [] for key in stitches}
    energies: list[Tensor] = []
    with frozen(front, end, *stitches.values()), torch.no_grad():
        for inputs, labels in stream(batches, device_of(front), progress):
            held, outputs = taps.run(inputs) if front is end else (taps(inputs), call(end, inputs))
            right = hits_of(outputs, labels)
            logits = logits_of(outputs).double()
            assert labels is not None
            check_labels(labels, logits.shape[1])
            if not bool(logits.isfinite().all()):
                raise NotFiniteError("the end's own outputs hold NaN or Inf, so there is nothing to compare with")
            energies.append(energy(logits))
            for key, stitch in stitches.items():
                x = held[key[0]] if isinstance(stitch, ChannelMap) else held[key[0]].clone()
                other = tails[key[1]](stitch(x), inputs)
                seen[key].append(_rows(logits, right, logits_of(other).double(), hits_of(other, labels), labels))
    own = torch.cat(energies)
    if not len(own):
        raise ValueError("batches hold no sample")
    return {key: _summary(torch.cat(rows), own) for key, rows in seen.items()}


def _rows(own: Tensor, own_right: Tensor, logits: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """(n, 7): added loss, agreement, overlap, right of stitched and end, energy, finite."""
    finite = logits.isfinite().all(1)
    z = torch.where(finite[:, None], logits, 0.0)
    added = F.cross_entropy(z, labels, reduction="none") - F.cross_entropy(own, labels, reduction="none")
    overlap = torch.minimum(z.softmax(1), own.softmax(1)).sum(1)
    return torch.stack(
        [
            torch.where(finite, added, torch.inf),
            ((z.argmax(1) == own.argmax(1)) & finite).double(),
            torch.where(finite, overlap, 0.0),
            right.double(),
            own_right.double(),
            torch.where(finite, energy(z), -torch.inf),
            finite.double(),
        ],
        1,
    )


def _summary(rows: Tensor, own: Tensor) -> Behaviour:
    added, same, overlap, right, own_right, energies, finite = rows.unbind(1)
    n = len(rows)
    pairs = (right * own_right, right * (1 - own_right), (1 - right) * own_right)
    both, only, missed = (float(t.mean()) for t in pairs)
    a, b = float(right.mean()), float(own_right.mean())
    by_chance = a * b + (1 - a) * (1 - b)
    together = 1 - only - missed
    spread = float(added.std()) if n > 1 and bool(added.isfinite().all()) else math.nan
    return Behaviour(
        penalty=float(added.mean()),
        penalty_se=spread / math.sqrt(n),
        agreement=float(same.mean()),
        soft_agreement=float(overlap.mean()),
        error_consistency=(together - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan,
        both_right=both,
        only_stitched=only,
        only_end=missed,
        none_right=float(((1 - right) * (1 - own_right)).mean()),
        energy_auroc=auroc(own, energies),
        energy_fpr95=fpr_at(own, energies),
        not_finite=int((finite == 0).sum()),
    )
