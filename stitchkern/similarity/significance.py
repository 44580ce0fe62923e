"""Is an index larger than for unrelated samples? Permutation tests of any index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stitchkern.errors import ShapeError, StatisticsError
from stitchkern.similarity.features import is_features
from stitchkern.similarity.measure import Measure
from stitchkern.similarity.unpermuted import road_of

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features
    from stitchkern.similarity.measure import Index

    Groups: TypeAlias = "Tensor | np.ndarray | Sequence[Any] | None"

ALTERNATIVES = ("greater", "less", "two-sided")
#: how far apart two values are that count as equal, of the largest
_TIE = 2.0**-30


@dataclass(frozen=True, repr=False)
class PermutationTest:
    """An index beside its values for permuted samples. Numbers, or tensors (…) where the index gives several.

    Attributes:
        value: of the samples as they are.
        p_value: (1 + #{null at least as extreme as value}) / (1 + permutations), never 0.
        null: (permutations, …), float64.
        alternative: which values are extreme: "greater", "less" or "two-sided".
        road: how the null was found: "products", "pairs" or "neighbours" from what permuting does not change, or
            "index", by calling the index.
        best: the value for equal sides, where it is known.
    """

    value: Any
    p_value: Any
    null: Tensor = field(repr=False)
    alternative: str
    road: str
    best: float | None = None

    @property
    def null_mean(self) -> Any:
        """What the index gives for unrelated samples of these sides."""
        return _plain(self.null.mean(0))

    @property
    def null_std(self) -> Any:
        """The standard deviation of the null."""
        return _plain(self.null.std(0))

    @property
    def z_score(self) -> Any:
        """(value − mean) / standard deviation of the null.

        Raises:
            StatisticsError: the index is the same for all permutations.
        """
        spread = self.null.amax(0) - self.null.amin(0)
        if bool((spread <= _TIE * self.null.abs().amax(0)).any()):
            raise StatisticsError("the z-score is undefined: the index is the same for all permutations")
        return _plain((torch.as_tensor(self.value) - self.null.mean(0)) / self.null.std(0))

    def calibrated(self, *, level: float = 0.05, best: float | None = None) -> Any:
        r"""The value on a scale from chance to equal sides, 0 … 1 (Gröger, Wen and Brbić 2026).

        .. math:: \max\Big(\frac{s - \tau}{s_\text{best} - \tau},\ 0\Big)

        with τ the critical value at this level: the ⌈(1 − level)(K + 1)⌉-th smallest of the value and its K null values
        (of distances the same from above). 0 unless the test rejects; comparable between sides of different width,
        whose nulls lie at different heights.

        Args:
            level: of the test.
            best: the value for equal sides; by default 1 for similarities and 0 for distances of this package.

        Raises:
            ValueError: level outside 0 … 1; ``best`` is not known, or no better than the null; a two-sided test.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1; got {level}")
        if self.alternative == "two-sided":
            raise ValueError("a two-sided test has no best value; use alternative='greater' or 'less'")
        best = self.best if best is None else best
        if best is None:
            raise ValueError("best must be given: the value of the index for equal sides is not known")
        sign = 1.0 if self.alternative == "greater" else -1.0
        value = torch.as_tensor(self.value, dtype=torch.float64)
        all_values = sign * torch.cat([value[None], self.null])
        # (1 − level)(K + 1) may be a whole number but for rounding
        place = int(np.ceil((1 - level) * len(all_values) * (1 - 2.0**-48)))
        critical = all_values.sort(0).values[max(place, 1) - 1]
        room = sign * best - critical
        if not bool((room > 0).all()):
            raise ValueError(f"best must be better than chance ({_plain(sign * critical)}); got {best}")
        return _plain(((sign * value - critical) / room).clamp(min=0.0))

    def __repr__(self) -> str:
        if self.null.ndim > 1:
            return f"PermutationTest(values={tuple(self.null.shape[1:])}, permutations={len(self.null)})"
        return (
            f"PermutationTest(value={self.value:.6g}, p_value={self.p_value:.4g}, null={self.null_mean:.6g} ± "
            f"{self.null_std:.2g}, permutations={len(self.null)}, alternative={self.alternative!r}, road={self.road!r})"
        )


def permutation_test(
    index: Index,
    x: Features,
    y: Features,
    *,
    permutations: int = 1000,
    alternative: str | None = None,
    groups: Groups = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PermutationTest:
    r"""Does any index find x (n, …) and y (n, …) more alike than if their samples had nothing to do with each other?

    .. math:: p = \frac{1 + \#\{k : s(x, y_{\pi_k}) \ge s(x, y)\}}{1 + K}

    over K random permutations π of y's samples, which leave each side as it is and break the correspondence; the level
    is exact for exchangeable samples (Phipson and Smyth 2010). Values within a relative 2^-30 are ties, which count
    as at least as extreme.

    Samples that depend on each other, such as positions of one image or frames of one film, are not exchangeable: give
    their ``groups``, which then move as a whole, each onto one of the same size, samples in order. (Or give an index of
    (n, positions, channels) tensors: what is permuted is the first dimension.)

    What permuting does not change is found once, for the indices of this package given by name, as themselves or as
    ``functools.partial``; ``road`` says how.

    - "products": CCA (its mean), PWCCA, SVCCA, Procrustes, shape and Bures distances, and (*) R², GULP, linear CKA,
      HSIC and RSM norm: n·r·s multiplications for sides of ranks r and s, then singular values of r × s but for (*).
    - "pairs": RSA, distance correlation, CKA and HSIC with other kernels (σ of y that of y as it was), and (*) where
      that is quicker: both n × n matrices are kept in float64, n²/2 entries gathered. Up to 1 GiB, n = 8,192 (RSA and
      distance correlation less).
    - "neighbours": mutual k-NN, Jaccard and CKNNA look n·k pairs up, unless ties leave neighbours open.
    - "index": anything else calls the index once per permutation: other options, several bandwidths, more samples,
      callables of your own.

    The first three give what calling the index gives, in float64: equal to rounding, or to 1e-6 where the index takes
    float32 products.

    Args:
        index: a public name ("cka"), a function (``sk.cka``), ``functools.partial(sk.mutual_knn, k=5)``, or any
            callable (x, y) -> number or tensor, such as ``lambda x, y: sk.cca(x, y).r2``. A tensor has a null for each
            of its values, over the same permutations: their maximum, say, over layers that were searched, is an index
            as well.
        x, y: torch or numpy, samples first.
        permutations: K. The smallest p-value is 1 / (1 + K).
        alternative: "greater", "less", or "two-sided" (twice the smaller one). By default "less" for distances of this
            package, "greater" otherwise.
        groups: (n,) labels.
        seed: of the permutations; the same seed gives the same ones, whatever the index.
        progress: called as ``progress(done, total)``.

    Raises:
        ValueError: fewer than one permutation, an unknown index or alternative; no two groups are of one size.
        ShapeError: x, y and groups do not have the same number of samples.
        StatisticsError: the index is not finite. Others as the index.
    """
    measure = Measure.of(index)
    if alternative is None:
        alternative = "less" if measure.is_distance else "greater"
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative must be greater, less or two-sided; got {alternative!r}")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1; got {permutations}")
    n = check_samples(x, y)
    units = _exchangeable(groups, n)
    value = measure(x, y)
    found = road_of(measure, x, y, value)
    generator = torch.Generator().manual_seed(seed)
    null: list[Tensor] = []
    step = found[0].step if found else 1
    while (done := sum(map(len, null))) < permutations:
        order = torch.stack([_permuted(units, n, generator) for _ in range(min(step, permutations - done))])
        if found:
            device = y.device if isinstance(y, Tensor) else "cpu"
            null.append(found[0](order.to(device)).double().cpu())
        else:
            null.append(measure(x, take(y, order[0]))[None])
        if progress is not None:
            progress(done + len(order), permutations)
    samples = torch.cat(null)
    if not bool(samples.isfinite().all()):
        raise StatisticsError("the index of permuted samples is not finite")
    return PermutationTest(
        _plain(value),
        _plain(_p_value(found[1] if found else value, samples, alternative)),
        samples,
        alternative,
        found[0].name if found else "index",
        measure.best,
    )


def check_samples(x: Any, y: Any) -> int:
    """How many samples both sides have."""
    for name, t in (("x", x), ("y", y)):
        if not is_features(t):
            raise TypeError(f"{name} must be a torch tensor or a numpy array; got {type(t).__name__}")
        if t.ndim < 1 or len(t) < 2:
            raise ShapeError(f"{name} must hold at least two samples; got {tuple(t.shape)}")
    if len(x) != len(y):
        raise ShapeError(f"x and y must hold the same samples; got {len(x)} and {len(y)}")
    return len(x)


def take(t: Any, rows: Tensor) -> Any:
    """These samples of a tensor or an array."""
    return t[rows.to(t.device)] if isinstance(t, Tensor) else t[rows.numpy()]


def groups_of(groups: Groups, n: int) -> list[Tensor]:
    """The samples of each group, in order."""
    if isinstance(groups, Tensor):
        groups = groups.cpu().numpy()
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ShapeError(f"groups must be ({n},), a label for each sample; got {labels.shape}")
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return list(torch.from_numpy(inverse.reshape(-1)).argsort(stable=True).split(counts.tolist()))


def _exchangeable(groups: Groups, n: int) -> list[Tensor]:
    """Sets of units (units, samples of one) that may take each other's place."""
    if groups is None:
        return [torch.arange(n)[:, None]]
    by_size: dict[int, list[Tensor]] = {}
    for group in groups_of(groups, n):
        by_size.setdefault(len(group), []).append(group)
    if max(map(len, by_size.values())) == 1:
        raise ValueError("groups leave nothing to permute: no two of them have the same number of samples")
    return [torch.stack(members) for members in by_size.values()]


def _permuted(units: list[Tensor], n: int, generator: torch.Generator) -> Tensor:
    order = torch.empty(n, dtype=torch.long)
    for members in units:
        order[members] = members[torch.randperm(len(members), generator=generator)]
    return order


def _p_value(value: Tensor, null: Tensor, alternative: str) -> Tensor:
    tie = _TIE * torch.maximum(value.abs(), null.abs().amax(0))
    greater, less = (
        (1 + extreme.sum(0).double()) / (1 + len(null)) for extreme in (null >= value - tie, null <= value + tie)
    )
    if alternative == "two-sided":
        return (2 * torch.minimum(greater, less)).clamp(max=1.0)
    return greater if alternative == "greater" else less


def _plain(value: Tensor) -> Any:
    return value.item() if value.ndim == 0 else value
