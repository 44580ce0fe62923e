"""Sparse maps: the Lasso and elastic-net path of all targets, from moments."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stitchkern.errors import NotConvergedWarning, ShapeError
from stitchkern.ops import LASSO_SCORES
from stitchkern.solvers.affine import AffineMap, settle
from stitchkern.solvers.coefficients import Coefficients
from stitchkern.solvers.debias import least_squares_on
from stitchkern.solvers.lasso_problem import LassoProblem, Penalty, numbers
from stitchkern.statistics import Statistics

if TYPE_CHECKING:
    from stitchkern.statistics import Source


@dataclass(frozen=True, repr=False)
class LassoPath:
    r"""The optimal map for each penalty, from the largest to the smallest.

    ``path[i]`` is one of them, ``path.at(…)`` one by what it should be like.

    Attributes:
        alphas: (a,), or (a, q) where every target has its own; descending.
        sparsity: (a,) share of zeros in M.
        residual: (a,) E‖M x + b − y‖², without the penalty.
        r2: (a,) 1 − residual / E‖y − ȳ‖².
        objective: (a,) what was minimised.
        gap: (a,) an upper bound of objective − minimum, from a dual point; not tight where α = 0, as no dual point but
            the optimum is known there.
        violation: (a,) the largest violation of the conditions of optimality over all targets, relative to the
            largest \|cov_xy\| of the target (grouped: to the largest norm of a row).
        sweeps: (a,) steps of the target that took most.
        converged: (a,) violation ≤ tol.
        target_gap, target_sweeps: (a, q) of each target, the gap's in units of its own (grouped: its share).
    """

    alphas: Tensor
    sparsity: Tensor
    residual: Tensor
    r2: Tensor
    objective: Tensor
    gap: Tensor
    violation: Tensor
    sweeps: Tensor
    converged: Tensor
    target_gap: Tensor = field(repr=False)
    target_sweeps: Tensor = field(repr=False)
    _stats: Statistics = field(repr=False)
    _problem: LassoProblem = field(repr=False)
    _coefficients: Coefficients = field(repr=False)

    def __len__(self) -> int:
        return len(self.alphas)

    def __getitem__(self, index: int) -> AffineMap:
        """The map of one α, by its position."""
        return self._map(self.weight(index))

    def weight(self, index: int) -> Tensor:
        """M (q, p) of one α, by its position."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"the path has {len(self)} maps; got index {index}")
        return self._coefficients[index % len(self)]

    def at(
        self,
        *,
        alpha: float | None = None,
        sparsity: float | None = None,
        r2: float | None = None,
        debias: bool = False,
        threshold: float | None = None,
    ) -> AffineMap:
        """One map, by exactly one of three wishes.

        Args:
            alpha: this penalty; one that is not among ``alphas`` is solved for.
            sparsity: the map of the path with the smallest α that has at least this share of zeros
                (``lasso_path(m, sparsity=[…])`` finds α for a share).
            r2: the map of the path with the largest α whose R² is at least this.
            debias: least squares on each target's support in place of its shrunk coefficients; with ``positive`` under
                the same constraint.
            threshold: coefficients below it in magnitude are set to 0 first (1e-4 in Csiszárik et al. 2021).

        Raises:
            ValueError: not exactly one wish, or one that no map of the path fulfils; a threshold below 0.
        """
        if sum(v is not None for v in (alpha, sparsity, r2)) != 1:
            raise ValueError("at takes exactly one of alpha, sparsity and r2")
        if alpha is not None:
            weight = self._weight_at(float(alpha))
        elif sparsity is not None:
            weight = self.weight(int(_where(self.sparsity, "sparsity", sparsity)[-1]))
        else:
            assert r2 is not None
            weight = self.weight(int(_where(self.r2, "r2", r2)[0]))
        if threshold is not None:
            if not threshold >= 0:
                raise ValueError(f"threshold must be 0 or more; got {threshold}")
            weight = torch.where(weight.abs() < threshold, 0.0, weight)
        return self._debiased(weight) if debias else self._map(weight)

    def error(self, held: Statistics) -> Tensor:
        r"""(a, q) each target's E (M x + b − y)² on other data, such as a held-out fold, from its statistics.

        .. math:: s_{yy} - 2\,m^\top s_{xy} + m^\top S_{xx}\,m + (m^\top \bar x + b - \bar y)^2
        """
        stats, found = self._stats, []
        dx, dy = held.mean_x - stats.mean_x, held.mean_y - stats.mean_y
        for i in range(len(self)):
            m = self.weight(i)
            left = held.cov_yy.diagonal() - 2 * (m * held.cov_xy.mT).sum(1) + ((m @ held.cov_xx) * m).sum(1)
            found.append(left.clamp(min=0.0) + (m @ dx - dy).square())
        return torch.stack(found)

    def debias(self, index: int) -> AffineMap:
        """Least squares on the support of ``path[index]``, for each target."""
        return self._debiased(self.weight(index))

    def _weight_at(self, alpha: float) -> Tensor:
        if self.alphas.ndim != 1:
            raise ValueError("every target has its own alphas: there is no map for one; take path[i]")
        found = (self.alphas == alpha).nonzero()
        if len(found):
            return self.weight(int(found[0]))
        grid = check_alphas([alpha], self._stats)
        before = (self.alphas > alpha).nonzero()  # the nearest larger one is where to start from
        start = self.weight(int(before[-1])) if len(before) else None
        return torch.cat([b.coefficients[0] for b in self._problem.solve(grid, start)])

    def _map(self, weight: Tensor) -> AffineMap:
        used = (weight != 0).any(0).sum().minimum((weight != 0).any(1).sum())
        return settle(
            self._stats,
            weight,
            rank=used,
            dropped=(self._stats.cov_xx.diagonal() == 0).sum(),
            method="lasso",
            error=torch.tensor(float("nan"), dtype=torch.float64, device=weight.device),
        )

    def _debiased(self, weight: Tensor) -> AffineMap:
        return self._map(least_squares_on(self._stats, weight != 0, positive=self._problem.penalty.positive))

    def __repr__(self) -> str:
        stats = self._stats
        most, least = float(self.sparsity.max()), float(self.sparsity.min())
        return f"LassoPath(p={stats.p}, q={stats.q}, alphas={len(self)}, sparsity={most:.3g}…{least:.3g})"


