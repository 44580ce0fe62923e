"""Canonical correlations and what is made of them: mean CCA, SVCCA, PWCCA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stitchkern.similarity.features import check_fits, problem_of
from stitchkern.similarity.whitening import first, principal, whitened

if TYPE_CHECKING:
    from stitchkern.similarity.features import Features, Input


@dataclass(frozen=True)
class CanonicalCorrelations:
    r"""All canonical correlations of x and y, and their summaries; numbers, or tensors (…) for a batch.

    With k = min(rank_x, rank_y):

    .. math:: \text{mean} = \tfrac1k \sum_i \rho_i,\quad R^2_{CCA} = \tfrac1k \sum_i \rho_i^2,\quad
              \text{yanai} = \frac{\sum_i \rho_i^2}{\sqrt{r_x r_y}},\quad \text{pillai} = \sum_i \rho_i^2

    Attributes:
        correlations: ρ (k,), descending; for a batch (…, min(p, q)), zero from each problem's own k on.
        mean: mean CCA.
        r2: R²_CCA (Kornblith et al. 2019, with their p₁ the smaller rank).
        yanai: the generalised coefficient of determination (Ramsay et al. 1984).
        pillai: Pillai's trace, in 0 … k.
        rank_x, rank_y: directions in which the sides vary; dead and collinear features do not count.
    """

    correlations: Tensor
    mean: Any
    r2: Any
    yanai: Any
    pillai: Any
    rank_x: Any
    rank_y: Any


def cca(x: Input, y: Features | None = None) -> CanonicalCorrelations:
    r"""The canonical correlations of x (n, p) and y (n, q), from features, :class:`Moments` or :class:`Statistics`.

    .. math:: \rho = \text{singular values of } C_{xx}^{-1/2} C_{xy} C_{yy}^{-1/2}

    (Hotelling 1936), with the pseudo-inverse roots on the directions that vary, in correlation form: what lies below
    ε (√p + λ_max) is rounding, as in every solver. ε is ``Moments.epsilon``; for features, which are multiplied in
    float64, what rounding them added to their variance: 2^-53 in float64, u² E x²/var x with u = 2^-24 in float32 (at
    most 2^-24), 2^-22 in float16, 2^-16 in bfloat16. Where n is close to p small directions are real: give features, or
    ``Moments(precision="float64")``. Symmetric; invariant to offsets and to every invertible linear map of either side.
    Correlations are not clamped: rounding may leave 1 + 1e-15.

    In-sample. With n samples the ranks are at most n − 1, and once r_x + r_y > n − 1 that many in excess are exactly 1:
    for n ≤ max(p, q) all are (as long as no features are dead or collinear), and say nothing. SVCCA was proposed
    against that. Means over min(p, q) in place of the ranks, as many codes have them, fall with every dead feature.

    Args:
        x: (n, p) torch or numpy, or two-sided moments, a :class:`StreamingQR`, statistics, or a list of these.
        y: (n, q), only with features.

    Returns:
        :class:`CanonicalCorrelations`; of :class:`Statistics` or a list with a tensor for every number, as
        :func:`stitchkern.bootstrap` needs them: ``sk.bootstrap(blocks, lambda s: sk.cca(s).mean)``.

    Raises:
        StatisticsError: x or y does not vary, fewer than two samples, an indefinite covariance, or (statistics of your
            own) a cov_xy that does not fit the other two.
        ShapeError: x and y are not (n, p) and (n, q) of the same samples. NotFiniteError: NaN or Inf.
    """
    white = whitened("CCA", x, y)
    count = white.count
    rho = torch.linalg.svdvals(white.cross)
    check_fits(rho[..., 0] - 1, white.rounding)
    rho = first(rho, count)
    squares = rho.square().sum(-1)
    if white.plain and not white.batch:
        rho = rho[..., : int(count)]
    return CanonicalCorrelations(
        rho.reshape(*white.batch, rho.shape[-1]),
        white.answer(rho.sum(-1) / count),
        white.answer(squares / count),
        white.answer(squares / (white.rank_x * white.rank_y).sqrt()),
        white.answer(squares),
        white.answer(white.rank_x.long()),
        white.answer(white.rank_y.long()),
    )


def pwcca(x: Input, y: Features | None = None) -> Any:
    r"""Projection-weighted CCA (Morcos et al. 2018): canonical correlations, weighted by how much of **x** they carry.

    .. math:: \mathrm{PWCCA} = \frac{\sum_i \alpha_i \rho_i}{\sum_i \alpha_i},\qquad
              \alpha_i = \sum_{j=1}^{p} |\langle h_i, x_j\rangle|

    with h_i the canonical variates on x's side (unit variance) and x_j the centred features of x. x is the weighted
    side; not symmetric, so swap the arguments for y's. Invariant to offsets, to one scale of each side, and to any
    linear map of y, but not to those of x. Where correlations are equal their variates are only defined up to a
    rotation, which the weights of that group can see; where all are equal (n ≤ max(p, q), self-similarity) it does not
    matter.

    google/svcca's code weights the side of lower rank and takes x_j without subtracting the mean, so that it moves with
    offsets; some others weight by the coefficients of the variates.

    Args and raises: as :func:`cca`. Returns a number, or a tensor for statistics and lists.
    """
    white = whitened("PWCCA", x, y)
    # half the time of an SVD; correlations from their variates, as roots of eigenvalues would lose half of the digits
    u = torch.linalg.eigh(white.cross @ white.cross.mT).eigenvectors.flip(-1)
    rho = (u.mT @ white.cross).square().sum(-1).sqrt()
    check_fits(rho.amax(-1) - 1, white.rounding)
    rho = first(rho, white.count)
    alpha = first((u.mT @ white.loadings).abs().sum(-1), white.count)
    return white.answer((alpha * rho).sum(-1) / alpha.sum(-1))


def svcca(x: Input, y: Features | None = None, *, threshold: float = 0.99) -> Any:
    r"""SVCCA (Raghu et al. 2017): mean CCA of the leading principal directions of each side.

    .. math:: k_x = \min\{k : \textstyle\sum_{i\le k} \lambda_i \ge \mathrm{threshold}\cdot\sum_i\lambda_i\},\qquad
              \mathrm{SVCCA} = \frac{1}{\min(k_x, k_y)} \sum_i \rho_i(x V_{k_x}, y V_{k_y})

    λ = σ² the eigenvalues of the covariance, so that the threshold is a share of variance (σ in place of σ², as some
    codes have it, keeps far more directions). Symmetric; invariant to offsets, rotations and one scale of each side.
    Directions that are rounding (see :func:`cca`) are never kept, so that ``threshold=1`` is mean CCA.

    Args:
        threshold: share of the variance to keep, in (0, 1].
        x, y: as :func:`cca`.

    Raises:
        ValueError: threshold outside (0, 1]. Others as :func:`cca`.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1]; got {threshold}")
    problem = problem_of(x, y, rotate=True)
    problem.check_varies("SVCCA")
    flat = problem.flat()
    halves, counts, rounding = [], [], torch.zeros_like(flat.epsilon_x)
    for cov, epsilon, turned in flat.sides():
        values, vectors = principal(cov, epsilon, turned)
        keep = leading(values, threshold)
        roots = torch.where(keep, values, 1.0).sqrt()
        halves.append(vectors * torch.where(keep, 1 / roots, 0.0)[..., None, :])
        counts.append(keep.sum(-1))
        rounding = rounding + 8 * epsilon * values.sum(-1) / torch.where(keep, values, torch.inf).amin(-1)
    cross = halves[0].mT @ flat.stats.cov_xy @ halves[1]
    count = torch.minimum(*counts)
    rho = torch.linalg.svdvals(cross)
    check_fits(rho[..., 0] - 1, rounding)
    return problem.answer(first(rho, count).sum(-1) / count)


def leading(values: Tensor, threshold: float) -> Tensor:
    """Which of descending eigenvalues hold this share of their sum: each as long as those before it do not suffice."""
    before = values.cumsum(-1) - values
    return (before < threshold * values.sum(-1, keepdim=True)) & (values > 0)
