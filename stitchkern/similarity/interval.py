"""How well does the sample determine an index? Confidence intervals of any index, from features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.similarity.measure import Measure
from stitchkern.similarity.significance import check_samples, groups_of, take
from stitchkern.solvers.resampling import METHODS, Interval, check_resamples, interval, quantile

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features
    from stitchkern.similarity.measure import Index
    from stitchkern.similarity.significance import Groups

TARGETS = ("population", "samples")
#: their neighbours are a share of the samples, so that they have another limit for every n
_OF_NEIGHBOURS = {"cknna", "cycle_knn", "jaccard", "mutual_knn", "rank_similarity", "second_order_cosine"}
#: a sum over pairs of samples, which grows with them
_SUMS = {"rsm_norm"}


def confidence_interval(
    index: Index,
    x: Features,
    y: Features,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    method: str | None = None,
    target: str | None = None,
    groups: Groups = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Interval:
    r"""Confidence interval of any index of x (n, …) and y (n, …), by resampling the samples of both together.

    ``"subsampling"`` draws half of the samples, m = ⌊n/2⌋, without replacement (Politis and Romano 1994; the random
    half-sampling of McCarthy 1969). What s of a half scatters about s of all is what s of all scatters about the truth,
    as long as an index errs by 1/√n, so that with the quantiles q of the halves

    .. math:: \Big[\,s - c\,(q_{1-\alpha/2} - o),\ s - c\,(q_{\alpha/2} - o)\,\Big],\qquad c = \sqrt{m/(n-m)} \approx 1

    Halves are also further off the truth in the mean, by about as much as s itself is if its bias goes as 1/n. Hence
    the two targets: with o = s the interval is for the ``"population"``, the value of infinitely many samples, and
    takes this bias out: CKA, CCA, R² and Procrustes similarity are too large by about (ranks / n). With o the mean of
    the halves it is for what n ``"samples"`` give on average; indices of k neighbours, with k fixed, have no other. An
    interval may reach beyond the index' own range; it is not clipped.

    ``"percentile"``, ``"basic"`` and ``"bca"`` draw n samples with replacement, as :func:`stitchkern.bootstrap` does
    with blocks (for the population; quicker than this for what moments can express, and for streams). Duplicates are
    each other's neighbours at distance 0, and terms that unbiased HSIC leaves out: of 90 % intervals of mutual k-NN or
    unbiased CKA (p = q = 20, n = 100) at most one in a hundred then holds the truth. They are for smooth functions of
    moments alone, "basic" before "percentile", which counts their bias twice.

    Where sides are unrelated an index may err by less than 1/√n, and the interval is too wide: ask
    :func:`stitchkern.permutation_test` about that. Ranks near n/2 leave nothing to learn from halves.

    Args:
        index: as :func:`stitchkern.permutation_test` takes it.
        x, y: torch or numpy, samples first.
        method: by default "subsampling"; for RSM norm, which grows with n, "basic".
        target: "population" or "samples" (of subsampling). By default "samples" for indices of neighbours.
        groups: (n,) labels of samples that depend on each other, such as positions of one image: drawn as a whole.
        seed: of the draws. progress: called as ``progress(done, total)``.

    Returns:
        :class:`stitchkern.Interval`, with tensors (…) as the index gives.

    Raises:
        ValueError: fewer than four samples or groups, or two resamples; confidence outside (0, 1); an unknown index,
            method or target.
        ShapeError: x, y and groups do not have the same number of samples.
        StatisticsError: the index is not finite, or not defined for a resample; (bca) all resamples lie on one side of
            the value. Others as the index.
    """
    measure = Measure.of(index)
    if method is None:
        method = "basic" if measure.name in _SUMS else "subsampling"
    if method not in ("subsampling", *METHODS):
        raise ValueError(f"method must be subsampling, {', '.join(METHODS)}; got {method!r}")
    if target not in (None, *TARGETS):
        raise ValueError(f"target must be population or samples; got {target!r}")
    if target is None:
        target = "samples" if measure.name in _OF_NEIGHBOURS and method == "subsampling" else "population"
    if target == "samples" and method != "subsampling":
        raise ValueError(f"method {method!r} is for the population; use subsampling")
    check_resamples(resamples, confidence)
    n = check_samples(x, y)
    units = list(torch.arange(n)[:, None]) if groups is None else groups_of(groups, n)
    if (count := len(units)) < 4:
        raise ValueError(f"there must be at least four {'samples' if groups is None else 'groups'}; got {count}")

    def over(draws: Iterator[Tensor], total: int) -> Tensor:
        found = []
        for draw in draws:
            rows = torch.cat([units[i] for i in draw.tolist()]) if groups is not None else draw
            found.append(_resampled(measure, take(x, rows), take(y, rows), n))
            if progress is not None and total:
                progress(len(found), total)
        return torch.stack(found)

    value = measure(x, y)
    generator = torch.Generator().manual_seed(seed)
    if method == "subsampling":
        m = count // 2
        halves = over((torch.randperm(count, generator=generator)[:m] for _ in range(resamples)), resamples)
        return _of_halves(value, halves, (m / (count - m)) ** 0.5, confidence, target)
    samples = over((torch.randint(0, count, (count,), generator=generator) for _ in range(resamples)), resamples)
    left_out = None
    if method == "bca":
        everything = torch.arange(count)
        left_out = over((everything[everything != i] for i in range(count)), 0)
    return interval(value, samples, confidence, method, left_out)


def _of_halves(value: Tensor, halves: Tensor, scale: float, confidence: float, target: str) -> Interval:
    origin = value if target == "population" else halves.mean(0)
    tail = torch.full_like(value, (1 - confidence) / 2)
    low, high = (value - scale * (quantile(halves, at) - origin) for at in (1 - tail, tail))
    return Interval(value, low, high, scale * halves.std(0), halves, confidence, "subsampling", target)


def _resampled(measure: Measure, x: Any, y: Any, n: int) -> Tensor:
    try:
        return measure(x, y)
    except ValueError as error:  # of which all of this package's are
        raise StatisticsError(
            f"the index is not defined for a resample of {len(x)} of the {n} samples: {error}"
        ) from error
