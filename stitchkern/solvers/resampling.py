"""Confidence intervals and choices from per-block moments: never another pass over the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.linear import check_rank, least_squares
from stitchkern.solvers.reduced_rank import reduced_rank_path
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.moments import Moments

_SHIFTED = (
    "Resamples repeat what they hold, which moves what is measured on the data that were fitted (R² above all), and "
    "what looks at pairs of samples: use another statistic, such as cka or procrustes(s).distance, more rows per "
    "feature, or sk.confidence_interval, which subsamples"
)
METHODS = ("percentile", "basic", "bca")
#: bytes of resampled covariances that exist at a time
_MEMORY = 256 << 20


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval.

    Attributes:
        value: of all blocks together.
        low, high: ends of the interval, in the shape of ``value``.
        standard_error: standard deviation of the resampled values, of subsamples scaled to that of all the data.
        samples: (resamples, …) the values themselves; of subsamples those of half of the data.
        confidence, method: as asked for.
        target: what the interval is for: "population", what infinitely many samples would give, which may leave out the
            value of an index that is biased at n samples, as biased CKA is; or "samples", what n others would give.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    standard_error: Tensor
    samples: Tensor = field(repr=False)
    confidence: float
    method: str
    target: str = "population"


def bootstrap(
    blocks: Sequence[Moments] | Statistics,
    statistic: Callable[[Statistics], Tensor | float],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    method: str = "percentile",
    seed: int = 0,
) -> Interval:
    r"""Confidence interval of any statistic of second moments, by resampling blocks of the data.

    (Of an index of two sides, from features: :func:`stitchkern.confidence_interval`.)

    Each resample draws as many blocks as there are, with replacement, and puts their statistics together exactly
    (:meth:`Statistics.combine`): a sum of covariances, not another pass. Blocks should be independent of each other:
    batches of different images, not positions of one image. Below ten blocks there are few distinct resamples. A
    resample holds about 63 % of the blocks, some of them several times: what is measured on the data that were fitted,
    as R² is, comes out higher there, visibly so where p is not small beside the rows.

    Args:
        blocks: moments of each block (at least two, all with weight), or :class:`Statistics` with blocks as the last
            batch dimension.
        statistic: takes :class:`Statistics` with leading dimensions (resamples, …), gives a tensor (resamples, …):
            ``sk.cka``, ``lambda s: sk.procrustes(s).distance``, ``lambda s: sk.least_squares(s, rank=8).weight``.
        confidence: of the interval, 0 … 1.
        method: ``"percentile"`` (quantiles of the resamples), ``"basic"`` (reflected at the value), or ``"bca"``
            (bias-corrected and accelerated, Efron 1987, acceleration from leaving out each block).
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: fewer than two blocks or resamples, confidence outside (0, 1), unknown method.
        StatisticsError: a resample has no weight, or (bca) all resamples lie on one side of the value.
    """
    stats = Statistics.of(blocks)
    if not stats.batch or stats.batch[-1] < 2:
        raise ValueError("blocks must hold at least two sets of moments, one per batch")
    if method not in METHODS:
        raise ValueError(f"method must be percentile, basic or bca; got {method!r}")
    check_resamples(resamples, confidence)
    b, device = stats.batch[-1], stats.device

    def over(weights: Tensor) -> Tensor:
        """The statistic for each row of multiplicities, a bounded number at a time; (rows, …)."""
        each = 8 * (stats.p + stats.q) ** 2 * max(1, stats.batch[:-1].numel())
        step = max(1, _MEMORY // each)
        found = []
        for part in weights.to(device).split(step):
            combined = stats.combine(part)
            if len(stats.batch) > 1:  # resamples first, for the statistic and in the result
                order = (len(stats.batch) - 1, *range(len(stats.batch) - 1))
                combined = Statistics(
                    **{k: t.permute(*order, *range(len(order), t.ndim)) for k, t in vars(combined).items()}
                )
            value = statistic(combined)
            if not isinstance(value, Tensor | int | float):
                raise TypeError(
                    f"statistic must give a number per resample, as least_squares(s).r2 is; got {type(value).__name__}"
                )
            found.append(torch.as_tensor(value, dtype=torch.float64, device=device))
            if found[-1].ndim == 0 or len(found[-1]) != len(part):
                raise ValueError(
                    f"statistic must give one value per resample, ({len(part)}, …); got {tuple(found[-1].shape)}"
                )
        return torch.cat(found)

    draws = torch.randint(0, b, (resamples, b), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, b, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws).double())
    value = over(torch.ones(1, b, dtype=torch.float64))[0]
    samples = over(counts)
    left_out = over(1 - torch.eye(b, dtype=torch.float64)) if method == "bca" else None
    return interval(value, samples, confidence, method, left_out)


def check_resamples(resamples: int, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2; got {resamples}")


def interval(
    value: Tensor, samples: Tensor, confidence: float, method: str, left_out: Tensor | None = None
) -> Interval:
    """The interval of a value (…) from those of resamples (r, …), and, for bca, of leaving one block out (b, …)."""
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64, device=value.device)
    if left_out is not None:
        low, high = _bca(value, samples, left_out, tails)
    else:
        low, high = (quantile(samples, tail.expand_as(value)) for tail in tails)
        if method == "basic":
            low, high = 2 * value - high, 2 * value - low
        if bool(((value < low) | (value > high)).double().mean() > 0.1):
            warnings.warn(f"the value lies outside its own interval. {_SHIFTED}", stacklevel=3)
    return Interval(value, low, high, samples.std(0), samples, confidence, method)


def quantile(samples: Tensor, at: Tensor) -> Tensor:
    """Linear between order statistics, another ``at`` for each value. torch.quantile has a size limit."""
    ordered = samples.sort(0).values
    place = at * (len(samples) - 1)
    below = place.floor().clamp(0, len(samples) - 2).long()
    low, high = (ordered.gather(0, i[None])[0] for i in (below, below + 1))
    return low + (place - below) * (high - low)


def _bca(value: Tensor, samples: Tensor, left_out: Tensor, tails: Tensor) -> tuple[Tensor, Tensor]:
    below = (samples < value).double().mean(0) + (samples == value).double().mean(0) / 2
    if bool(((below <= 0) | (below >= 1)).any()):
        raise StatisticsError(f"bca is undefined: all resamples lie on one side of the value. {_SHIFTED}")
    bias = torch.special.ndtri(below)
    away = left_out.mean(0) - left_out
    spread = away.square().sum(0).pow(1.5)
    skew = torch.where(spread > 0, away.pow(3).sum(0) / torch.where(spread > 0, 6 * spread, 1.0), 0.0)
    ends = []
    for tail in torch.special.ndtri(tails):
        shifted = bias + tail
        ends.append(quantile(samples, torch.special.ndtr(bias + shifted / (1 - skew * shifted))))
    return ends[0], ends[1]


@dataclass(frozen=True, repr=False)
class CrossValidation:
    """Held-out error for each ridge and rank, and the choice.

    Attributes:
        ridges: (r,). ranks: (k,).
        error: (r, k) held-out E‖M x + b − y‖², averaged over folds by their weight.
        standard_error: (r, k) of ``error``, from the spread over folds.
        r2: (r, k) 1 − error / held-out E‖y − ȳ_train‖².
        fold_error: (folds, r, k).
        ridge, rank: the pair that was chosen.
    """

    ridges: Tensor
    ranks: Tensor
    error: Tensor
    standard_error: Tensor
    r2: Tensor
    fold_error: Tensor
    ridge: float
    rank: int
    _whole: Statistics

    def fit(self) -> AffineMap:
        """The map of all folds together with the ridge and rank that were chosen."""
        most = min(self._whole.p, self._whole.q)
        return least_squares(self._whole, ridge=self.ridge, rank=self.rank if self.rank < most else None)

    def __repr__(self) -> str:
        return (
            f"CrossValidation(folds={len(self.fold_error)}, ridge={self.ridge:.3g}, rank={self.rank}, "
            f"r2={self.r2.max().item():.6g})"
        )


def cross_validate(
    folds: Sequence[Moments] | Statistics,
    *,
    ridges: Sequence[float] | Tensor = (0.0,),
    ranks: Sequence[int] | None = None,
    rule: str = "best",
) -> CrossValidation:
    r"""Choose ridge and rank by their error on held-out folds, from the folds' moments alone.

    For each fold the others together give the maps (a sum of statistics), and with d = M x̄ + b − ȳ of the fold

    .. math:: E_f\|M x + b − y\|^2 = \operatorname{tr} S_{yy} - 2\operatorname{tr} M S_{xy}
              + \operatorname{tr} M S_{xx} M^\top + \|d\|^2

    its error, for all ranks at once: M_k = V_k V_kᵀ M adds one direction of V at a time.

    Args:
        folds: moments of each fold (at least two).
        ridges: non-negative, in squared units of x.
        ranks: 1 … min(p, q); by default the full rank alone.
        rule: ``"best"``: the least error; ``"one-standard-error"``: the smallest rank, and for it the largest ridge,
            within one standard error of the best.

    Raises:
        ValueError: fewer than two folds, no or a negative ridge, a rank outside 1 … min(p, q), unknown rule.
        StatisticsError: a fold has fewer than two samples, or no weight.
    """
    stats = Statistics.of(folds)
    if len(stats.batch) != 1 or stats.batch[0] < 2:
        raise ValueError("folds must hold at least two sets of moments, one per fold")
    if rule not in ("best", "one-standard-error"):
        raise ValueError(f"rule must be best or one-standard-error; got {rule!r}")
    count, most = stats.batch[0], min(stats.p, stats.q)
    grid = torch.as_tensor(ridges, dtype=torch.float64, device=stats.device).reshape(-1)
    if not len(grid):
        raise ValueError("ridges must hold at least one number")
    listed = [most] if ranks is None else [check_rank(k, stats.p, stats.q) for k in ranks]
    if not listed:
        raise ValueError("ranks must hold at least one number")
    train = stats.combine(1 - torch.eye(count, dtype=torch.float64, device=stats.device))
    # the folds about the means that their maps were fitted with
    dx, dy = stats.mean_x - train.mean_x, stats.mean_y - train.mean_y
    held = Statistics(
        stats.cov_xx + dx[..., :, None] * dx[..., None, :],
        stats.cov_xy + dx[..., :, None] * dy[..., None, :],
        stats.cov_yy + dy[..., :, None] * dy[..., None, :],
        *(getattr(stats, name) for name in ("mean_x", "mean_y", "count", "epsilon")),
    )
    total = held.cov_yy.diagonal(dim1=-2, dim2=-1).sum(-1)
    errors = []
    for ridge in grid.tolist():
        if listed == [most]:
            m = least_squares(train, ridge=ridge).weight
            gain = 2 * (m.mT * held.cov_xy).sum((-2, -1)) - ((m @ held.cov_xx) * m).sum((-2, -1))
            errors.append((total - gain)[:, None])
            continue
        path = reduced_rank_path(train, ridge=ridge)
        # M_k = Σ_{i≤k} aᵢ bᵢᵀ: the gain of all leading blocks of two small matrices
        cross = (path.right @ held.cov_xy @ path.left).diagonal(dim1=-2, dim2=-1).cumsum(-1)
        square = (path.right @ held.cov_xx @ path.right.mT) * (path.left.mT @ path.left)
        square = square.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
        errors.append((total[:, None] - 2 * cross + square)[:, [k - 1 for k in listed]])
    fold_error = torch.stack(errors, 1)  # (folds, r, k)
    share = (stats.count / stats.count.sum())[:, None, None]
    error = (share * fold_error).sum(0)
    spread = (share * (fold_error - error).square()).sum(0) / (count - 1)
    standard_error = spread.sqrt()

    best = int(error.argmin())
    row, column = divmod(best, len(listed))
    if rule == "one-standard-error":
        close = error <= error[row, column] + standard_error[row, column]
        candidates = [(listed[j], -grid[i].item(), i, j) for i, j in close.nonzero().tolist()]
        *_, row, column = min(candidates)
    spread_y = (share[:, 0, 0] * total).sum()
    return CrossValidation(
        ridges=grid,
        ranks=torch.tensor(listed),
        error=error,
        standard_error=standard_error,
        r2=1 - error / spread_y if spread_y > 0 else torch.ones_like(error),
        fold_error=fold_error,
        ridge=grid[row].item(),
        rank=listed[column],
        _whole=stats.combine(stats.count.new_ones(1, count))[0],
    )
