"""From a config to a stitch that is ready to be trained: its start, within its structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

from stitchkern.errors import ShapeError
from stitchkern.matching.task.config import TaskConfig
from stitchkern.nn import ChannelMap, LowRankStitch, SparseStitch, Stitch
from stitchkern.solvers import AffineMap, least_squares, permutation, procrustes, reduced_rank_path, semi_matching
from stitchkern.statistics import Statistics

Affine = tuple[Tensor, Tensor]
#: weights of supports that are solved for at once
_CHUNK = 2**22


@dataclass
class Trainee:
    """A stitch with what its structure asks of training.

    Attributes:
        module: a `Stitch` or a `LowRankStitch`; orthogonal ones carry torch's parametrization.
        mask: (q, p) bool, the weights that there are; None: all.
    """

    module: ChannelMap
    mask: Tensor | None = None

    def affine(self) -> tuple[Tensor, Tensor | None]:
        """W (q, p) and b (q,), with their graph."""
        module: Any = self.module
        weight = module.up @ module.down if isinstance(module, LowRankStitch) else module.weight
        return weight, module.bias

    def plain(self) -> ChannelMap:
        """The stitch without what only training needs."""
        if isinstance(self.module, Stitch) and parametrize.is_parametrized(self.module):
            bias, size, resize = self.module.bias, self.module.size, self.module.resize
            return Stitch.from_affine(self.module.weight.detach(), bias, size=size, resize=resize)
        return self.module


def trainee(
    config: TaskConfig, stats: Statistics, *, dtype: torch.dtype, device: torch.device, **options: Any
) -> Trainee:
    """The stitch at its start. ``options`` (size, resize) go to the stitch.

    Raises:
        ShapeError: a start, mask or rank that does not fit p and q.
        StatisticsError: as the solver that makes the start.
    """
    p, q = stats.p, stats.q
    if config.rank is not None and config.rank > min(p, q):
        raise ShapeError(f"rank must be {min(p, q)} at most, the smaller channel count; got {config.rank}")
    mask = None if config.mask is None else _mask(config.mask, stats)
    if config.rank is not None:
        up, down, bias = _low_rank(config, stats, config.rank)
        module: ChannelMap = LowRankStitch.from_factors(up.to(dtype), down.to(dtype), bias.to(dtype), **options)
        return Trainee(module.to(device))
    weight, bias = _start(config, stats, mask)
    if config.orthogonal:
        u, _, v = torch.linalg.svd(weight, full_matrices=False)
        if config.init == "least_squares":  # the best orthogonal map, not the one nearest to the best map
            weight, bias = _of(procrustes(stats))
        else:
            weight = u @ v
    stitch = Stitch.from_affine(weight.to(dtype), bias.to(dtype), **options).to(device)
    if config.orthogonal:
        parametrizations.orthogonal(stitch, "weight")
        with torch.no_grad():
            stitch.weight = weight.to(stitch.weight)  # type: ignore[assignment]
    return Trainee(stitch, None if mask is None else mask.to(device))


def _start(config: TaskConfig, stats: Statistics, mask: Tensor | None) -> Affine:
    init = config.init
    if not isinstance(init, str):
        weight, bias = (t.to(stats.device) for t in _given(init, stats))
    elif init == "least_squares" and mask is not None:
        return _least_squares_on(mask, stats)
    else:
        weight, bias = (t.to(stats.device) for t in _STARTS[init](config, stats))
    return (weight, bias) if mask is None else (torch.where(mask, weight, 0.0), bias)


def _low_rank(config: TaskConfig, stats: Statistics, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if config.init == "least_squares":
        fit = reduced_rank_path(stats).at(rank)
        up, down = fit.balanced_factors()
        return _padded(up, down, rank, fit.bias)
    if config.init == "random":
        generator = torch.Generator().manual_seed(config.seed)
        down = _uniform((rank, stats.p), stats.p, generator)
        up = _uniform((stats.q, rank), rank, generator)
        return up, down, _uniform((stats.q,), rank, generator)
    weight, bias = _start(config, stats, None)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    there = min(rank, int((s > 1e-12 * s[0]).sum()))
    root = s[:there].sqrt()
    return _padded(u[:, :there] * root, root[:, None] * v[:there], rank, bias)


def _padded(up: Tensor, down: Tensor, rank: int, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``rank`` columns and rows also where the start has fewer; down is not zero there, so that they can learn."""
    if (missing := rank - up.shape[1]) > 0:
        up = torch.cat([up, up.new_zeros(len(up), missing)], 1)
        extra = torch.eye(down.shape[1], dtype=down.dtype, device=down.device)[:missing]
        down = torch.cat([down, extra * (down.abs().max() if len(down) else 1.0)])
    return up, down, bias


