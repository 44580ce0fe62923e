"""HSIC of every two of several representations: in the space of samples from kernel sums, or of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.errors import NotFiniteError, ShapeError, StatisticsError
from stitchkern.moments import Moments
from stitchkern.similarity.features import tensor_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stitchkern.similarity.features import Features

    Bandwidth = float | str | Sequence[float | str] | Tensor | None

SPACES = ("auto", "samples", "features")
#: Samples whose distances stand for all in a median, and their seed.
MEDIAN_SAMPLES, MEDIAN_SEED = 512, 0
#: biased over unbiased HSIC from which on the second takes float64 products
CANCELS = 4.0
#: bytes of float64 copies of features that exist at a time
_CHUNK = 32 << 20


def check_kernel(kernel: str, bandwidth: Bandwidth, space: str) -> None:
    if kernel not in ops.HSIC_KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(ops.HSIC_KERNELS)}; got {kernel!r}")
    if space not in SPACES:
        raise ValueError(f"space must be {', '.join(SPACES[:-1])} or {SPACES[-1]}; got {space!r}")
    if kernel == "linear" and bandwidth is not None:
        raise ValueError("bandwidth is given, but the linear kernel has none")
    if is_several(bandwidth) and not len(bandwidth):  # type: ignore[arg-type]
        raise ValueError("bandwidth must be a number or hold at least one; got none")
    if kernel != "linear" and space == "features":
        raise ValueError(f"kernel {kernel!r} has no finite space of features; space must be auto or samples")


def sides_of(representations: Sequence[Features], names: Sequence[str]) -> list[Tensor]:
    """Features (n, p_a) as tensors of the caller's types that keep their graph; checked, but not their values."""
    found = [tensor_of(name, t) for name, t in zip(names, representations, strict=True)]
    for name, t in zip(names, found, strict=True):
        if t.ndim != 2:
            raise ShapeError(f"{name} must be (n, p), as all sides with the same n; got {tuple(t.shape)}")
        if len(t) != len(found[0]):
            shapes = " and ".join(str(tuple(s.shape)) for s in (found[0], t))
            raise ShapeError(f"{names[0]} and {name} must be (n, p) and (n, q) with the same n; got {shapes}")
        if t.shape[1] == 0:
            raise ShapeError(f"{name} must have at least one feature; got {tuple(t.shape)}")
        if t.device != found[0].device:
            raise ValueError(f"{names[0]} and {name} must be on one device; got {found[0].device} and {t.device}")
    return [t if t.is_floating_point() and t.dtype.itemsize > 1 else t.double() for t in found]


def in_features(sides: Sequence[Tensor], kernel: str, space: str) -> bool:
    """Whether covariances (n (Σp)² / 2 multiply-adds) are the cheaper way, or wanted, instead of n² Σp / 2."""
    return kernel == "linear" and (space == "features" or (space == "auto" and len(sides[0]) >= _width(sides)))


def hsic_of_sides(
    sides: Sequence[Tensor], names: Sequence[str], *, kernel: str, bandwidth: Bandwidth, unbiased: bool, space: str
) -> Tensor:
    """HSIC (b, s, s) float64 of every two sides, for each bandwidth, with the graph of what requires a gradient."""
    n = len(sides[0])
    if n < (4 if unbiased else 2):
        least = "unbiased HSIC needs at least 4 samples" if unbiased else "HSIC needs at least two samples"
        raise StatisticsError(f"{least}; got {n}")
    if in_features(sides, kernel, space):
        squares, norms = _Covariances.apply(unbiased, "highest", *sides)
        found = _from_covariances(n, squares, norms if unbiased else None)[None]
        if unbiased and cancels(squares.diagonal(), found[0].diagonal()):
            found = _from_covariances(n, *_Covariances.apply(unbiased, "float64", *sides))[None]
    else:
        with torch.no_grad():
            widths, shifts = _widths_and_shifts(sides, names, kernel, bandwidth)
        code = ops.HSIC_KERNELS[kernel]
        found = _from_sums(*ops.hsic_sums(list(sides), [code] * len(sides), widths, shifts), unbiased)
    if not bool(found.isfinite().all()):
        _raise_not_finite(sides, names)
    return found.triu() + found.triu(1).mT  # which rounding may have made unsymmetric


