"""Lasso and elastic net as estimators, each target by itself or all by groups."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn import exceptions
from torch import Tensor

from stitchkern.errors import NotConvergedWarning
from stitchkern.estimators.base import MomentsRegressor, Sums, check_bool, check_number
from stitchkern.estimators.rows import Rows
from stitchkern.moments import Moments
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.lasso import LassoPath, solve_path, unconverged
from stitchkern.solvers.lasso_problem import LassoProblem, Penalty
from stitchkern.statistics import Statistics


class ConvergenceWarning(NotConvergedWarning, exceptions.ConvergenceWarning):
    """A penalty did not reach ``tol`` in ``max_iter`` steps: stitchkern's warning and scikit-learn's."""


class SparseRegressor(MomentsRegressor):
    """What estimators with a 1-norm share; a parameter that one of them lacks is a constant of its class."""

    l1_ratio: Any = 1.0
    positive: bool = False
    tol: float
    max_iter: int
    _grouped = False

    @property
    def sparse_coef_(self) -> Any:
        """``coef_`` without its zeros: (q, p), or (1, p) for y (n,); scipy's CSR for numpy, torch's COO for torch."""
        if isinstance(self.coef_, Tensor):
            return torch.atleast_2d(self.coef_).to_sparse()
        return sparse.csr_matrix(np.atleast_2d(self.coef_))

    def _problem(self, stats: Statistics, l1_ratio: float) -> LassoProblem:
        return LassoProblem(
            stats, Penalty(float(l1_ratio), bool(self.positive), self._grouped, float(self.tol), int(self.max_iter))
        )

    def _path(self, stats: Statistics, problem: LassoProblem, alphas: Tensor, start: Tensor | None = None) -> LassoPath:
        """The optima for α (a, q), descending; warns where they are none."""
        path = solve_path(stats, problem, alphas, shared=False, start=start)
        message = unconverged(path)
        if message:
            warnings.warn(f"{type(self).__name__}: {message}", ConvergenceWarning, stacklevel=5)
        return path

    def _fit_at(self, stats: Statistics, alphas: Tensor, l1_ratio: float) -> AffineMap:
        """The map for α (q,), and what is known about it."""
        problem = self._problem(stats, l1_ratio)
        start, before = problem.approach(alphas)
        path = self._path(stats, problem, alphas[None], start)
        steps = before.long() + path.target_sweeps[0]
        self.dual_gap_: Any = float(path.gap)
        self.n_iter_: Any = int(steps.max())
        if not self._grouped and stats.q > 1:
            self.dual_gap_ = path.target_gap[0].clamp(min=0.0).cpu().numpy()
            self.n_iter_ = steps.tolist()
        return path[0]

    def _split(self, rows: Rows, before: int | None) -> list[Rows]:
        if self._grouped and rows.flat:  # nothing was added yet
            name = type(self).__name__
            raise ValueError(
                f"{name} takes y (n, q); got {tuple(rows.y[:, 0].shape)}. For one target, use {name[9:]}; "
                "reshape your data using y.reshape(-1, 1) if it has a single target"
            )
        return super()._split(rows, before)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_bool("positive", self.positive)
        check_number("tol", self.tol, lambda t: 0 < t < 1, "a number between 0 and 1")
        check_number("max_iter", self.max_iter, lambda k: k >= 1, "a positive integer", numbers.Integral)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = not self._grouped
        return tags


class _OnePenalty(SparseRegressor):
    alpha: Any

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        stats = self._statistics(total)
        alphas = torch.as_tensor(np.asarray(self.alpha, dtype=np.float64), device=stats.device)
        if alphas.ndim and alphas.shape != (stats.q,):
            raise ValueError(f"alpha must be a number or ({stats.q},), one for each target; got {tuple(alphas.shape)}")
        return self._fit_at(stats, alphas.expand(stats.q), self.l1_ratio)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_l1_ratio(self.l1_ratio)
        if self._grouped or np.ndim(self.alpha) == 0:
            check_number("alpha", self.alpha, lambda a: 0 <= a < math.inf, "a non-negative number")
        else:
            check_alphas("alpha", self.alpha)


class ElasticNet(_OnePenalty):
    r"""Elastic net of each target: scikit-learn's ``ElasticNet`` from moments.

    .. math:: \min_{M, b}\; \frac{1}{2 W} \sum_i w_i \|M x_i + b - y_i\|^2
              + \alpha\,\bigl(\rho\,\|M\|_1 + \tfrac{1-\rho}{2}\|M\|_F^2\bigr),\qquad W = \sum_i w_i,\;
              \rho = \texttt{l1\_ratio}

    The optimum of every target, by active sets (see :func:`stitchkern.lasso_path`): however many rows there are, they
    are read once. Unlike scikit-learn's it does not depend on an order of features (``selection``) or a start.

    Args:
        alpha: non-negative, beside the mean; for all targets or (q,), one for each.
        l1_ratio: 0 … 1; 1 is the Lasso.
        fit_intercept: False fits b = 0 about the origin.
        positive: no coefficient below 0.
        tol: largest violation of the conditions of optimality, relative to the largest covariance of a feature with the
            target (scikit-learn's is a duality gap relative to the variance; see ``dual_gap_``).
        max_iter: steps at most, of each α on the way from the largest to this one.
        precision: of the products of float32 data, as for :class:`stitchkern.Moments`.

    Attributes:
        coef_: M (q, p), or (p,) for y (n,). intercept_: b (q,) or a number; 0.0 without an intercept.
        sparse_coef_: the same without its zeros.
        dual_gap_: an upper bound of the objective above its minimum, of each target (a number for one).
        n_iter_: steps of each target, all α together (a number for one); 0 where alpha leaves nothing.
        n_features_in_, feature_names_in_, map_, moments_: as of :class:`LinearRegression`.

    Raises:
        ConvergenceWarning: (a warning) ``tol`` was not reached; both of stitchkern's ``NotConvergedWarning`` and
            scikit-learn's ``ConvergenceWarning``.

    References: Tibshirani 1996; Zou and Hastie 2005.
    """

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        positive: bool = False,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


class Lasso(_OnePenalty):
    r"""Lasso of each target: scikit-learn's ``Lasso`` from moments.

    .. math:: \min_{M, b}\; \frac{1}{2 W} \sum_i w_i \|M x_i + b - y_i\|^2 + \alpha\,\|M\|_1

    Args, attributes, warnings: as of :class:`ElasticNet` with ``l1_ratio=1``.
    """

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        fit_intercept: bool = True,
        positive: bool = False,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


class MultiTaskElasticNet(_OnePenalty):
    r"""Elastic net that uses a feature for all targets or none: scikit-learn's ``MultiTaskElasticNet`` from moments.

    .. math:: \min_{M, b}\; \frac{1}{2 W} \sum_i w_i \|M x_i + b - y_i\|^2
              + \alpha\,\bigl(\rho\,\sum_j \|M_{:j}\|_2 + \tfrac{1-\rho}{2}\|M\|_F^2\bigr)

    Args: as of :class:`ElasticNet`; y is (n, q), ``alpha`` a number, and ``tol`` relative to the largest norm over
    targets of a feature's covariances.

    Attributes: as of :class:`ElasticNet`; ``dual_gap_`` and ``n_iter_`` (sweeps) are numbers.

    References: Yuan and Lin 2006; Obozinski, Taskar and Jordan 2010.
    """

    _grouped = True

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


class MultiTaskLasso(_OnePenalty):
    r"""Lasso that uses a feature for all targets or none: scikit-learn's ``MultiTaskLasso`` from moments.

    .. math:: \min_{M, b}\; \frac{1}{2 W} \sum_i w_i \|M x_i + b - y_i\|^2 + \alpha \sum_j \|M_{:j}\|_2

    Args, attributes, warnings: as of :class:`MultiTaskElasticNet` with ``l1_ratio=1``.
    """

    _grouped = True

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


# ------------------------------------------------------------------------------------------ parameters


def check_l1_ratio(value: Any) -> None:
    check_number("l1_ratio", value, lambda r: 0 <= r <= 1, "a number in 0 … 1")


def check_alphas(name: str, value: Any) -> None:
    alphas = np.asarray(value)
    if alphas.dtype.kind not in "fiu" or alphas.ndim != 1 or not alphas.size:
        raise ValueError(f"{name} must be numbers, one or more; got {value!r}")
    if not (np.isfinite(alphas) & (alphas >= 0)).all():
        raise ValueError(f"{name} must be non-negative and finite; got {value!r}")
