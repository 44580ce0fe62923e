"""Lasso and elastic net that choose their penalty, on folds of moments."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stitchkern.estimators.base import Sums, check_bool, check_cv_parameter, check_number, dealt
from stitchkern.estimators.lasso import SparseRegressor, check_alphas, check_l1_ratio
from stitchkern.estimators.rows import Rows
from stitchkern.moments import Moments
from stitchkern.solvers.affine import AffineMap
from stitchkern.solvers.lasso import default_alphas
from stitchkern.statistics import Statistics

_FOLDS = 5  # where cv is None


class _ChosenPenalty(SparseRegressor):
    """Each fold's path comes from the moments of the others, and its errors from its own moments."""

    eps: float
    alphas: Any
    alpha_per_target: bool = False
    cv: Any
    _chooses_ratio = False

    def _least_rows(self) -> int:
        return int(self.cv) if isinstance(self.cv, numbers.Integral) else _FOLDS if self.cv is None else 2

    def _split(self, rows: Rows, before: int | None) -> list[Rows]:
        super()._split(rows, before)
        folds = _FOLDS if self.cv is None else self.cv
        return rows.held_out(folds) if before is None else dealt(rows, folds, before)

    def _map(self, sums: Sums, total: Moments, rows: Rows, once: bool) -> AffineMap:
        stats = self._statistics(total)
        held = Statistics.stack([self._statistics(fold) for fold in sums.folds])
        train = held.combine(1 - torch.eye(len(sums.folds), dtype=torch.float64, device=held.device))
        ratios = np.atleast_1d(np.asarray(self.l1_ratio, dtype=np.float64)).tolist()
        grids = [self._grid(stats, ratio) for ratio in ratios]  # (a, q) each
        errors = torch.stack([self._errors(train, held, a, r) for a, r in zip(grids, ratios, strict=True)])
        if not self.alpha_per_target:
            errors = errors.mean(-1, keepdim=True)
        mean = errors.mean(2).cpu().numpy()  # (ratios, a, q or 1)
        best = int(mean.min(1).mean(1).argmin())
        place = torch.from_numpy(mean[best].argmin(0)).to(stats.device)  # of equals the first, the largest α
        chosen = grids[best].gather(0, place.expand(stats.q)[None])[0]
        tried = torch.stack(grids)
        if rows.flat or not self.alpha_per_target:  # one α for all there are
            tried, errors = tried[..., 0], errors[..., 0]
        several = len(ratios) > 1
        given = not isinstance(self.alphas, numbers.Integral)
        self.alphas_ = (tried if several and not given else tried[0]).cpu().numpy()
        self.mse_path_ = (errors if several else errors[0]).cpu().numpy()
        self.alpha_ = float(chosen[0]) if tried.ndim == 2 else chosen.cpu().numpy()
        if self._chooses_ratio:
            self.l1_ratio_ = ratios[best]
        return self._fit_at(stats, chosen, ratios[best])

    def _errors(self, train: Statistics, held: Statistics, alphas: Tensor, l1_ratio: float) -> Tensor:
        """(a, folds, q) squared error of what each fold did not see."""
        found = []
        for i in range(held.batch[0]):
            problem = self._problem(train[i], l1_ratio)
            found.append(self._path(train[i], problem, alphas).error(held[i]))
        return torch.stack(found, 1)

    def _grid(self, stats: Statistics, l1_ratio: float) -> Tensor:
        """α (a, q), descending."""
        if not isinstance(self.alphas, numbers.Integral):
            alphas = torch.as_tensor(np.sort(np.asarray(self.alphas, dtype=np.float64))[::-1].copy())
            return alphas.to(stats.device)[:, None].expand(-1, stats.q)
        return default_alphas(
            self._problem(stats, l1_ratio), int(self.alphas), float(self.eps), per_target=bool(self.alpha_per_target)
        )

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("eps", self.eps, lambda e: 0 < e < 1, "a number between 0 and 1")
        check_bool("alpha_per_target", self.alpha_per_target)
        ratios = [self.l1_ratio] if np.ndim(self.l1_ratio) == 0 else list(self.l1_ratio)
        if not ratios:
            raise ValueError("l1_ratio must be one number or more in 0 … 1; got none")
        for ratio in ratios:
            check_l1_ratio(ratio)
        if isinstance(self.alphas, numbers.Integral):
            check_number(
                "alphas", self.alphas, lambda a: a >= 1, "a positive number of them, or numbers", numbers.Integral
            )
            if 0 in ratios:
                raise ValueError("without a 1-norm (l1_ratio=0) no alpha is the largest: give alphas")
        else:
            check_alphas("alphas", self.alphas)
        if self.cv is not None:
            check_cv_parameter(self.cv, "None, ")


