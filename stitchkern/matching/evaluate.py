"""How well stitched networks do on data, in one pass."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from stitchkern.errors import ShapeError
from stitchkern.matching.stream import Pair, Progress, stream
from stitchkern.models.cut import Tail
from stitchkern.models.taps import Taps, call, device_of, frozen
from stitchkern.nn import ChannelMap

Key = TypeVar("Key", bound=Pair | tuple[str, str, Hashable])
"""(front layer, end layer), or with a third entry that tells stitches of one pair apart."""


@dataclass(frozen=True)
class Evaluation(Generic[Key]):
    """Accuracies on ``count`` samples, as fractions; those of stitched networks by the keys of the stitches.

    Attributes:
        front_accuracy, end_accuracy: of the two models by themselves.
        accuracy: of each stitched network.
        relative: accuracy of the stitched network divided by ``end_accuracy``; NaN when that is 0.
        relative_se: standard error of ``relative`` (`relative_standard_error`).
    """

    count: int
    front_accuracy: float
    end_accuracy: float
    accuracy: dict[Key, float]
    relative: dict[Key, float]
    relative_se: dict[Key, float]

    def interval(self, key: Key, confidence: float = 0.95) -> tuple[float, float]:
        """The confidence interval of ``relative[key]``, by the normal approximation about it; never below 0.

        Raises:
            ValueError: confidence outside of (0, 1).
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1); got {confidence}")
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * self.relative_se[key]
        return max(self.relative[key] - reach, 0.0) if not math.isnan(reach) else math.nan, self.relative[key] + reach


def evaluate(
    front: nn.Module,
    end: nn.Module,
    stitches: Mapping[Key, nn.Module],
    batches: Iterable[Any],
    *,
    progress: Progress | None = None,
) -> Evaluation[Key]:
    """Top-1 accuracy of front, end and every stitched network, in one pass over (inputs, labels) batches.

    Per batch the front runs once for all its layers, the end once in full, and for each stitch the end's
    tail. Everything runs frozen and in eval mode and is left as it was. A model's outputs are logits (n,
    classes), or a tuple that starts with them, or an object with ``.logits``. A sample whose logits are not all
    finite counts as wrong.

    Args:
        front, end: the models; one object may be both.
        stitches: by (front layer, end layer), or by (front layer, end layer, anything hashable) where one pair
            has several; the result has the same keys.
        batches: (inputs, labels).
        progress: called as ``progress(done, total)`` after each batch; total is 0 where unknown.

    Raises:
        LayerError: unknown layer, one that does not run exactly once, or one of the end that its outputs do not
            depend on.
        ShapeError: outputs are not (n, classes) beside labels (n,), labels that are no class of the end, or a
            stitch that does not fit its layer.
        ValueError: no batch, or a batch without labels.
    """
    taps = Taps(front, [key[0] for key in stitches])
    tails = {b: Tail(end, b) for b in dict.fromkeys(key[1] for key in stitches)}
    count = front_right = end_right = 0
    right = dict.fromkeys(stitches, 0)
    both_right = dict.fromkeys(stitches, 0)
    with frozen(front, end, *stitches.values()), torch.no_grad():
        for inputs, labels in stream(batches, device_of(front), progress):
            held, outputs = taps.run(inputs)
            front_hits = hits_of(outputs, labels)
            end_outputs = outputs if front is end else call(end, inputs)
            end_hits = hits_of(end_outputs, labels)
            check_labels(labels, logits_of(end_outputs).shape[1])
            count += len(end_hits)
            front_right += int(front_hits.sum())
            end_right += int(end_hits.sum())
            for key, stitch in stitches.items():
                x = held[key[0]]
                if not isinstance(stitch, ChannelMap):
                    x = x.clone()  # another module than a stitch may write into what the next one reads
                hits = hits_of(tails[key[1]](stitch(x), inputs), labels)
                right[key] += int(hits.sum())
                both_right[key] += int((hits & end_hits).sum())
    if not count:
        raise ValueError("batches hold no sample")
    return Evaluation(
        count=count,
        front_accuracy=front_right / count,
        end_accuracy=end_right / count,
        accuracy={key: hits / count for key, hits in right.items()},
        relative={key: hits / end_right if end_right else math.nan for key, hits in right.items()},
        relative_se={
            key: relative_standard_error(hits, end_right, both_right[key], count) for key, hits in right.items()
        },
    )


def relative_standard_error(right: int, end_right: int, both_right: int, count: int) -> float:
    r"""Standard error of the ratio r = (Σ s)/(Σ e) of two accuracies measured on the same samples.

    .. math::
        \mathrm{se}(r) = \frac{1}{\bar e} \sqrt{\frac{1}{n (n-1)} \sum_i (s_i - r e_i)^2}, \qquad
        \sum_i (s_i - r e_i)^2 = \sum s - 2 r \sum s e + r^2 \sum e

    with s and e in {0, 1} for "right": the delta method, where :math:`s_i - r e_i` has mean 0. Pairing
    matters: samples that both networks get right add no noise when r = 1. NaN when the end is never right
    or n < 2.

    Source: Cochran, Sampling Techniques (1977), section 6.4, the ratio estimator.
    """
    if not end_right or count < 2:
        return math.nan
    ratio = right / end_right
    squares = right - 2 * ratio * both_right + ratio**2 * end_right
    return math.sqrt(max(squares, 0.0) / (count * (count - 1))) / (end_right / count)


def hits_of(outputs: Any, labels: Tensor | None) -> Tensor:
    """Which samples are classified correctly, (n,) bool; never one whose logits are not all finite."""
    if labels is None:
        raise ValueError("batches must yield (inputs, labels): accuracy needs labels")
    logits = logits_of(outputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or labels.shape != logits.shape[:1]:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"outputs must be (n, classes) beside labels (n,); got {got} and {tuple(labels.shape)}")
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def logits_of(outputs: Any) -> Any:
    logits = getattr(outputs, "logits", outputs)
    return logits[0] if isinstance(logits, (tuple, list)) and logits else logits


def check_labels(labels: Tensor | None, classes: int) -> None:
    if labels is not None and (wrong := labels[(labels < 0) | (labels >= classes)]).numel():
        raise ShapeError(f"labels must be 0 … {classes - 1}, the classes of the end; got {int(wrong[0])}")