def lasso_path(
    m: Source,
    alphas: Sequence[float] | Tensor | None = None,
    *,
    l1_ratio: float = 1.0,
    tol: float = 1e-6,
    n_alphas: int = 100,
    eps: float = 1e-3,
    sparsity: Sequence[float] | None = None,
    positive: bool = False,
    grouped: bool = False,
    max_sweeps: int = 10_000,
) -> LassoPath:
    r"""Sparse maps for a whole grid of penalties, all targets at once.

    .. math:: \min_M\; \tfrac12 E\|M(x-\bar x)-(y-\bar y)\|^2
              + \alpha\,\bigl(\rho\,\|M\|_1 + \tfrac{1-\rho}{2}\|M\|_F^2\bigr),\qquad \rho = \texttt{l1\_ratio}

    α means what it means in scikit-learn's ``Lasso`` and ``ElasticNet``. The answer is the optimum to ``tol``, in the
    units of the gradient, whatever the condition of cov_xx: on a CPU by active sets with a Cholesky factor that follows
    them, on a GPU by coordinate descent. Equal or dependent features share their part in one of many ways, all of them
    optimal. A feature of no variance gets no weight.

    Args:
        m: as for :func:`least_squares`; one problem.
        alphas: (a,) or, for each target, (a, q); non-negative, brought into descending order. By default ``n_alphas``
            values in geometric steps from the smallest α with M = 0 down to ``eps`` times it.
        l1_ratio: 0 … 1; 1 is the Lasso.
        tol: largest violation of the conditions of optimality, relative to the largest \|cov_xy\| of each target.
        sparsity: in place of alphas: wanted shares of zeros in M; α is found by bisection. Shares that no α has get the
            nearest one that some α has.
        positive: no coefficient below 0.
        grouped: the penalty α·ρ·Σ_j ‖M_:j‖₂ over the columns of M in place of the 1-norm: a feature of x is used by all
            targets or by none.
        max_sweeps: steps (or sweeps) for each α at most.

    Raises:
        ValueError: alphas that are negative, not finite or none; l1_ratio outside 0 … 1, or 0 without alphas; a tol,
            eps, n_alphas, max_sweeps or sparsity out of range; alphas and sparsity at once; alphas that would be beyond
            float64.
        TypeError: alphas or sparsity that are no real numbers.
        ShapeError: statistics with batch dimensions, alphas of another shape.
        NotFiniteError: NaN or Inf in the statistics.
        NotConvergedWarning: (a warning) some α did not reach ``tol`` in ``max_sweeps``; ``violation`` says which.

    References: Tibshirani 1996; Zou and Hastie 2005; Yuan and Lin 2006 (groups); Lee, Battle, Raina and Ng 2007
    (feature-sign search).
    """
    if not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio must be in 0 … 1; got {l1_ratio}")
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1; got {tol}")
    if not 0 < eps < 1 or n_alphas < 1 or max_sweeps < 1:
        raise ValueError(f"eps must be in 0 … 1, n_alphas and max_sweeps positive; got {eps}, {n_alphas}, {max_sweeps}")
    n_alphas, max_sweeps = operator.index(n_alphas), operator.index(max_sweeps)
    for name, given in (("positive", positive), ("grouped", grouped)):
        if given not in (True, False):
            raise ValueError(f"{name} must be True or False; got {given!r}")
    if alphas is not None and sparsity is not None:
        raise ValueError("give alphas or sparsity, not both")
    stats = Statistics.of(m)
    problem = LassoProblem(
        stats, Penalty(float(l1_ratio), bool(positive), bool(grouped), float(tol), min(max_sweeps, 2**31 - 1))
    )
    if alphas is not None:
        grid = check_alphas(alphas, stats)
        if grouped and not bool((grid == grid[:, :1]).all()):
            raise ValueError("a group is penalised for all targets together: alphas must be (a,)")
        return _checked(solve_path(stats, problem, grid, shared=numbers("alphas", alphas, stats.device).ndim < 2))
    if l1_ratio == 0:
        raise ValueError("without a 1-norm (l1_ratio=0) no α is the largest: give alphas")
    grid = default_alphas(problem, n_alphas, eps)
    if sparsity is not None:
        from stitchkern.solvers.lasso_sparsity import alphas_of

        grid = alphas_of(problem, grid, sparsity).expand(stats.q, -1).T
    return _checked(solve_path(stats, problem, grid, shared=True))


