"""Distances between shapes: how far two representations are apart after the best rotation (and partial whitening)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.errors import ShapeError
from stitchkern.similarity.features import check_fits, problem_of, root_of_difference, rounding_of_cosine
from stitchkern.similarity.whitening import principal

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input, Problem
    from stitchkern.statistics import Statistics


def procrustes_distance(x: Input, y: Features | None = None, *, kind: str = "normalized") -> Any:
    r"""The orthogonal Procrustes distance of x (n, p) and y (n, q), centred; 0 where a rotation makes them equal.

    .. math:: s = \frac{\|C_{xy}\|_*}{\sqrt{\operatorname{tr}C_{xx}\operatorname{tr}C_{yy}}},\qquad
              d = \sqrt{2 - 2s}\ \text{(normalized)},\quad \arccos s\ \text{(angular)},\quad
              \sqrt{\operatorname{tr}C_{xx} + \operatorname{tr}C_{yy} - 2\|C_{xy}\|_*}\ \text{(euclidean)}

    ``"normalized"`` is min_Q ‖X Q − Y‖_F of centred features of unit Frobenius norm, in 0 … √2; ``"angular"`` the
    geodesic distance of shapes (Williams et al. 2021), in 0 … π/2; ``"euclidean"`` in units of the features, per
    sample, as ``sk.procrustes(m).distance``. All three are metrics: symmetric, with the triangle inequality; p ≠ q is
    padded with zero features. Ding et al. 2021, and codes after them, report d² as "Procrustes distance".

    Invariant to offsets and rotations of each side, and but for ``"euclidean"`` to a scale of each. It is the root of
    a difference: what products cannot tell from equal, √ε, is 0: about 2e-8 of the features' size from features, 3e-4
    from float32 moments. :func:`procrustes_similarity` has no such floor.

    Args:
        x: (n, p) torch or numpy, or two-sided moments, statistics, or a list of these.
        y: (n, q), only with features.
        kind: "normalized", "angular" or "euclidean".

    Returns:
        A number, or a tensor with one for each problem of statistics and lists.

    Raises:
        ValueError: another kind. StatisticsError: fewer than two samples; x or y does not vary (but "euclidean").
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    if kind not in ("normalized", "angular", "euclidean"):
        raise ValueError(f"kind must be normalized, angular or euclidean; got {kind!r}")
    problem = problem_of(x, y, rotate=True)
    stats = problem.stats
    if kind == "euclidean":
        a, b = _trace(stats.cov_xx), _trace(stats.cov_yy)
        return problem.answer(root_of_difference(a + b - 2 * _nuclear(stats.cov_xy), a + b, stats))
    s = _cosine("Procrustes distance", problem)
    return problem.answer(_angle(s, stats) if kind == "angular" else _chord(s, stats))


def procrustes_similarity(x: Input, y: Features | None = None) -> Any:
    r"""The cosine of the angular Procrustes distance, ‖C_xy‖_* / √(tr C_xx · tr C_yy), in 0 … 1; 1 for equal shapes.

    The same number as :func:`bures` of Gram matrices. Arguments and errors as :func:`procrustes_distance`.
    """
    problem = problem_of(x, y, rotate=True)
    return problem.answer(_cosine("Procrustes similarity", problem))


