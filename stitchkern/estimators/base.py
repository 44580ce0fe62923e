"""What all estimators share: moments in, an affine map out, numpy or torch around them."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from stitchkern import ops
from stitchkern.errors import StatisticsError
from stitchkern.estimators.rows import Rows, read_rows, read_x, tensor
from stitchkern.moments import Moments
from stitchkern.qr import StreamingQR
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.linear import least_squares
from stitchkern.solvers.triangular import least_squares_qr
from stitchkern.statistics import Statistics

SOLVERS = ("auto", "moments", "qr")
#: estimated relative error of the weights that "auto" accepts from moments whose products were float64, or float32
_TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@dataclass
class Sums:
    """All that is kept of the rows so far.

    Attributes:
        folds: moments of each fold; one where there are no folds.
        factor: of all rows, where that road is taken.
        roundoff: of the least accurate type that x came in.
        in_pieces: whether rows came by `partial_fit`.
    """

    folds: list[Moments]
    factor: StreamingQR | None
    roundoff: float
    in_pieces: bool = False

    def merge(self, other: Sums) -> None:
        if len(other.folds) != len(self.folds):
            raise ValueError(
                f"cannot continue {len(self.folds)} folds with {len(other.folds)}: call fit after changing cv or rank"
            )
        for mine, theirs in zip(self.folds, other.folds, strict=True):
            mine.merge(theirs)
        if self.factor is not None:
            assert other.factor is not None
            self.factor.merge(other.factor)
        self.roundoff = max(self.roundoff, other.roundoff)

    def total(self) -> Moments:
        if len(self.folds) == 1:
            return self.folds[0]
        whole = copy.deepcopy(self.folds[0])
        for fold in self.folds[1:]:
            whole.merge(fold)
        return whole


class MomentsRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """ŷ = X coef_ᵀ + intercept_ from moments. Subclasses say which map (`_map`) and which folds it is chosen on."""

    fit_intercept: bool
    precision: str

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to all rows of X and y.

        Args:
            X: (n, p) numpy array, data frame or torch tensor. Anything but float64 and float32 is converted to float64;
                those are read where they are, tensors also on a GPU.
            y: (n,) or (n, q).
            sample_weight: (n,), non-negative: what a row's squared error counts.

        Returns:
            The estimator itself.

        Raises:
            ValueError: shapes that do not fit, NaN or Inf, a negative weight, a parameter outside its contract.
        """
        self._check_parameters()
        rows = read_rows(self, X, y, sample_weight, reset=True, minimum=self._least_rows())
        sums = self._gather(rows, self._split(rows, None), factor=getattr(self, "solver", None) == "qr")
        self._finish(sums, rows, once=True)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Add rows to those that were fitted before, and fit to all of them.

        The first call sets the numbers of features and targets, as `fit` does; after `fit` this continues from what it
        fitted. Earlier rows are gone: ``solver="auto"`` cannot look at them again and stays on the road that `fit`
        took, or the first call where that held more rows than features; otherwise on moments. For features too
        collinear for their moments start with ``solver="qr"``.

        Args, errors: as `fit`. Nothing was added where an error names the data.
        """
        self._check_parameters()
        before: Sums | None = getattr(self, "_sums", None)
        rows = read_rows(self, X, y, sample_weight, reset=before is None)
        if before is None:
            sums = self._gather(rows, self._split(rows, 0), factor=getattr(self, "solver", None) == "qr")
        else:
            q, flat = before.folds[0].q, self._flat
            if rows.y.shape[1] != q or rows.flat != flat:
                raise ValueError(f"y must be {'(n,)' if flat else f'(n, {q})'} as before; got {tuple(y.shape)}")
            if getattr(self, "solver", None) == "qr" and before.factor is None:
                raise ValueError("solver='qr' cannot continue from moments alone: call fit after changing it")
            rows_before = sum(fold.rows for fold in before.folds)
            if getattr(self, "solver", None) == "moments":
                before = replace(before, factor=None)
            added = self._gather(rows, self._split(rows, rows_before), factor=before.factor is not None)
            sums = copy.deepcopy(before)  # an error below leaves everything as it was
            sums.merge(added)
        sums.in_pieces = True
        self._finish(sums, rows, once=before is None and len(rows) > rows.x.shape[1])
        return self

    def predict(self, X: Any) -> Any:
        """X coef_ᵀ + intercept_, (n,) or (n, q) as y was: numpy for numpy, in X's floating type; torch for torch."""
        check_is_fitted(self, "map_")
        x = read_x(self, X)
        if isinstance(x, Tensor):
            out = self.map_(x)
            return out[:, 0] if self._flat else out
        found = self.map_(tensor(x)).numpy()
        return found[:, 0] if self._flat else found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R² = 1 − Σ w (y − ŷ)² / Σ w (y − ȳ)², averaged over targets; for numpy and torch alike."""
        if not isinstance(X, Tensor):
            return super().score(X, y, sample_weight)
        with torch.no_grad():
            found = self.predict(X).double()
            y = torch.as_tensor(y, device=found.device).double().reshape(found.shape)
            w = torch.ones(len(y), dtype=torch.float64, device=y.device)
            if sample_weight is not None:
                w = torch.as_tensor(sample_weight, device=y.device).double()
            found, y, w = found.reshape(len(y), -1), y.reshape(len(y), -1), w[:, None]
            left = (w * (y - found).square()).sum(0)
            spread = (w * (y - (w * y).sum(0) / w.sum()).square()).sum(0)
        return float(r2(left, spread).mean())

    # ------------------------------------------------------------------------------------------ for subclasses

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        """The map; ``once``: ``rows`` are all there were, and may be read again to choose the road."""
        raise NotImplementedError

    def _split(self, rows: Rows, before: int | None) -> list[Rows]:
        """The rows of each fold: all in `fit` (before is None), or those after ``before`` others in `partial_fit`."""
        return [rows]

    def _least_rows(self) -> int:
        return 1

    def _gather(self, rows: Rows, folds: Sequence[Rows], *, factor: bool) -> Sums:
        p, q = rows.x.shape[1], rows.y.shape[1]

        def moments() -> Moments:
            device = rows.x.device if isinstance(rows.x, Tensor) else "cpu"
            return Moments(p, q, precision=self.precision, device=device)

        return Sums(
            [feed(moments(), part) for part in folds],
            feed(StreamingQR(p, q), rows) if factor else None,
            rows.unit_roundoff,
        )

    def _finish(self, sums: Sums, rows: Rows, *, once: bool) -> None:
        self._flat = rows.flat
        total = sums.total()
        fit = self._map(sums, total, rows, once)
        self._sums, self.moments_, self.map_ = sums, total, fit
        self._describe(fit, rows)

    def _describe(self, fit: AffineMap, rows: Rows) -> None:
        coef = present(fit.weight, rows)
        self.coef_ = coef[0] if rows.flat else coef
        bias = present(fit.bias, rows)
        self.intercept_ = (bias[0] if rows.flat else bias) if self.fit_intercept else 0.0

    def _statistics(self, m: Moments) -> Statistics:
        """About the mean, or about zero without an intercept."""
        stats = statistics(m)
        return stats if self.fit_intercept else stats.about_zero()

    def _solve(
        self, sums: Sums, total: Moments, rows: Rows, once: bool, *, ridge: float = 0.0, rank: int | None = None
    ) -> AffineMap:
        """Least squares on the road that ``solver`` asks for, or that the conditioning needs."""
        stats = self._statistics(total)
        solver = self.solver
        if solver == "moments" or total.rows < 2:  # of one row there is no factor, and nothing to lose
            return least_squares(stats, ridge=ridge, rank=rank)
        if sums.factor is None:
            fit = least_squares(stats, ridge=ridge, rank=rank)
            lost = fit.dropped > int((stats.cov_xx.diagonal() == 0).sum())
            exact = total.epsilon <= 2.0**-53
            if not once or not (lost or fit.error > _TOLERANCE["float64" if exact else "float32"]):
                return fit
            sums.factor = feed(StreamingQR(total.p, total.q or 0), rows)
        factor = sums.factor if self.fit_intercept else sums.factor.about_zero()
        # what rounding x to its type did to each feature, whatever its mean
        rounding = sums.roundoff * mean_square(statistics(total)).sqrt()
        return least_squares_qr(factor, ridge=ridge, rank=rank, rounding=rounding)

    def _check_parameters(self) -> None:
        check_bool("fit_intercept", self.fit_intercept)
        check_choice("precision", self.precision, tuple(ops.PRECISIONS))
        if hasattr(self, "solver"):
            check_choice("solver", self.solver, SOLVERS)


def feed(taker: Any, rows: Rows) -> Any:
    for x, y, weight in rows.batches():
        taker.update(x, y, weight=weight)
    return taker


def statistics(m: Moments) -> Statistics:
    """`Statistics.of`, and of a single row its mean and no covariance."""
    if m.rows >= 2 or m.q is None:
        return Statistics.of(m)
    device = m.device
    if m.count <= 0:
        raise StatisticsError("no samples were added (or all had weight zero)")

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=device)

    scalars = (torch.tensor(v, dtype=torch.float64, device=device) for v in (m.count, m.epsilon))
    return Statistics(zeros(m.p, m.p), zeros(m.p, m.q), zeros(m.q, m.q), m.mean_x, m.mean_y, *scalars)


def mean_square(stats: Statistics) -> Tensor:
    """E[x²] (p,)."""
    return stats.cov_xx.diagonal() + stats.mean_x.square()


def r2(left: Tensor, spread: Tensor) -> Tensor:
    """1 − left/spread; for a constant target 1 where it was met and 0 where not, as scikit-learn defines it."""
    found = 1 - left / torch.where(spread > 0, spread, 1.0)
    return torch.where(spread > 0, found, torch.where(left > 0, 0.0, 1.0).to(found))


def present(t: Tensor, rows: Rows) -> Any:
    """A result in the kind and type of the data it was fitted to."""
    if rows.is_numpy:
        return t.cpu().numpy().astype(rows.x.dtype)
    return t.to(rows.x.device, torch.float64 if rows.x.dtype == torch.float64 else torch.float32)


# ------------------------------------------------------------------------------------------ parameters


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_number(name: str, value: Any, fits: Callable[[Any], bool], contract: str, kind: type = numbers.Real) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind) or not fits(value):
        raise ValueError(f"{name} must be {contract}; got {value!r}")


def check_cv_parameter(value: Any, none: str = "") -> None:
    """A number of folds, a splitter or an iterable of splits."""
    if not isinstance(value, numbers.Integral | str) and (hasattr(value, "split") or hasattr(value, "__iter__")):
        return
    check_number("cv", value, lambda k: k >= 2, f"{none}a number of folds (at least 2) or splits", numbers.Integral)


def dealt(rows: Rows, count: Any, before: int) -> list[Rows]:
    """Rows of `partial_fit` to folds, round robin; the first call needs one for each."""
    if not isinstance(count, numbers.Integral):
        raise ValueError(f"cv must be a number of folds in partial_fit; got {count!r}")
    count = int(count)
    if before == 0 and len(rows) < count:
        raise ValueError(f"the first call of partial_fit needs a row for each of {count} folds; got {len(rows)}")
    return rows.round_robin(count, before)