def _raise_not_finite(sides: Sequence[Tensor], names: Sequence[str]) -> NoReturn:
    for name, t in zip(names, sides, strict=True):
        if not bool(t.isfinite().all()):
            raise NotFiniteError(f"{name} holds NaN or Inf")
    raise StatisticsError("HSIC overflows float64; scale the features down")


def _width(sides: Sequence[Tensor]) -> int:
    return sum(t.shape[1] for t in sides)


# ------------------------------------------------------------------------------------------------ space of samples


def _from_sums(rows: Tensor, diagonal: Tensor, sums: Tensor, unbiased: bool) -> Tensor:
    """HSIC (b, s, s) from row sums (s, b, n), diagonals, and Σ K∘L off the diagonal (b, s, s).

    What row sums have in common is taken out first.
    """
    n = rows.shape[-1]
    if unbiased:
        least, pairs, entries = n - 2, n * (n - 3), n * (n - 1)
    else:
        rows = rows + diagonal
        each = diagonal.transpose(0, 1)
        sums = sums + each @ each.mT
        least, pairs, entries = n, n * n, n * n
    total = rows.sum(-1).T
    spread = (rows - rows.mean(-1, keepdim=True)).transpose(0, 1)
    return (sums - total[:, :, None] * total[:, None, :] / entries - 2 / least * (spread @ spread.mT)) / pairs


def hsic_of_matrices(matrices: Sequence[Tensor], *, unbiased: bool) -> Tensor:
    """HSIC (s, s) of every two of s kernel matrices (n, n) float64."""
    every = torch.stack(list(matrices))
    diagonal = every.diagonal(dim1=1, dim2=2).clone()
    every.diagonal(dim1=1, dim2=2).zero_()  # for whatever is far from the others rules it, and has no place in sums
    flat = every.flatten(1)
    found = _from_sums(every.sum(2)[:, None], diagonal[:, None], (flat @ flat.T)[None], unbiased)[0]
    return found.triu() + found.triu(1).mT


def _widths_and_shifts(
    sides: Sequence[Tensor], names: Sequence[str], kernel: str, bandwidth: Bandwidth
) -> tuple[Tensor, Tensor]:
    """σ (s, b) of each side, and the mean of its kernel over some pairs: less that, sums keep their digits."""
    wanted: list[Any] = list(bandwidth) if is_several(bandwidth) else [bandwidth]  # type: ignore[arg-type]
    widths = torch.ones(len(sides), len(wanted), dtype=torch.float64)
    shifts = torch.zeros_like(widths)
    if kernel != "linear":
        for a, (name, t) in enumerate(zip(names, sides, strict=True)):
            distance = some_distances(t)
            if not bool(distance.isfinite().all()):
                _raise_not_finite(sides, names)
            for j, one in enumerate(wanted):
                sigma = sigma_of(one, name, distance)
                exponent = (distance / sigma).square() / 2 if kernel == "rbf" else distance / sigma
                mean = torch.exp(-exponent).mean().item()
                widths[a, j], shifts[a, j] = sigma, mean if math.isfinite(mean) else 0.0
    return widths.to(sides[0].device), shifts.to(sides[0].device)


def is_several(bandwidth: Bandwidth) -> bool:
    return (isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str)) or getattr(bandwidth, "ndim", 0) > 0


def sigma_of(bandwidth: Any, name: str, distance: Tensor) -> float:
    """σ of one side from what the caller asked for; `distance`: between some of its samples."""
    multiple = "median" if bandwidth is None else bandwidth
    if isinstance(multiple, str):
        number, _, unit = multiple.rpartition("median")
        try:
            factor = float(number) if number.strip() else 1.0
        except ValueError:
            factor = math.nan
        if unit.strip() or "median" not in multiple or not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f'bandwidth must be a positive number, "median" or "0.5 median"; got {bandwidth!r}')
        middle = torch.quantile(distance, 0.5).item()
        if middle == 0:
            why = "does not vary" if not bool(distance.any()) else "holds too many equal samples"
            raise StatisticsError(f"the median distance of {name} is 0: it {why}; give bandwidth as a number")
        return factor * middle
    sigma = float(bandwidth)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"bandwidth must be positive and finite; got {bandwidth!r}")
    return sigma


def some_distances(t: Tensor) -> Tensor:
    """All distances between two of at most MEDIAN_SAMPLES samples, in float64."""
    if len(t) > MEDIAN_SAMPLES:
        chosen = torch.randperm(len(t), generator=torch.Generator().manual_seed(MEDIAN_SEED))[:MEDIAN_SAMPLES]
        t = t[chosen.to(t.device)]
    return torch.pdist(t.double())