def shape_distance(x: Input, y: Features | None = None, *, alpha: float = 1.0) -> Any:
    r"""The angular shape metric after partial whitening (Williams et al. 2021), in 0 … π/2.

    .. math:: d = \arccos\frac{\|\phi(X)^\top\phi(Y)\|_*}{\|\phi(X)\|_F\|\phi(Y)\|_F},\qquad
              \phi(X) = \tilde X\left(\alpha I + (1-\alpha)(\tilde X^\top\tilde X/n)^{-1/2}\right)

    with X̃ centred and scaled to a mean variance of 1 over the directions in which it varies, so that α means the same
    at every scale. α = 1 is angular Procrustes; α = 0 whitens: arccos(Σρ/√(r_x r_y)), invariant to every invertible
    linear map; between them to offsets, rotations and scales. netrep mixes I with (XᵀX)^{-1/2} of the features as
    they come, so that its α between 0 and 1 depends on their unit and number of samples. Directions that are rounding
    (see :func:`stitchkern.cca`) are left out; one that has v of the largest one's variance is whitened to 2^-53 / v.
    In-sample: at α = 0 and n ≤ p + 1 it says nothing.

    Args:
        alpha: 0 … 1. Others as :func:`procrustes_distance`.

    Raises:
        ValueError: alpha outside 0 … 1. StatisticsError: x or y does not vary, fewer than two samples. ShapeError:
            x and y do not fit. NotFiniteError: NaN or Inf.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0 … 1; got {alpha}")
    problem = problem_of(x, y, rotate=True)
    if alpha == 1:  # nothing to whiten, so nothing to leave out
        return problem.answer(_angle(_cosine("shape distance", problem), problem.stats))
    problem.check_varies("shape distance")
    flat = problem.flat()
    sides, slack = [], torch.ones_like(flat.epsilon_x)  # whitening magnifies rounding as it does directions
    for cov, epsilon, turned in flat.sides():
        values, vectors = principal(cov, epsilon, turned)
        mixed = whitening(values, alpha)
        sides.append(vectors * mixed[..., None, :])
        least = torch.where(values > 0, mixed, torch.inf).amin(-1)
        slack = slack * (mixed.amax(-1) / least) ** 2
    s = _nuclear(sides[0].mT @ flat.stats.cov_xy @ sides[1])
    return problem.answer(_angle(s, flat.stats, slack))


def bures(x: Input, y: Features | None = None, *, of: str = "grams") -> Any:
    r"""Normalised Bures similarity (the fidelity of quantum states) of two Gram or covariance matrices, in 0 … 1.

    .. math:: \frac{F(A, B)}{\sqrt{\operatorname{tr}A\operatorname{tr}B}},\qquad
              F(A, B) = \operatorname{tr}\left(A^{1/2} B A^{1/2}\right)^{1/2} = \|A^{1/2}B^{1/2}\|_*

    ``of="grams"``: A = X Xᵀ and B = Y Yᵀ of centred features, (n, n), never formed: F is then ‖XᵀY‖_*, so that it is
    the cosine of the angular Procrustes distance (Harvey et al. 2024). ``of="covariances"``: A = C_xx and B = C_yy,
    (p, p): whether the sides spread along the same axes of one feature space; samples need not correspond, rotations of
    one side matter, and p = q; directions that are rounding (see :func:`stitchkern.cca`) are left out. Some codes
    report the squared fidelity.

    Args:
        of: "grams" or "covariances". Others as :func:`procrustes_distance`.

    Raises:
        ValueError: another ``of``. ShapeError: x and y do not fit, or covariances of p ≠ q. StatisticsError: x or y
            does not vary, fewer than two samples. NotFiniteError: NaN or Inf.
    """
    problem = _for_bures(x, y, of)
    if of == "grams":
        return problem.answer(_cosine("Bures similarity", problem))
    problem.check_varies("Bures similarity")
    fidelity, a, b = _of_covariances(problem)
    return problem.answer(fidelity / (a.sqrt() * b.sqrt()))


def bures_distance(x: Input, y: Features | None = None, *, of: str = "grams") -> Any:
    r"""The Bures distance √(tr A + tr B − 2 F(A, B)) of :func:`bures`' matrices, divided by n: a metric.

    Of covariances it is the 2-Wasserstein distance of the centred normal distributions that have them (Bhatia et al.
    2019); of Grams XXᵀ/n the Euclidean Procrustes distance. In units of the features; its floor is that of
    :func:`procrustes_distance`. Constant features are at a distance of their own: √tr of the other side.

    Args and raises: as :func:`bures`.
    """
    problem = _for_bures(x, y, of)
    stats = problem.stats
    if of == "grams":
        fidelity, a, b = _nuclear(stats.cov_xy), _trace(stats.cov_xx), _trace(stats.cov_yy)
    else:
        fidelity, a, b = _of_covariances(problem)
    return problem.answer(root_of_difference(a + b - 2 * fidelity, a + b, stats))


def _for_bures(x: Input, y: Features | None, of: str) -> Problem:
    if of not in ("grams", "covariances"):
        raise ValueError(f"of must be grams or covariances; got {of!r}")
    problem = problem_of(x, y, rotate=of == "grams")
    p, q = problem.stats.p, problem.stats.q
    if of == "covariances" and p != q:
        raise ShapeError(f"covariances can only be compared for x and y of as many features; got {p}, {q}")
    return problem


def _of_covariances(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """F(A, B), tr A and tr B of the covariances without what is rounding, whose root would be far above it."""
    batch, roots, traces = problem.stats.batch, [], []
    for cov, epsilon, _ in problem.flat().sides():
        values, vectors = principal(cov, epsilon)
        roots.append(vectors * values.sqrt()[..., None, :])
        traces.append(values.sum(-1).reshape(batch))
    return _nuclear(roots[0].mT @ roots[1]).reshape(batch), traces[0], traces[1]


def whitening(values: Tensor, alpha: float) -> Tensor:
    """What directions of these variances (…, p) are scaled by: partly whitened, and of a total variance of 1."""
    live = values > 0
    mean = values.sum(-1, keepdim=True) / live.sum(-1, keepdim=True)
    values = values / mean
    mixed = torch.where(live, alpha + (1 - alpha) / torch.where(live, values, 1.0).sqrt(), 0.0)
    return mixed / ((mixed.square() * values).sum(-1, keepdim=True) * mean).sqrt()


def _trace(cov: Tensor) -> Tensor:
    return cov.diagonal(dim1=-2, dim2=-1).sum(-1)


def _nuclear(t: Tensor) -> Tensor:
    return torch.linalg.svdvals(t).sum(-1)


def _cosine(index: str, problem: Problem) -> Tensor:
    problem.check_varies(index)
    stats = problem.stats
    s = _nuclear(stats.cov_xy) / (_trace(stats.cov_xx).sqrt() * _trace(stats.cov_yy).sqrt())
    check_fits(s - 1, rounding_of_cosine(stats))
    return s


def _chord(s: Tensor, stats: Statistics, slack: Tensor | float = 1.0) -> Tensor:
    return root_of_difference(2 - 2 * s, 2.0 * slack * torch.ones_like(s), stats)


def _angle(s: Tensor, stats: Statistics, slack: Tensor | float = 1.0) -> Tensor:
    """arccos s, by its half: it keeps its digits near s = 1, and knows rounding from error there."""
    return 2 * (_chord(s, stats, slack) / 2).asin()
