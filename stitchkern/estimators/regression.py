"""Least squares, ridge, reduced rank and Procrustes as estimators."""

from __future__ import annotations

import math
import numbers
from typing import Any

from stitchkern.estimators.base import (
    MomentsRegressor,
    Sums,
    check_bool,
    check_cv_parameter,
    check_number,
    dealt,
    present,
)
from stitchkern.estimators.rows import Rows
from stitchkern.moments import Moments
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.orthogonal import ProcrustesMap, procrustes
from stitchkern.solvers.resampling import cross_validate
from stitchkern.statistics import Statistics


class LinearRegression(MomentsRegressor):
    r"""Ordinary least squares: scikit-learn's ``LinearRegression`` from moments.

    .. math:: \min_{M, b} \sum_i w_i \|M x_i + b - y_i\|^2

    of minimum norm ‖M‖_F where it is not unique. A direction of x counts where it moves by more than the rounding of
    the numbers that x came in; what is in the way of another unit does not matter.

    Args:
        fit_intercept: False fits b = 0 about the origin.
        solver: ``"moments"``: one pass, right for float64 up to κ(x) of 1e5; ``"qr"``: a streaming QR factorisation,
            up to 1e10 and four times the multiplications; ``"auto"``: moments, and in `fit` a second pass with QR where
            they lose directions or the estimated error of the map exceeds 1e-10 (1e-5 for products in float32).
        precision: of the products of float32 data, as for :class:`stitchkern.Moments`.

    Attributes:
        coef_: M (q, p), or (p,) for y (n,). intercept_: b (q,) or a number; 0.0 without an intercept.
        rank_: of x about its mean (about zero without an intercept).
        n_features_in_, feature_names_in_: as in scikit-learn.
        map_: the :class:`stitchkern.AffineMap`, with residual, R² and an estimate of its error; float64.
        moments_: the :class:`stitchkern.Moments` of all rows.
    """

    def __init__(self, *, fit_intercept: bool = True, solver: str = "auto", precision: str = "highest") -> None:
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.precision = precision

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        fit = self._solve(sums, total, rows, once)
        self.rank_ = total.p - fit.dropped
        return fit


