"""One factorisation of (cov_xx + ridge·I) for all that solve with it; batched, rank-revealing where it must be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stitchkern.errors import StatisticsError

PROBES = 8


def probes(p: int, device: torch.device) -> Tensor:
    """±1 (p, 8): E ωωᵀ = I, so that the mean of ‖A⁻¹ω‖² estimates ‖A⁻¹‖²_F (Hutchinson). The same every time."""
    draw = torch.randint(0, 2, (p, PROBES), generator=torch.Generator().manual_seed(p), dtype=torch.float64)
    return (2 * draw - 1).to(device)


def noise(epsilon: Tensor, p: int, largest: Tensor) -> Tensor:
    """What rounding may add to an eigenvalue of the correlation matrix whose largest eigenvalue is at most ``largest``.

    ε (√p + λ): independent errors of entries add up to about √p ε, those of equal rows stay in step and grow with λ.
    """
    return epsilon * (p**0.5 + largest)


def trusted(pivot: Tensor, norm: Tensor, epsilon: Tensor, p: int) -> Tensor:
    """Whether a Cholesky factorisation stands: every pivot is clear of the noise (pivots bound the eigenvalues)."""
    return pivot > 4 * noise(epsilon, p, norm)


def scale_of(cov_xx: Tensor, ridge: Tensor) -> Tensor:
    """√(variance + ridge) of each feature, 1 for a dead one: dividing by it leaves a unit diagonal."""
    square = cov_xx.diagonal(dim1=-2, dim2=-1) + ridge[..., None]
    return torch.where(square > 0, square, 1.0).sqrt()


def correlation(cov_xx: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """A = D⁻¹ (C + ridge·I) D⁻¹ (b, p, p) and D (b, p). A dead feature has its unit row: its map is zero, exactly."""
    scale = scale_of(cov_xx, ridge)
    a = cov_xx / scale[..., :, None] / scale[..., None, :]
    a.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return a, scale


def inverse_norm(probed: Tensor, pivot: Tensor) -> Tensor:
    """‖A⁻¹‖_F from its estimate by probes, which may miss a direction, and its lower bound by the smallest pivot."""
    return torch.maximum(probed, torch.where(pivot > 0, 1 / torch.where(pivot > 0, pivot, 1.0), torch.inf))


def null_space(lost: Tensor, scale: Tensor, rounding: Tensor) -> Tensor:
    """An orthonormal basis, in x's own units, of the directions that x never moves along: D⁻¹ ``lost`` (p, k).

    A map of minimum norm has no part there. Entries below their ``rounding`` are none: divided by the deviation of a
    feature of small scale they would point at that feature.
    """
    return torch.linalg.qr(torch.where(lost.abs() > rounding, lost, 0.0) / scale[:, None]).Q


@dataclass(frozen=True)
class _Deficient:
    """One problem that took the eigendecomposition."""

    corr: Tensor
    half: Tensor  # V Λ^-1/2, zero where a direction was dropped
    null: Tensor
    level: Tensor


class Factor:
    r"""(C + ridge·I)⁺ = H Hᵀ for C (b, p, p), symmetric: :math:`Z = H^\top S` by `forward`, :math:`H Z` by `back`.

    In correlation form. Cholesky for every problem; for those where a pivot is not clear of the noise
    ε (√p + λ_max) an eigendecomposition that drops what is below it.

    Attributes:
        dropped: (b,) directions ignored, dead features included.
        inverse: (b,) estimate of ‖A⁺‖_F of the correlation form; times ``noise``, a relative error.
        noise: (b,).
        by_eigh: (b,) which problems took that road.
    """

    def __init__(self, cov_xx: Tensor, ridge: Tensor, epsilon: Tensor) -> None:
        a, self.scale = correlation(cov_xx, ridge)
        p = a.shape[-1]
        self.dropped = (cov_xx.diagonal(dim1=-2, dim2=-1) + ridge[:, None] == 0).sum(-1)
        norm = a.flatten(1).square().sum(1).sqrt()  # torch.norm of a large float matrix loses digits on a CPU
        self.lower, info = torch.linalg.cholesky_ex(a)
        pivot = self.lower.diagonal(dim1=-2, dim2=-1).square().amin(-1).masked_fill(info != 0, 0.0)
        self.by_eigh = ~trusted(pivot, norm, epsilon, p)
        self.noise = noise(epsilon, p, norm)
        known = torch.cholesky_solve(probes(p, a.device).expand(len(a), p, PROBES), self.lower)
        self.inverse = inverse_norm(known.square().sum(1).mean(1).sqrt(), pivot)
        self._deficient: dict[int, _Deficient] = {}
        for i in self.by_eigh.nonzero()[:, 0].tolist():
            self._decompose(i, a[i], epsilon[i])

    def _decompose(self, i: int, a: Tensor, epsilon: Tensor) -> None:
        values, vectors = torch.linalg.eigh(a)
        p, largest = len(values), values[-1]
        level = noise(epsilon, p, largest)
        if bool(values[0] < -32 * level):
            raise StatisticsError(
                f"cov_xx is indefinite: its correlation form has the eigenvalue {float(values[0]):.3g}, "
                f"which rounding ({float(level):.1g}) does not explain"
            )
        keep = values > level.clamp(min=p * torch.finfo(values.dtype).eps * float(largest))
        kept, lost = vectors[:, keep], vectors[:, ~keep]
        half = torch.zeros_like(vectors)
        half[:, : kept.shape[1]] = kept / values[keep].sqrt()
        self._deficient[i] = _Deficient(a, half, null_space(lost, self.scale[i], 8 * level / values[keep].min()), level)
        self.dropped[i] += int((~keep).sum())
        self.inverse[i] = (1 / values[keep]).square().sum().sqrt()
        self.lower[i] = torch.eye(p, dtype=a.dtype, device=a.device)

    def forward(self, s: Tensor) -> Tensor:
        """Z = Hᵀ S (b, p, q): what S looks like along uncorrelated directions of x with unit variance."""
        scaled = s / self.scale[..., None]
        z = torch.linalg.solve_triangular(self.lower, scaled, upper=False)
        for i, d in self._deficient.items():
            z[i] = d.half.T @ scaled[i]
        return z

    def back(self, z: Tensor) -> Tensor:
        """H Z (b, p, q), in x's own units: the transposed map of least squares where Z = Hᵀ cov_xy."""
        x = torch.linalg.solve_triangular(self.lower.mT, z, upper=True)
        for i, d in self._deficient.items():
            x[i] = d.half @ z[i]
        x = x / self.scale[..., None]
        for i, d in self._deficient.items():
            change = d.null @ (d.null.T @ x[i])
            moved = change * self.scale[i][:, None]
            # what lies along directions of no variance changes no prediction; where it does, rounding drew them
            if bool(((d.corr @ moved) * moved).sum() <= 16 * d.level * z[i].square().sum()):
                x[i] -= change
        return x

    @property
    def method(self) -> tuple[str, ...]:
        return tuple("eigh" if bad else "cholesky" for bad in self.by_eigh.tolist())
