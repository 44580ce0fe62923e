"""Accuracy and loss of many maps of one pair of layers in one pass: along a path of ranks or sparsities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stitchkern.errors import ShapeError
from stitchkern.matching.direct import side_by_side
from stitchkern.matching.evaluate import check_labels, hits_of, logits_of, relative_standard_error
from stitchkern.matching.stream import Pair, Progress, stream
from stitchkern.matching.task.source import repeated, stand_in
from stitchkern.matching.task.stack import stitched
from stitchkern.models.cut import Tail
from stitchkern.models.taps import Taps, device_of, frozen
from stitchkern.nn import LowRankStitch

if TYPE_CHECKING:
    from stitchkern.solvers import AffineMap, LassoPath

#: samples of the end at once: enough to fill vectors and threads, few enough for the caches
_AT_ONCE = 512


@dataclass(frozen=True)
class PathAccuracy:
    """Of the stitched network with each of k maps, on the same ``count`` samples.

    Attributes:
        end_accuracy: of the end by itself.
        accuracy, relative, relative_se: (k,) float64, as in :class:`stitchkern.matching.Evaluation`.
        loss: (k,) float64, mean cross-entropy to the labels; infinite where outputs hold NaN or Inf.
    """

    count: int
    end_accuracy: float
    accuracy: Tensor
    relative: Tensor
    relative_se: Tensor
    loss: Tensor


def along_path(
    front: nn.Module,
    end: nn.Module,
    layer: str | Pair,
    maps: Sequence[AffineMap | nn.Module] | LassoPath,
    batches: Iterable[Any],
    *,
    resize: str | None = None,
    progress: Progress | None = None,
) -> PathAccuracy:
    """Relative accuracy of every map, of which there may be hundreds, in one pass over (inputs, labels) batches.

    Front and end run once for each batch; several maps at a time are one 1×1 convolution, and what they give goes
    through what follows the layer in the end as one batch.

    Args:
        front, end: the models; they run frozen and in eval mode and are left as they were.
        layer: a name that both have, or (front layer, end layer).
        maps: with a weight (q, p) and a bias (q,) each: :class:`stitchkern.AffineMap`, dense or low-rank stitches, a
            :class:`stitchkern.LassoPath`.
        batches: (inputs, labels).
        resize: as for :func:`stitchkern.match_direct`.
        progress: called as ``progress(done, total)`` after each batch.

    Raises:
        ValueError: no map, no batch, no labels.
        LayerError, ShapeError: as :func:`stitchkern.matching.evaluate`; maps of several shapes.
    """
    weights, biases = _stacked(maps)
    a, b = (layer, layer) if isinstance(layer, str) else layer
    taps, end_taps, tail = Taps(front, [a]), Taps(end, [b]), Tail(end, b)
    right = torch.zeros(len(weights), dtype=torch.long)
    both = right.clone()
    loss = torch.zeros(len(weights), dtype=torch.float64)
    count = end_right = 0
    with frozen(front, end), torch.no_grad():
        for inputs, labels in stream(batches, device_of(front), progress):
            held, outputs = end_taps.run(inputs)
            end_hits = hits_of(outputs, labels)
            assert labels is not None
            check_labels(labels, logits_of(outputs).shape[1])
            x = side_by_side((a, b), taps(inputs)[a], held[b], resize)
            tail(held[b], inputs)  # the first time finds out whether there is a cut
            step = max(1, _AT_ONCE // len(x))
            for start in range(0, len(weights), step):
                some = slice(start, min(start + step, len(weights)))
                hits, added = _hits_and_losses(tail, x, weights[some], biases[some], inputs, labels)
                loss[some] += added.cpu()
                right[some] += hits.sum(0).cpu()
                both[some] += (hits & end_hits[:, None]).sum(0).cpu()
            count += len(labels)
            end_right += int(end_hits.sum())
    if not count:
        raise ValueError("batches hold no sample")
    errors = [
        relative_standard_error(r, end_right, w, count) for r, w in zip(right.tolist(), both.tolist(), strict=True)
    ]
    return PathAccuracy(
        count,
        end_right / count,
        right.double() / count,
        right.double() / (end_right or math.nan),
        torch.tensor(errors, dtype=torch.float64),
        loss / count,
    )


def _stacked(maps: Any) -> tuple[Tensor, Tensor]:
    """Weights (k, q, p) and biases (k, q) as they are."""
    found = [_dense(maps[i]) for i in range(len(maps))]
    if not found:
        raise ValueError("maps must hold at least one map")
    shapes = {tuple(w.shape) for w, _ in found}
    if len(shapes) > 1:
        raise ShapeError(f"maps must be of one shape (q, p); got {' and '.join(map(str, sorted(shapes)))}")
    weights = torch.stack([w.detach() for w, _ in found])
    biases = torch.stack([w.new_zeros(len(w)) if b is None else b.detach() for w, b in found])
    return weights, biases


def _dense(one: Any) -> tuple[Tensor, Tensor | None]:
    return (one.up @ one.down if isinstance(one, LowRankStitch) else one.weight), one.bias


def _hits_and_losses(
    tail: Tail, x: Tensor, weights: Tensor, biases: Tensor, inputs: Any, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """(n, k) which samples each map gets right, and (k,) float64 the sums of its cross-entropies."""
    k, q, p = weights.shape
    channels = x.shape[1 if x.ndim == 4 else -1]
    if channels != p:
        raise ShapeError(f"maps must take the {channels} channels of the front's layer; they are {(q, p)}")
    z = stitched([(x, weights.to(x).reshape(k * q, p), biases.to(x).reshape(-1), k)])
    given = stand_in(inputs, len(z)) if tail.is_cut else repeated(inputs, k)
    logits = logits_of(tail(z, given)).unflatten(0, (len(x), k))
    finite = logits.isfinite().all(-1)
    hits = (logits.argmax(-1) == labels[:, None]) & finite
    known = torch.where(finite[..., None], logits, 0.0).double().transpose(1, 2)
    losses = F.cross_entropy(known, labels[:, None].expand(-1, k), reduction="none")
    return hits, torch.where(finite, losses, torch.inf).sum(0)