def _of(fit: AffineMap) -> Affine:
    return fit.weight, fit.bias


def _random(config: TaskConfig, stats: Statistics) -> Affine:
    generator = torch.Generator().manual_seed(config.seed)
    weight = _uniform((stats.q, stats.p), stats.p, generator)
    return weight, _uniform((stats.q,), stats.p, generator)


def _uniform(shape: tuple[int, ...], width: int, generator: torch.Generator) -> Tensor:
    """As torch.nn.Linear draws its parameters."""
    bound = 1 / math.sqrt(width)
    return torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)


def _identity(config: TaskConfig, stats: Statistics) -> Affine:
    if stats.p != stats.q:
        raise ShapeError(f"init='identity' needs as many channels on both sides; got {stats.p} and {stats.q}")
    return torch.eye(stats.p, dtype=torch.float64), torch.zeros(stats.q, dtype=torch.float64)


def _random_permutation(config: TaskConfig, stats: Statistics) -> Affine:
    """Every channel of the smaller side has one partner of its own."""
    generator = torch.Generator().manual_seed(config.seed)
    weight = torch.zeros(stats.q, stats.p, dtype=torch.float64)
    pairs = min(stats.p, stats.q)
    rows = torch.randperm(stats.q, generator=generator)[:pairs]
    weight[rows, torch.randperm(stats.p, generator=generator)[:pairs]] = 1
    return weight, torch.zeros(stats.q, dtype=torch.float64)


_STARTS: dict[str, Callable[[TaskConfig, Statistics], Affine]] = {
    "least_squares": lambda config, stats: _of(least_squares(stats)),
    "procrustes": lambda config, stats: _of(procrustes(stats)),
    "permutation": lambda config, stats: _of(permutation(stats)),
    "random": _random,
    "identity": _identity,
    "random_permutation": _random_permutation,
}


def _given(init: Any, stats: Statistics) -> Affine:
    if isinstance(init, (AffineMap, Stitch)):
        weight, bias = init.weight, init.bias
    elif isinstance(init, LowRankStitch):
        weight, bias = init.up @ init.down, init.bias
    elif isinstance(init, SparseStitch):
        weight, bias = init.to_dense(), init.bias
    elif isinstance(init, tuple) and len(init) == 2 and isinstance(init[0], Tensor):
        weight, bias = init
    else:
        raise TypeError(f"init must be a name, an AffineMap, a stitch or (weight, bias); got {type(init).__name__}")
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if tuple(weight.shape) != (stats.q, stats.p) or tuple(bias.shape) != (stats.q,):
        raise ShapeError(
            f"init must be a map with weight ({stats.q}, {stats.p}) and bias ({stats.q},); "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if not bool(weight.isfinite().all() and bias.isfinite().all()):
        raise ShapeError("init holds NaN or Inf")
    return weight.detach().double(), bias.detach().double()


def _mask(mask: str | Tensor, stats: Statistics) -> Tensor:
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool or tuple(mask.shape) != (stats.q, stats.p):
            raise ShapeError(f"mask must be ({stats.q}, {stats.p}) torch.bool; got {tuple(mask.shape)} {mask.dtype}")
        return mask.to(stats.device)
    if mask == "permutation":
        found = permutation(stats, criterion="correlation")
    else:
        found = semi_matching(stats, criterion=mask, scale=False)
    return found.weight != 0


def _least_squares_on(mask: Tensor, stats: Statistics) -> Affine:
    """For each channel of y, least squares on those of x that the mask leaves it, of least norm in correlation form."""
    deviation = stats.cov_xx.diagonal().sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)
    gram, cross = stats.cov_xx / scale / scale[:, None], stats.cov_xy / scale[:, None]
    eye = torch.eye(stats.p, dtype=gram.dtype, device=gram.device)
    rows = []
    chunk = max(_CHUNK // stats.p**2, 1)
    for some, target in zip(mask.split(chunk), cross.mT.split(chunk), strict=True):
        inside = some[:, :, None] & some[:, None, :]
        own = torch.where(inside, gram, torch.where(eye.bool(), eye, 0.0))
        inverse = torch.linalg.pinv(own, rtol=max(float(stats.epsilon) * stats.p, 1e-12), hermitian=True)
        solved = (inverse @ torch.where(some, target, 0.0)[..., None])[..., 0]
        rows.append(torch.where(some, solved, 0.0) / scale)
    weight = torch.cat(rows)
    return weight, stats.mean_y - weight @ stats.mean_x
