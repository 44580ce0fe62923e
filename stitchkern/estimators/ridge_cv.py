"""Ridge regression that chooses its penalty: exact leave-one-out, or folds of moments."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import get_scorer
from torch import Tensor

from stitchkern.estimators.base import MomentsRegressor, Sums, check_bool, check_cv_parameter, dealt, present, r2
from stitchkern.estimators.rows import Rows, tensor
from stitchkern.moments import Moments
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.linear import least_squares
from stitchkern.statistics import Statistics

_FOLDS = 5  # of partial_fit where cv is None
#: what folds of moments can tell without their rows
_MOMENT_SCORES = (None, "r2", "neg_mean_squared_error")


class RidgeCV(MomentsRegressor):
    r"""Ridge regression with the best of several penalties: scikit-learn's ``RidgeCV`` from moments.

    ``cv=None``: exact leave-one-out, for all penalties from one decomposition C = VΛVᵀ of the covariance and one more
    pass over the rows, a bounded number at a time (Rifkin and Lippert 2007). With T = (x − x̄)ᵀV, r = alpha / W:

    .. math:: e_i = \frac{y_i - \hat y_i}{1 - h_i},\qquad
              h_i = \frac{w_i}{W}\Bigl(1 + \sum_k \frac{T_{ik}^2}{\lambda_k + r}\Bigr)

    1 − h loses digits where a row decides its own prediction: with more features than rows and an alpha of 1e-6 of the
    eigenvalues of XᵀX, single e are right to about 1e-8.

    ``cv=k``: k folds, each held out from the moments of the others; no further pass.

    Args:
        alphas: one or more, positive (with folds: non-negative); beside a sum, as in scikit-learn.
        fit_intercept, solver, precision: as for :class:`LinearRegression`.
        scoring: None, the name of a scikit-learn score or a scorer. None is −(mean squared error) for leave-one-out,
            each row's error times its sample weight, and R² for folds, weighted too; the mean over rows or folds counts
            each equally. All as in scikit-learn (newer ones; older ones ignore weights in held-out folds).
            `partial_fit` takes None, ``"r2"`` and ``"neg_mean_squared_error"``.
        cv: None or a number of folds: those of ``KFold(cv)`` without shuffling in `fit`, round robin in `partial_fit`.
            In `fit` also a splitter of scikit-learn or pairs (train, test), where every row is held out once. Rows that
            came in pieces cannot be left out one by one: in `partial_fit` None means 5 folds. Its first call needs a
            row for each fold.
        store_cv_results: keep ``cv_results_``; with ``cv=None`` and in `fit` only.

    Attributes:
        alpha_, best_score_: the choice, and its score.
        cv_results_: (n, alphas) or (n, q, alphas) squared leave-one-out errors (predictions where scoring is given).
        coef_, intercept_, n_features_in_, feature_names_in_, map_, moments_: as of :class:`LinearRegression`.
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: Any = None,
        cv: Any = None,
        store_cv_results: bool = False,
        solver: str = "auto",
        precision: str = "highest",
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.store_cv_results = store_cv_results
        self.solver = solver
        self.precision = precision

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """As :meth:`LinearRegression.partial_fit`; the penalty is chosen again, on folds of rows dealt round robin.

        Raises:
            ValueError: also ``store_cv_results=True``, or a ``scoring`` that needs the rows of earlier calls.
        """
        if self.store_cv_results:
            raise ValueError("store_cv_results=True needs leave-one-out: rows that came in pieces cannot be left out")
        if self.scoring not in _MOMENT_SCORES:
            raise ValueError(
                f"scoring must be None, 'r2' or 'neg_mean_squared_error' in partial_fit; got {self.scoring!r}"
            )
        return super().partial_fit(X, y, sample_weight)

    # ------------------------------------------------------------------------------------------ inside

    def _least_rows(self) -> int:
        return int(self.cv) if isinstance(self.cv, numbers.Integral) else 2

    def _split(self, rows: Rows, before: int | None) -> list[Rows]:
        if before is not None:
            return dealt(rows, _FOLDS if self.cv is None else self.cv, before)
        # leave-one-out needs no folds, but a later partial_fit will
        return rows.round_robin(_FOLDS) if self.cv is None else rows.held_out(self.cv)

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        alphas = np.atleast_1d(np.asarray(self.alphas, dtype=np.float64)).tolist()
        if hasattr(self, "cv_results_"):
            del self.cv_results_
        if self.cv is None and not sums.in_pieces:
            # the smallest penalty needs the most accurate road; the decomposition is then taken from there
            self._solve(sums, total, rows, once, ridge=min(alphas) / total.count)
            scores = self._leave_one_out(sums, total, rows, alphas)
        elif self.scoring in _MOMENT_SCORES:
            scores = self._moment_scores(sums, alphas)
        else:
            scores = self._row_scores(sums, rows, alphas)
        best = 0
        for i, score in enumerate(scores):
            if score > scores[best] or math.isnan(scores[best]):
                best = i
        self.alpha_, self.best_score_ = alphas[best], scores[best]
        return self._solve(sums, total, rows, once, ridge=self.alpha_ / total.count)

    def _spectrum(self, sums: Sums, stats: Statistics) -> tuple[Tensor, Tensor, Tensor]:
        """Λ (p,), V (p, p) of the covariance and Vᵀ C_xy (p, q), from the factor where there is one."""
        if sums.factor is None or self.solver == "moments":
            values, vectors = torch.linalg.eigh(stats.cov_xx)
            return values.clamp(min=0.0), vectors, vectors.mT @ stats.cov_xy
        r_xx, r_xy, _ = (sums.factor if self.fit_intercept else sums.factor.about_zero()).factor()
        u, s, v = torch.linalg.svd(r_xx)
        return s.square(), v.mT, s[:, None] * (u.mT @ r_xy)

    def _leave_one_out(self, sums: Sums, total: Moments, rows: Rows, alphas: list[float]) -> list[float]:
        stats = self._statistics(total)
        values, vectors, rotated = self._spectrum(sums, stats)
        weight = total.count
        inverse = 1 / (values[:, None] + torch.tensor(alphas, dtype=values.dtype, device=values.device) / weight)
        maps = rotated[:, :, None] * inverse[:, None, :]  # (p, q, alphas), in the coordinates of V
        keep = self.store_cv_results or self.scoring is not None
        squares, kept = torch.zeros(len(alphas), dtype=torch.float64, device=values.device), []
        for x, y, w in rows.batches():
            for first in range(0, len(x), 4096):
                last = first + 4096
                t = (x[first:last].double() - stats.mean_x) @ vectors
                left = (y[first:last].double() - stats.mean_y)[:, :, None] - (t @ maps.flatten(1)).unflatten(
                    1, maps.shape[1:]
                )
                leverage = t.square() @ inverse + float(self.fit_intercept)
                each = torch.ones(len(t), dtype=t.dtype, device=t.device) if w is None else w[first:last].double()
                left /= (1 - leverage * each[:, None] / weight)[:, None, :]
                squares += (each[:, None, None] * left.square()).sum((0, 1))
                if keep and self.scoring is None:
                    kept.append(each[:, None, None] * left.square())
                elif keep:
                    kept.append(y[first:last].double()[:, :, None] - left)
        if keep:
            results = torch.cat(kept)  # (n, q, alphas)
            if self.store_cv_results:
                self.cv_results_ = present(results[:, 0] if rows.flat else results, rows)
        if self.scoring is None:
            return (-squares / (len(rows) * stats.q)).tolist()
        return [self._scored(results[..., i], rows, rows.weight) for i in range(len(alphas))]

    def _train(self, sums: Sums, alpha: float) -> AffineMap:
        """For each fold the map of the others."""
        stats = Statistics.stack([self._statistics(fold) for fold in sums.folds])
        count = len(sums.folds)
        train = stats.combine(1 - torch.eye(count, dtype=torch.float64, device=stats.device))
        return least_squares(train, ridge=alpha / train.count)

    def _moment_scores(self, sums: Sums, alphas: list[float]) -> list[float]:
        held = Statistics.stack([self._statistics(fold) for fold in sums.folds])
        plain = [fold.cov_yy.diagonal() if fold.rows > 1 else None for fold in sums.folds]
        scores = []
        for alpha in alphas:
            fit = self._train(sums, alpha)
            m = fit.weight
            shift = (m @ held.mean_x[..., None])[..., 0] + fit.bias - held.mean_y  # (folds, q)
            left = held.cov_yy.diagonal(dim1=-2, dim2=-1) - 2 * (m * held.cov_xy.mT).sum(-1)
            left = (left + ((m @ held.cov_xx) * m).sum(-1)).clamp(min=0.0) + shift.square()
            if self.scoring == "neg_mean_squared_error":
                each = -left.mean(-1)
            else:
                each = torch.stack(
                    [
                        left.new_tensor(torch.nan) if spread is None else r2(fold, spread).mean()
                        for fold, spread in zip(left, plain, strict=True)
                    ]
                )
            scores.append(float(each.mean()))
        return scores

    def _row_scores(self, sums: Sums, rows: Rows, alphas: list[float]) -> list[float]:
        scores = []
        for alpha in alphas:
            fit = self._train(sums, alpha)
            parts = (part.loaded() for part in rows.held_out(self.cv))
            each = [self._scored(fit[i](tensor(part.x)), part, part.weight) for i, part in enumerate(parts)]
            scores.append(float(np.mean(each)))
        return scores

    def _scored(self, predictions: Tensor, rows: Rows, weight: Any) -> float:
        """The user's score of these predictions."""
        scorer = get_scorer(self.scoring)
        y = tensor(rows.y).cpu().numpy()
        found = predictions.cpu().numpy()
        if rows.flat:
            y, found = y[:, 0], found[:, 0]
        more = {} if weight is None else {"sample_weight": tensor(weight).cpu().numpy()}
        return float(scorer(_Identity(), found, y, **more))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_bool("store_cv_results", self.store_cv_results)
        if self.cv is not None:
            check_cv_parameter(self.cv, "None, ")
            if self.store_cv_results:
                raise ValueError("store_cv_results=True needs cv=None")
        alphas = np.asarray(self.alphas)
        least = "positive" if self.cv is None else "non-negative"
        numeric = alphas.dtype.kind in "fiu" and alphas.ndim <= 1 and alphas.size
        if not numeric or not np.isfinite(alphas).all() or (alphas <= 0 if self.cv is None else alphas < 0).any():
            raise ValueError(f"alphas must be one or more {least} numbers; got {self.alphas!r}")


class _Identity(RegressorMixin, BaseEstimator):
    """Takes predictions for its input: what a scorer needs for an estimator."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, X: Any) -> Any:
        return X