class Ridge(MomentsRegressor):
    r"""Ridge regression: scikit-learn's ``Ridge`` from moments.

    .. math:: \min_{M, b} \sum_i w_i \|M x_i + b - y_i\|^2 + \alpha \|M\|_F^2

    ``alpha`` stands beside a sum; stitchkern's solvers average, with ridge = alpha / Σ w.

    Args:
        alpha: non-negative, one for all targets. Others as for :class:`LinearRegression`.

    Attributes: as of :class:`LinearRegression`, without ``rank_``.
    """

    def __init__(
        self, alpha: float = 1.0, *, fit_intercept: bool = True, solver: str = "auto", precision: str = "highest"
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.precision = precision

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        return self._solve(sums, total, rows, once, ridge=self.alpha / total.count)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("alpha", self.alpha, lambda a: 0 <= a < math.inf, "a non-negative number")


class ReducedRankRegression(MomentsRegressor):
    r"""Reduced-rank regression (Izenman 1975): the best map of rank at most k.

    .. math:: \min_{\mathrm{rank} M \le k} \sum_i w_i \|M x_i + b - y_i\|^2 + \alpha \|M\|_F^2

    See :func:`stitchkern.reduced_rank_path`; scikit-learn has no counterpart.

    Args:
        rank: 1 … min(p, q), or ``"cv"``: the one of least squared error on held-out folds
            (:func:`stitchkern.cross_validate`, each fold's map with the penalty of a training set of mean size).
        alpha: non-negative.
        cv: number of folds for ``rank="cv"``, at least 2: in order of the rows in `fit`, round robin in `partial_fit`,
            whose first call needs a row for each. In `fit` also splits that hold out every row once.
        fit_intercept, solver, precision: as for :class:`LinearRegression`. Folds are always solved from moments.

    Attributes:
        coef_, intercept_, n_features_in_, feature_names_in_, map_, moments_: as of :class:`LinearRegression`;
            ``map_.factors`` are the two factors of M.
        rank_: the rank of M.
        cv_error_: (min(p, q),) held-out E‖M x + b − y‖² by rank; only for ``rank="cv"`` and min(p, q) > 1.
    """

    def __init__(
        self,
        rank: int | str = "cv",
        *,
        alpha: float = 0.0,
        cv: Any = 5,
        fit_intercept: bool = True,
        solver: str = "auto",
        precision: str = "highest",
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.precision = precision

    def _split(self, rows: Rows, before: int | None) -> list[Rows]:
        if self.rank != "cv" or min(rows.x.shape[1], rows.y.shape[1]) == 1:  # nothing to choose
            return [rows]
        if before is not None:
            return dealt(rows, self.cv, before)
        if isinstance(self.cv, numbers.Integral) and len(rows) < int(self.cv):
            raise ValueError(f"rank='cv' needs at least cv={self.cv} rows; got {len(rows)}")
        return rows.held_out(self.cv)

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        most, rank = min(total.p, total.q or 1), self.rank
        if hasattr(self, "cv_error_"):
            del self.cv_error_
        if rank == "cv" and most == 1:
            rank = 1
        elif rank == "cv":
            stats = Statistics.stack([self._statistics(fold) for fold in sums.folds])
            share = 1 - 1 / len(sums.folds)
            ridge = self.alpha / (total.count * share)
            found = cross_validate(stats, ridges=[ridge], ranks=range(1, most + 1))
            self.cv_error_: Any = found.error[0].cpu().numpy()
            rank = found.rank
        fit = self._solve(sums, total, rows, once, ridge=self.alpha / total.count, rank=int(rank))
        self.rank_ = fit.rank
        return fit

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("alpha", self.alpha, lambda a: 0 <= a < math.inf, "a non-negative number")
        check_cv_parameter(self.cv)
        if self.rank != "cv":
            check_number("rank", self.rank, lambda k: k >= 1, "a positive integer or 'cv'", numbers.Integral)


class OrthogonalProcrustes(MomentsRegressor):
    r"""The rotation (with a shift) that brings x closest to y, :func:`stitchkern.procrustes` (Schönemann 1966).

    .. math:: \min_{Q, s, b} \sum_i w_i \|s\,Q x_i + b - y_i\|^2

    Args:
        scale: also fit s ≥ 0; otherwise 1.
        fit_intercept: False aligns the raw features about the origin, with b = 0.
        precision: as for :class:`LinearRegression`.

    Attributes:
        coef_: Q (q, p), or (p,) for y (n,): orthonormal columns for p ≤ q, orthonormal rows for p ≥ q.
        scale_: s. Predictions are scale_ · X coef_ᵀ + intercept_.
        distance_: √(E‖x‖² + E‖y‖² − 2‖S_xy‖_*), the orthogonal Procrustes distance per row, in units of the features.
        intercept_, n_features_in_, feature_names_in_, map_, moments_: as of :class:`LinearRegression`; ``map_.rank``
            below min(p, q) says that Q is not unique.
    """

    def __init__(self, *, scale: bool = False, fit_intercept: bool = True, precision: str = "highest") -> None:
        self.scale = scale
        self.fit_intercept = fit_intercept
        self.precision = precision

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> ProcrustesMap:
        stats = self._statistics(total)
        fit = procrustes(stats, scale=bool(self.scale))
        self.scale_, self.distance_ = fit.scale, fit.distance
        return fit

    def _describe(self, fit: AffineMap, rows: Rows) -> None:
        super()._describe(fit, rows)
        if self.scale:  # not by division: the scale may be 0
            coef = present(procrustes(self._statistics(self.moments_)).weight, rows)
            self.coef_ = coef[0] if rows.flat else coef

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_bool("scale", self.scale)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # a rotation is no regression
        return tags
