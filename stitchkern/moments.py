"""Streaming moments: everything that linear questions about two representations need, in one pass."""

from __future__ import annotations

import operator
import os
from typing import Any

import torch
from torch import Tensor

from stitchkern import ops
from stitchkern.errors import NotFiniteError, StatisticsError
from stitchkern.rows import batch_views

_T = ops.TOTALS
#: what a product of float32 numbers may be off by, relative; a CPU always multiplies as at "highest"
_ROUNDOFF = {"float64": 2.0**-53, "highest": 2.0**-24, "high": 2.0**-17, "medium": 2.0**-8}
_FORMAT = "stitchkern-moments-1"


class Moments:
    r"""Count, means and second moments of x (n, p) and, where given, y (n, q), streamed in one pass.

    .. math::
        \bar x = \tfrac1W \sum_i w_i x_i, \qquad
        \mathrm{cov}_{xy} = \tfrac1W \sum_i w_i (x_i-\bar x)(y_i-\bar y)^\top, \qquad W = \sum_i w_i

    (population covariance: divided by the count). The state is float64 and takes O((p+q)²) memory whatever the
    number of samples. Each batch is shifted by its own pilot mean before anything is multiplied, so that features
    far from zero lose nothing, and partial sums are promoted to float64 every few hundred rows. The same batches give
    the same bits, whatever the number of threads. Two-sided moments (q given) also keep the sums of third and fourth
    order that make unbiased linear CKA exact.

    Args:
        p: number of features (channels) of x.
        q: number of features of y; None for one-sided moments.
        precision: of the products, in the words of ``torch.set_float32_matmul_precision``. ``"highest"``:
            float32-accurate or better; ``"high"`` and ``"medium"`` may use bfloat16 splits on a GPU (relative error
            about 2e-6 and 4e-3) and equal ``"highest"`` on a CPU, where that is the fastest; ``"float64"``: float64.
            float64 inputs are always multiplied in float64.
        device: where the state lives; by default the device of the first batch.
        check_finite: look for NaN, Inf and negative weights while reading (costs next to nothing). On a CPU the update
            raises; on a GPU, where that would force a synchronisation, the next read of a statistic raises. Either way
            the batch that held them was left out whole.

    Raises:
        ValueError: p or q below 1, or an unknown precision.
    """

    def __init__(
        self,
        p: int,
        q: int | None = None,
        *,
        precision: str = "highest",
        device: torch.device | str | None = None,
        check_finite: bool = True,
    ) -> None:
        p, q = operator.index(p), None if q is None else operator.index(q)
        if p < 1 or (q is not None and q < 1):
            raise ValueError(f"p and q must be at least 1; got p={p}, q={q}")
        if precision not in ops.PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(ops.PRECISIONS)}; got {precision!r}")
        self.p, self.q = p, q
        self.precision, self.check_finite = precision, check_finite
        self._device_is_open = device is None
        #: unit roundoff of the least accurate products so far: what solvers take as the noise of the moments
        self.epsilon = _ROUNDOFF["float64"]
        with torch.inference_mode(False):  # the state outlives any inference mode around
            self._buffers = {
                name: torch.zeros(shape, dtype=torch.float64, device=device or "cpu")
                for name, shape in _shapes(p, q or 0).items()
            }

    # ------------------------------------------------------------------------------------------ filling

    def update(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        channel_dim: int | None = None,
    ) -> Moments:
        """Add a batch; returns self.

        Args:
            x: (n, p), (n, t, p) or (n, p, h, w): float64, float32, bfloat16 or float16, any strides; read in place,
                never copied or transposed. Every position of every sample is a row.
            y: likewise with q channels and as many samples and positions; given exactly when q was.
            weight: non-negative, (n,) or one per row in x's layout without its channels. A 0/1 mask drops rows.
            channel_dim: of x and y; by default 1 for 4-D and the last one otherwise.

        Raises:
            ShapeError: channels, samples or positions do not fit.
            TypeError: not a floating-point tensor.
            NotFiniteError: NaN, Inf or a negative weight.
            ValueError: another device, or y missing. Whatever is raised, nothing was updated.
        """
        x4, y4, w3 = batch_views(x, y, weight, self.p, self.q, channel_dim)
        if self._device_is_open:
            self.to(x4.device)
            self._device_is_open = False
        if x4.device != self.device:
            raise ValueError(f"these moments live on {self.device}; got x on {x4.device}")
        if y4 is not None and x4.is_cuda and y4.dtype != x4.dtype:  # the GPU kernels read one type
            common = torch.promote_types(x4.dtype, y4.dtype)
            x4, y4 = x4.to(common), y4.to(common)
        code = ops.PRECISIONS[self.precision]
        ops.moments_update_(**self._buffers, x=x4, y=y4, weight=w3, precision=code, check_finite=self.check_finite)
        exact = torch.float64 in (x4.dtype, None if y4 is None else y4.dtype)
        used = "float64" if exact or self.precision == "float64" else self.precision if x4.is_cuda else "highest"
        self.epsilon = max(self.epsilon, _ROUNDOFF[used])
        if not self._buffers["totals"].is_cuda:
            self._raise_if_bad()
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the statistics of other, as if its batches had been given to this one; exact to float64. Returns self."""
        if (self.p, self.q) != (other.p, other.q):
            raise StatisticsError(
                f"other must have p={self.p}, q={self.q} like these moments; got p={other.p}, q={other.q}"
            )
        self._raise_if_bad()
        other._raise_if_bad()
        theirs = other._state(self.device)
        if self._buffers["totals"][_T["weight"]] == 0:  # no sums yet that an origin matters to
            self._buffers["origin"].copy_(theirs["origin"])
        theirs = recentred(theirs, self._buffers["origin"], self.p)
        self.epsilon = max(self.epsilon, other.epsilon)
        for name in ("second", "first", "third", "totals"):
            self._buffers[name].add_(theirs[name])
        return self

    def all_reduce(self, group: Any = None) -> Moments:
        """Sum the moments of all processes of a torch.distributed group, in every process. Returns self.

        All processes move to one origin first (the mean over all of them), so that a plain sum is exact to float64.
        """
        import torch.distributed as dist

        self._raise_if_bad()
        b = self._buffers
        weight = b["totals"][_T["weight"]]
        mean = torch.cat([weight[None], b["first"] + weight * b["origin"]])
        dist.all_reduce(mean, group=group)
        if mean[0] > 0:
            self._buffers = recentred(self._state(self.device), mean[1:] / mean[0], self.p)
        summed = [self._buffers[name] for name in ("second", "first", "third", "totals")]
        flat = torch.cat([t.reshape(-1) for t in summed])
        dist.all_reduce(flat, group=group)
        epsilon = torch.tensor(self.epsilon, dtype=torch.float64, device=self.device)
        dist.all_reduce(epsilon, op=dist.ReduceOp.MAX, group=group)
        self.epsilon = float(epsilon)
        for t, part in zip(summed, flat.split([t.numel() for t in summed]), strict=True):
            t.copy_(part.view_as(t))
        return self

    def reset(self) -> Moments:
        """Forget everything that was added. Returns self."""
        for t in self._buffers.values():
            t.zero_()
        self.epsilon = _ROUNDOFF["float64"]
        return self

    # ------------------------------------------------------------------------------------------ reading

    @property
    def device(self) -> torch.device:
        return self._buffers["second"].device

    @property
    def rows(self) -> int:
        """Number of rows (samples × positions) seen, whatever their weight."""
        return int(self._total("rows"))

    @property
    def count(self) -> float:
        """W = Σ w: what sums are divided by. The number of rows where no weights were given."""
        return self._total("weight")

    @property
    def effective_count(self) -> float:
        """(Σ w)² / Σ w²: the number of equally weighted rows that carry as much information (Kish)."""
        return self.count * (self.count / self._total("weight_sq")) if self.count else 0.0

    @property
    def mean_x(self) -> Tensor:
        """Mean of x (p,), float64."""
        return self._mean()[: self.p]

    @property
    def mean_y(self) -> Tensor:
        """Mean of y (q,), float64."""
        self._need_y()
        return self._mean()[self.p :]

    @property
    def cov_xx(self) -> Tensor:
        """Population covariance of x (p, p), float64, exactly symmetric."""
        return self._cov(slice(None, self.p), slice(None, self.p))

    @property
    def cov_xy(self) -> Tensor:
        """Population covariance of x and y (p, q), float64."""
        self._need_y()
        return self._cov(slice(None, self.p), slice(self.p, None))

    @property
    def cov_yy(self) -> Tensor:
        """Population covariance of y (q, q), float64, exactly symmetric."""
        self._need_y()
        return self._cov(slice(self.p, None), slice(self.p, None))

    def relative_roundoff(self) -> float:
        """``epsilon``, or what subtracting the mean cost where the origin lies far from the data, at most 2^-24.

        Covariances are E[zzᵀ] − E[z]E[z]ᵀ about the origin: of a feature with E z² = r var they keep 2^-53 r.
        """
        if self.count <= 0:
            return self.epsilon
        b = self._buffers
        square = b["second"].diagonal() / b["totals"][_T["weight"]]
        variance = square - (b["first"] / b["totals"][_T["weight"]]).square()
        live = variance > 2.0**-48 * square
        far = float((square[live] / variance[live]).max()) if bool(live.any()) else 1.0
        return max(self.epsilon, min(2.0**-53 * far, 2.0**-24))

    def centred_norms(self) -> Tensor:
        """Σ w a², Σ w a b, Σ w b² (3,) with a = ‖x − x̄‖², b = ‖y − ȳ‖²: what unbiased HSIC adds to the covariances."""
        self._need_y()
        state = recentred(self._state(), self._mean(), self.p)
        return state["totals"][[_T["norm_xx"], _T["norm_xy"], _T["norm_yy"]]]

    # ------------------------------------------------------------------------------------------ moving and keeping

    def to(self, device: torch.device | str) -> Moments:
        """Move the state to a device, in place. Returns self."""
        self._buffers = self._state(torch.device(device))
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as a safetensors file."""
        from safetensors.torch import save_file

        self._raise_if_bad()
        meta = {
            "format": _FORMAT,
            "p": str(self.p),
            "q": str(self.q or 0),
            "precision": self.precision,
            "epsilon": repr(self.epsilon),
            "check_finite": str(self.check_finite),
        }
        save_file({k: v.contiguous() for k, v in self._state(torch.device("cpu")).items()}, os.fspath(path), meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Moments:
        """Read what :meth:`save` wrote.

        Raises:
            StatisticsError: the file is damaged, or no moments file. FileNotFoundError: there is none.
        """
        meta, state = read_statistics(path, _FORMAT)
        try:
            p, q, precision, epsilon = int(meta["p"]), int(meta["q"]), meta["precision"], float(meta["epsilon"])
        except (KeyError, ValueError) as e:
            raise StatisticsError(f"{path} is damaged: its header is {meta}") from e
        if {k: tuple(v.shape) for k, v in state.items()} != _shapes(p, q):
            raise StatisticsError(f"{path} is damaged: its tensors do not fit p={p}, q={q}")
        finite = all(v.dtype == torch.float64 and bool(v.isfinite().all()) for v in state.values())
        if not (finite and 0 < epsilon < 1 and state["totals"].min() >= 0 and precision in ops.PRECISIONS):
            raise StatisticsError(f"{path} is damaged: it holds impossible values")
        check_finite = meta.get("check_finite") != "False"
        m = cls(p, q or None, precision=precision, device=device or "cpu", check_finite=check_finite)
        m.epsilon = epsilon
        m._buffers = {k: v.to(m.device) for k, v in state.items()}
        m._device_is_open = device is None and m.rows == 0
        return m

    def __repr__(self) -> str:
        rows = int(self._buffers["totals"][_T["rows"]])
        return f"Moments(p={self.p}, q={self.q}, rows={rows}, precision={self.precision!r}, device='{self.device}')"

    # ------------------------------------------------------------------------------------------ inside

    def _state(self, device: torch.device | None = None) -> dict[str, Tensor]:
        return self._buffers if device is None else {k: v.to(device) for k, v in self._buffers.items()}

    def _total(self, name: str) -> float:
        self._raise_if_bad()
        return float(self._buffers["totals"][_T[name]])

    def _raise_if_bad(self) -> None:
        where = [_T["bad_x"], _T["bad_y"], _T["bad_weight"]]
        bad_x, bad_y, bad_weight = self._buffers["totals"][where].tolist()
        if not (bad_x or bad_y or bad_weight):
            return
        self._buffers["totals"][where] = 0.0
        if bad_weight:
            raise NotFiniteError("weight holds a negative, NaN or infinite value; the batch was left out")
        raise NotFiniteError(f"{'x' if bad_x else 'y'} holds NaN or Inf; the batch was left out")

    def _need_y(self) -> None:
        if self.q is None:
            raise StatisticsError("these moments are one-sided: construct Moments(p, q) and update(x, y)")

    def _mean(self) -> Tensor:
        if self.count <= 0:
            raise StatisticsError("no samples were added (or all had weight zero): the mean is undefined")
        b = self._buffers
        return b["origin"] + b["first"] / b["totals"][_T["weight"]]

    def _cov(self, i: slice, j: slice) -> Tensor:
        if self.rows < 2 or self.count <= 0:
            raise StatisticsError(f"covariance needs at least two samples; got {self.rows}")
        b = self._buffers
        total = b["totals"][_T["weight"]]
        block = b["second"][i, j]
        if i == j:
            block = block.triu() + block.triu(1).T
        mean, square = b["first"] / total, b["second"].diagonal() / total  # about the origin
        # A constant feature leaves rounding errors of its square behind; what is below them is no variance.
        constant = (square - mean.square() <= 2.0**-48 * square) & square.isfinite()
        cov = block / total - torch.outer(mean[i], mean[j])
        cov = cov.masked_fill(constant[i, None] | constant[j], 0.0)
        if self.check_finite and not bool(cov.isfinite().all()):
            raise StatisticsError("the second moments overflow float64; scale the features down")
        return cov


def read_statistics(path: str | os.PathLike[str], wanted: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file of the wanted format; `StatisticsError` for any other."""
    from safetensors import safe_open

    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"no statistics file at {path}")
    if not os.path.isfile(path):
        raise StatisticsError(f"{path} cannot be read as a statistics file: it is no file")
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except Exception as e:  # safetensors raises its own type, OSError and others for damaged files
        raise StatisticsError(f"{path} cannot be read as a statistics file: {e}") from e
    if meta.get("format") != wanted:
        raise StatisticsError(
            f"{path} is no statistics file of stitchkern (format {meta.get('format')!r}, expected {wanted!r})"
        )
    return meta, tensors


def _shapes(p: int, q: int) -> dict[str, tuple[int, ...]]:
    size = p + q
    third = (2 if q else 0, size)
    return {"second": (size, size), "first": (size,), "third": third, "origin": (size,), "totals": (len(_T),)}


def recentred(state: dict[str, Tensor], origin: Tensor, p: int) -> dict[str, Tensor]:
    """The same sums about another origin: with d = origin′ − origin, z′ = z − d, a′ = a − 2·dₓᵀzₓ + ‖dₓ‖².

    Exact algebra in float64 on the sums alone; ``third`` and the norms are included where they are kept.
    """
    first, totals = state["first"], state["totals"].clone()
    weight = totals[_T["weight"]]
    second = state["second"].triu() + state["second"].triu(1).T
    d = origin - state["origin"]
    moved = second - torch.outer(d, first) - torch.outer(first, d) + weight * torch.outer(d, d)
    third = state["third"]
    if len(third):
        x, y = slice(None, p), slice(p, None)
        sums = []  # per side: shift squared, Σ u, Σ a, the vector Σ u z, with u = d·z on that side
        for side in (x, y):
            sums.append(
                (
                    d[side] @ d[side],
                    d[side] @ first[side],
                    second[side, side].diagonal().sum(),
                    second[:, side] @ d[side],
                )
            )
        for i, j, name in ((0, 0, "norm_xx"), (0, 1, "norm_xy"), (1, 1, "norm_yy")):
            si, sj = (x, y)[i], (x, y)[j]
            (ci, ui, ai, uz), (cj, uj, aj, _) = sums[i], sums[j]
            av, bu = d[sj] @ third[i][sj], d[si] @ third[j][si]  # Σ a v and Σ b u
            totals[_T[name]] += (
                -2 * av
                - 2 * bu
                + cj * ai
                + ci * aj
                + 4 * (uz[sj] @ d[sj])
                - 2 * cj * ui
                - 2 * ci * uj
                + ci * cj * weight
            )
        third = torch.stack(
            [
                t - 2 * uz + c * first - d * (a - 2 * u + c * weight)
                for t, (c, u, a, uz) in zip(third, sums, strict=True)
            ]
        )
    return {
        "second": moved,
        "first": first - weight * d,
        "third": third,
        "origin": origin.clone(),
        "totals": totals,
    }