# ------------------------------------------------------------------------------------------------ space of features


def _from_covariances(n: int, squares: Tensor, norms: Tensor | None) -> Tensor:
    """HSIC (s, s) from ‖C_ac‖² and, where unbiased, ‖x_i − x̄‖² (s, n): the diagonals of the kernel matrices."""
    if norms is None:
        return squares
    traces = norms.sum(1)
    joint = norms @ norms.T
    return (n * n * squares + torch.outer(traces, traces) / ((n - 1) * (n - 2)) - joint * n / (n - 2)) / (n * (n - 3))


def cancels(squares: Tensor, unbiased: Tensor) -> bool:
    """Whether unbiased HSIC of sides with themselves is so much smaller than the biased one that float32 products are
    not good enough: few samples that are far larger than the others, whose own products it leaves out."""
    return bool((squares > CANCELS * unbiased.abs()).any())


class _Covariances(torch.autograd.Function):
    r"""‖C_ac‖² (s, s) of every two sides and, if wanted, ‖x_i − x̄‖² (s, n).

    With G the gradient of the first, H = G + Gᵀ, and g that of the second:
    ∂/∂X_a = (2/n) Σ_c H_ac X̃_c C_ca + 2 (diag(g_a) X̃_a less its mean).
    """

    @staticmethod
    def forward(ctx: Any, with_norms: bool, precision: str, *sides: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [t.shape[1] for t in sides]
        if len(sides) == 2:
            m = Moments(*sizes, precision=precision).update(*sides)
            cov = torch.cat([torch.cat([m.cov_xx, m.cov_xy], 1), torch.cat([m.cov_xy.T, m.cov_yy], 1)])
            mean = torch.cat([m.mean_x, m.mean_y])
        else:
            m = Moments(sum(sizes), precision=precision)
            for rows in _chunks(sides):
                m.update(torch.cat([t[rows] for t in sides], 1))
            cov, mean = m.cov_xx, m.mean_x
        blocks = [row.split(sizes, 1) for row in cov.split(sizes, 0)]
        squares = torch.stack([torch.stack([block.square().sum() for block in row]) for row in blocks])
        norms = cov.new_empty(len(sides), len(sides[0]) if with_norms else 0)
        if with_norms:
            for rows in _chunks(sides):
                for a, (t, middle) in enumerate(zip(sides, mean.split(sizes), strict=True)):
                    norms[a, rows] = (t[rows].double() - middle).square().sum(1)
        ctx.with_norms = with_norms
        ctx.save_for_backward(cov, mean, *sides)
        return squares, norms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_squares: Tensor, grad_norms: Tensor) -> tuple[Any, ...]:
        cov, mean, *sides = ctx.saved_tensors
        n, sizes = len(sides[0]), [t.shape[1] for t in sides]
        both = grad_squares + grad_squares.T
        of = torch.arange(len(sides), device=cov.device).repeat_interleave(torch.tensor(sizes, device=cov.device))
        maps = (2 / n) * both[of[:, None], of] * cov  # (P, P): column block a makes the gradient of side a
        middles = mean.split(sizes)
        shares = []  # of every sample in the mean of what norms add
        if ctx.with_norms:
            for g, t, middle in zip(grad_norms, sides, middles, strict=True):
                shares.append(2 / n * sum(g[rows] @ (t[rows].double() - middle) for rows in _chunks([t])))
        found = [torch.empty_like(t) if need else None for t, need in zip(sides, ctx.needs_input_grad[2:], strict=True)]
        for rows in _chunks(sides):
            x = torch.cat([t[rows].double() - mid for t, mid in zip(sides, middles, strict=True)], 1)
            for a, (grad, columns) in enumerate(zip(found, maps.split(sizes, 1), strict=True)):
                if grad is None:
                    continue
                part = x @ columns
                if ctx.with_norms:
                    own = x.split(sizes, 1)[a]
                    part += 2 * grad_norms[a, rows, None] * own - shares[a]
                grad[rows] = part.to(grad.dtype)
        return None, None, *found


def _chunks(sides: Sequence[Tensor]) -> Iterator[slice]:
    n, step = len(sides[0]), max(1, _CHUNK // (8 * _width(sides)))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