def _product(strength: Tensor, size: Tensor, *units: Tensor) -> Tensor:
    """0 where the strength or the size is, though the unit may be beyond float64."""
    found = strength * size
    for unit in units:
        found = torch.where(found == 0, found, found * unit)
    return found


def _where(have: Tensor, name: str, wanted: float) -> Tensor:
    """The positions along the path where there is at least as much as wanted."""
    found = (have >= wanted).nonzero()[:, 0]
    if not len(found):
        raise ValueError(f"no map of the path has {name} >= {wanted:g}; the largest is {float(have.max()):.6g}")
    return found


def check_alphas(alphas: Sequence[float] | Tensor, stats: Statistics) -> Tensor:
    """(a, q), each column descending."""
    grid = numbers("alphas", alphas, stats.device)
    if grid.ndim < 2:
        grid = grid.reshape(-1, 1).expand(-1, stats.q)
    if grid.ndim != 2 or grid.shape[1] != stats.q:
        raise ShapeError(f"alphas must be (a,) or (a, q) = (a, {stats.q}); got {tuple(grid.shape)}")
    if not len(grid) or not bool(((grid >= 0) & grid.isfinite()).all()):
        raise ValueError(f"alphas must be non-negative and finite, at least one; got {alphas}")
    return grid.sort(0, descending=True).values


def default_alphas(problem: LassoProblem, count: int, eps: float, *, per_target: bool = False) -> Tensor:
    """(a, q) in geometric steps from the smallest α with M = 0, of all targets or of each, down to ``eps`` times it."""
    largest = problem.largest()
    if not per_target:
        largest = largest.amax().expand_as(largest)
    # where there is nothing to explain, any α gives 0
    largest = torch.where(largest > 0, largest, torch.finfo(torch.float64).tiny / eps)
    if not bool((largest < torch.inf).all()):
        raise ValueError(
            f"the smallest α with M = 0 is beyond float64 for l1_ratio={problem.penalty.l1_ratio}: give alphas"
        )
    return largest * eps ** torch.linspace(0, 1, count, dtype=torch.float64, device=largest.device)[:, None]


def solve_path(
    stats: Statistics, problem: LassoProblem, grid: Tensor, *, shared: bool, start: Tensor | None = None
) -> LassoPath:
    """The path over α (a, q) from ``start`` (q, p), converged or not; ``shared``: all targets have the same α."""
    penalty, (a, q) = problem.penalty, grid.shape
    coefficients = Coefficients(a, q, stats.p)
    score = grid.new_empty(a, q, len(LASSO_SCORES))
    for block in problem.solve(grid, start):
        coefficients.add(block.alphas, block.targets, block.coefficients)
        score[block.alphas, block.targets] = block.score
    violation, gap, explained, norm, squares, sweeps, nonzero = score.unbind(-1)
    unit = problem.unit_y.square()
    total = stats.cov_yy.diagonal().sum()
    residual = ((problem.energy - explained).clamp(min=0.0) * unit).sum(1)
    unit_m = problem.unit_y / problem.unit_x
    scaled = _product(grid * penalty.l1_ratio, norm, unit_m)
    ridge = _product(grid * (1 - penalty.l1_ratio), squares, unit_m, unit_m)
    worst = violation.amax(1)
    return LassoPath(
        alphas=grid[:, 0].contiguous() if shared else grid.contiguous(),
        sparsity=1 - nonzero.sum(1) / (q * stats.p),
        residual=residual,
        r2=1 - residual / total if bool(total > 0) else torch.ones_like(residual),
        objective=residual / 2 + (scaled + ridge / 2).sum(1),
        gap=(gap * unit).sum(1).clamp(min=0.0),
        violation=worst,
        sweeps=sweeps.amax(1).long(),
        converged=worst <= penalty.tol,
        target_gap=gap * unit,
        target_sweeps=sweeps.long(),
        _stats=stats,
        _problem=problem,
        _coefficients=coefficients,
    )


def unconverged(path: LassoPath) -> str | None:
    """What to warn of."""
    if bool(path.converged.all()):
        return None
    penalty = path._problem.penalty
    return (
        f"{int((~path.converged).sum())} of {len(path)} α did not reach tol={penalty.tol:g} in {penalty.max_sweeps} "
        f"sweeps; the largest violation is {float(path.violation.max()):.2g}"
    )


def _checked(path: LassoPath) -> LassoPath:
    message = unconverged(path)
    if message:
        warnings.warn(message, NotConvergedWarning, stacklevel=3)
    return path