class ElasticNetCV(_ChosenPenalty):
    r"""Elastic net with the best of many penalties: scikit-learn's ``ElasticNetCV`` from moments, of any targets.

    The data are read once, into the moments of k folds; each fold's path is that of the others' sum, and its error

    .. math:: E_f\|M x + b - y\|^2 = \operatorname{tr} S_{yy} - 2\operatorname{tr} M S_{xy}
              + \operatorname{tr} M S_{xx} M^\top + \|M \bar x + b - \bar y\|^2

    comes from its own. The α of least error, averaged over folds, is then fitted to all of them. α stands beside the
    mean, so that it means the same in each fold.

    Args:
        l1_ratio: 0 … 1, or several to choose from.
        eps: the smallest of the default α relative to the largest.
        alphas: how many, in geometric steps down from the smallest α with M = 0; or one or more non-negative numbers.
        alpha_per_target: choose an α for each target, each from steps of its own (and one ``l1_ratio`` for all); by
            default one α for all, by the mean of the targets' errors.
        cv: a number of folds (None: 5): those of ``KFold(cv)`` without shuffling in `fit`, round robin in
            `partial_fit`, whose first call needs a row for each. In `fit` also a splitter of scikit-learn or pairs
            (train, test), where every row is held out once.
        fit_intercept, positive, tol, max_iter, precision: as for :class:`ElasticNet`.

    Attributes:
        alpha_: the choice; (q,) with ``alpha_per_target``. l1_ratio_: likewise, a number.
        alphas_: (a,) those tried, descending; (a, q) with ``alpha_per_target``; where ``l1_ratio`` holds several and
            alphas are not given, for each of them.
        mse_path_: (a, folds) mean squared error of each fold, weighted as its rows are; (ratios, a, folds) for several
            ``l1_ratio``; with ``alpha_per_target`` also (…, q).
        coef_, sparse_coef_, intercept_, dual_gap_, n_iter_, n_features_in_, feature_names_in_, map_, moments_: as of
            :class:`ElasticNet`, at ``alpha_``.

    Raises, references: as of :class:`ElasticNet`.
    """

    _chooses_ratio = True

    def __init__(
        self,
        *,
        l1_ratio: Any = 0.5,
        eps: float = 1e-3,
        alphas: Any = 100,
        alpha_per_target: bool = False,
        fit_intercept: bool = True,
        cv: Any = None,
        positive: bool = False,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.alphas = alphas
        self.alpha_per_target = alpha_per_target
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


class LassoCV(_ChosenPenalty):
    """Lasso with the best of many penalties: scikit-learn's ``LassoCV`` from moments, of any targets.

    Args, attributes, warnings: as of :class:`ElasticNetCV` with ``l1_ratio=1``, which is then no parameter.
    """

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        alphas: Any = 100,
        alpha_per_target: bool = False,
        fit_intercept: bool = True,
        cv: Any = None,
        positive: bool = False,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.eps = eps
        self.alphas = alphas
        self.alpha_per_target = alpha_per_target
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


class MultiTaskElasticNetCV(_ChosenPenalty):
    """:class:`MultiTaskElasticNet` with the best of many penalties: scikit-learn's ``MultiTaskElasticNetCV``.

    Args, attributes, warnings: as of :class:`ElasticNetCV`, with one α for all targets.
    """

    _grouped = True
    _chooses_ratio = True

    def __init__(
        self,
        *,
        l1_ratio: Any = 0.5,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        cv: Any = None,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision


class MultiTaskLassoCV(_ChosenPenalty):
    """:class:`MultiTaskLasso` with the best of many penalties: scikit-learn's ``MultiTaskLassoCV``.

    Args, attributes, warnings: as of :class:`MultiTaskElasticNetCV` with ``l1_ratio=1``, which is then no parameter.
    """

    _grouped = True

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        alphas: Any = 100,
        fit_intercept: bool = True,
        cv: Any = None,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        precision: str = "highest",
    ) -> None:
        self.eps = eps
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision
