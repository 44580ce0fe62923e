"""The accurate road: a streaming QR factorisation, for features too collinear for their covariances."""

from __future__ import annotations

import operator
import os
from typing import Any

import torch
from torch import Tensor

from stitchkern.errors import NotFiniteError, StatisticsError
from stitchkern.moments import read_statistics
from stitchkern.rows import batch_views, pieces
from stitchkern.statistics import Statistics

_ROUNDOFF = 2.0**-53
_FORMAT = "stitchkern-qr-1"


class StreamingQR:
    r"""The triangular factor of [1, x, y], streamed and mergeable like :class:`Moments` (TSQR), in float64.

    .. math::
        [1,\ x-o,\ y-o] = Q \sqrt{W}
        \begin{pmatrix} 1 & \ast & \ast \\ & R_{xx} & R_{xy} \\ & & R_{yy} \end{pmatrix},
        \qquad M^\top = R_{xx}^{-1} R_{xy}, \quad \text{residual} = \|R_{yy}\|_F^2 / W

    Its error grows with the condition of x, that of covariances with its square: least squares is right up to cond(x)
    about 1e10 here, up to 1e5 from float64 :class:`Moments`. Costs four times their multiplications and the same
    O((p+q)²) memory; blocks of rows are stacked under the factor and reduced again by Householder reflections, which
    leave the error of each feature relative to that feature, whatever its scale (Demmel et al. 2012).

    Args:
        p, q: number of features (channels) of x and y.
        device: where the factor lives; by default the device of the first batch.
    """

    def __init__(self, p: int, q: int, *, device: torch.device | str | None = None) -> None:
        self.p, self.q = operator.index(p), operator.index(q)
        if self.p < 1 or self.q < 1:
            raise ValueError(f"p and q must be at least 1; got p={p}, q={q}")
        self._device = None if device is None else torch.device(device)
        self.reset()

    def reset(self) -> StreamingQR:
        """Forget everything that was added. Returns self."""
        size = 1 + self.p + self.q
        #: at least so many rows are reduced at a time: half of the work then goes into new rows
        self._block = max(2 * size, 512)
        self._origin: Tensor | None = None
        self._parts: list[Tensor] = []  # the factor first, then rows that wait
        self._waiting = 0
        self.rows, self.count = 0, 0.0
        return self

    @property
    def device(self) -> torch.device:
        return self._device or torch.device("cpu")

    def update(
        self,
        x: Tensor,
        y: Tensor,
        *,
        weight: Tensor | None = None,
        channel_dim: int | None = None,
    ) -> StreamingQR:
        """Add a batch; arguments and errors as in :meth:`Moments.update`. Returns self.

        Raises:
            NotFiniteError: NaN, Inf or a negative weight (on every device at once).
        """
        x4, y4, w3 = batch_views(x, y, weight, self.p, self.q, channel_dim)
        assert y4 is not None
        if self._device is None:
            self._device = x4.device
        if x4.device != self._device:
            raise ValueError(f"this factor lives on {self._device}; got x on {x4.device}")
        # in pieces, so that the batch is never widened or made contiguous whole; looked at first, so that an error
        # leaves everything as it was
        parts = list(pieces(x4, 4 * self._block))
        for piece in parts:
            w = None if w3 is None else w3[piece]
            if w is not None and not bool((w.isfinite() & (w >= 0)).all()):
                raise NotFiniteError("weight holds a negative, NaN or infinite value; the batch was left out")
            for name, t in (("x", x4), ("y", y4)):
                finite = t[piece].isfinite()
                if not bool((finite if w is None else finite | (w == 0)[..., None]).all()):
                    raise NotFiniteError(f"{name} holds NaN or Inf; the batch was left out")
        for piece in parts:
            z = torch.cat([t[piece].double().reshape(-1, t.shape[-1]) for t in (x4, y4)], dim=1)
            w = None
            if w3 is not None:
                w = w3[piece].reshape(-1)
                z, w = z[w > 0], w[w > 0]
            if not len(z):
                continue
            if self._origin is None:
                away = z - z[0]
                mean = away.mean(0) if w is None else (w / w.sum()) @ away
                self._origin = z[0] + mean  # of a constant feature the constant itself
            block = torch.cat([z.new_ones(len(z), 1), z - self._origin], dim=1)
            self._add(block if w is None else block * w.sqrt()[:, None])
            self.count += float(len(z) if w is None else w.sum())
        self.rows += x4.shape[:3].numel()
        return self

    def merge(self, other: StreamingQR) -> StreamingQR:
        """Add another factor's rows, as if its batches had been given to this one. Returns self."""
        if (self.p, self.q) != (other.p, other.q):
            raise StatisticsError(
                f"other must have p={self.p}, q={self.q} like this factor; got p={other.p}, q={other.q}"
            )
        if other._origin is not None:
            theirs = other._factor().to(self.device if self._origin is not None else other.device)
            if self._origin is None:
                self._origin, self._device = other._origin, other.device
            else:  # [1, z − o] = [1, z − o′] [[1, o′ − o], [0, I]]
                shift = other._origin.to(self._origin) - self._origin
                theirs = torch.cat([theirs[:, :1], theirs[:, 1:] + theirs[:, :1] * shift], dim=1)
            self._add(theirs)
        self.rows += other.rows
        self.count += other.count
        return self

    def all_reduce(self, group: Any = None) -> StreamingQR:
        """Merge the factors of all processes of a torch.distributed group, in rank order, in each of them."""
        import torch.distributed as dist

        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, self._plain(), group=group)
        device = self._device
        self.reset()
        for state in parts:
            self.merge(StreamingQR._from_plain(self.p, self.q, state, device))
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the factor as a safetensors file."""
        from safetensors.torch import save_file

        state = self._plain()
        tensors = {k: state[k].contiguous() for k in ("factor", "origin") if state[k] is not None}
        meta = {k: repr(v) for k, v in (("p", self.p), ("q", self.q), ("rows", self.rows), ("count", self.count))}
        save_file(tensors, os.fspath(path), {"format": _FORMAT, **meta})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> StreamingQR:
        """Read what :meth:`save` wrote.

        Raises:
            StatisticsError: the file is damaged, or no such file of ours. FileNotFoundError: there is none.
        """
        meta, tensors = read_statistics(path, _FORMAT)
        try:
            p, q, rows, count = int(meta["p"]), int(meta["q"]), int(meta["rows"]), float(meta["count"])
        except (KeyError, ValueError) as e:
            raise StatisticsError(f"{os.fspath(path)} is damaged: its header is {meta}") from e
        size = 1 + p + q
        factor, origin = tensors.get("factor"), tensors.get("origin")
        fits = (factor is None and origin is None and not count) or (
            factor is not None
            and origin is not None
            and factor.ndim == 2
            and 1 <= len(factor) <= size == factor.shape[1]
            and origin.shape == (p + q,)
            and all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in (factor, origin))
        )
        if fits and factor is not None:  # its first column is √W e₁, and nothing lies below the diagonal
            fits = not bool(factor.tril(-1).any()) and abs(float(factor[0, 0]) ** 2 - count) <= 1e-9 * count
        if not fits or min(p, q) < 1 or rows < 0 or not 0 <= count < float("inf"):
            raise StatisticsError(f"{os.fspath(path)} is damaged: its tensors do not fit p={p}, q={q}")
        state = {"factor": factor, "origin": origin, "rows": rows, "count": count}
        return cls._from_plain(p, q, state, None if device is None else torch.device(device))

    def factor(self) -> tuple[Tensor, Tensor, Tensor]:
        """R_xx (p, p), R_xy (p, q), R_yy (q, q) of the centred rows, divided by √W: R_xxᵀ R_xx = cov_xx."""
        if self.rows < 2 or self.count <= 0:
            raise StatisticsError(f"covariance needs at least two samples; got {self.rows}")
        r = self._factor()[1:, 1:] / self.count**0.5
        short = self.p + self.q - len(r)
        if short > 0:  # fewer rows than features
            r = torch.cat([r, r.new_zeros(short, r.shape[1])])
        if not bool(r.isfinite().all()):
            raise StatisticsError("the factor overflows float64; scale the features down")
        return r[: self.p, : self.p], r[: self.p, self.p :], r[self.p :, self.p :]

    @property
    def mean_x(self) -> Tensor:
        return self._mean()[: self.p]

    @property
    def mean_y(self) -> Tensor:
        return self._mean()[self.p :]

    def statistics(self) -> Statistics:
        """The covariances RᵀR, for solvers that want these."""
        xx, xy, yy = self.factor()
        scalars = (torch.tensor(v, dtype=torch.float64, device=xx.device) for v in (self.count, _ROUNDOFF))
        return Statistics(xx.T @ xx, xx.T @ xy, xy.T @ xy + yy.T @ yy, self.mean_x, self.mean_y, *scalars)

    def about_zero(self) -> StreamingQR:
        """The factor of [x, y] themselves, with means of zero: R_xxᵀ R_xx = E[xxᵀ] (:meth:`Statistics.about_zero`).

        For maps without a bias, and to be read only: rows added to it would be centred. Its error is that of one more
        QR factorisation.
        """
        if self._origin is None:
            raise StatisticsError("no samples were added (or all had weight zero): the mean is undefined")
        top = self._factor()
        r, _ = torch.geqrf(top[:, 1:] + top[:, :1] * self._origin)  # [1, z − o] [o; I] = z
        r = r[: r.shape[1]].triu()
        raw = StreamingQR(self.p, self.q, device=self.device)
        raw.rows, raw.count, raw._origin = self.rows, self.count, torch.zeros_like(self._origin)
        mean = top.new_zeros(1, top.shape[1])
        mean[0, 0] = self.count**0.5
        raw._parts = [torch.cat([mean, torch.cat([r.new_zeros(len(r), 1), r], dim=1)])]
        return raw

    def __repr__(self) -> str:
        return f"StreamingQR(p={self.p}, q={self.q}, rows={self.rows}, device='{self.device}')"

    # ------------------------------------------------------------------------------------------ inside

    def _mean(self) -> Tensor:
        if self._origin is None:
            raise StatisticsError("no samples were added (or all had weight zero): the mean is undefined")
        top = self._factor()[0]
        return self._origin + top[1:] / top[0]

    def _add(self, block: Tensor) -> None:
        self._parts.append(block)
        self._waiting += len(block)
        if self._waiting >= self._block:
            self._factor()

    def _factor(self) -> Tensor:
        """All parts reduced to one triangle (min(rows, 1 + p + q), 1 + p + q)."""
        if len(self._parts) != 1 or self._waiting:
            reflectors, _ = torch.geqrf(torch.cat(self._parts))
            self._parts = [reflectors[: reflectors.shape[1]].triu()]
            self._waiting = 0
        return self._parts[0]

    def _plain(self) -> dict[str, Any]:
        empty = self._origin is None
        return {
            "factor": None if empty else self._factor().cpu(),
            "origin": None if self._origin is None else self._origin.cpu(),
            "rows": self.rows,
            "count": self.count,
        }

    @classmethod
    def _from_plain(cls, p: int, q: int, state: dict[str, Any], device: torch.device | None) -> StreamingQR:
        qr = cls(p, q, device=device)
        qr.rows, qr.count = state["rows"], state["count"]
        if state["origin"] is not None:
            qr._origin, qr._parts = state["origin"].to(qr.device), [state["factor"].to(qr.device)]
        return qr

    def __getstate__(self) -> dict[str, Any]:
        return {"p": self.p, "q": self.q, "device": self._device, **self._plain()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device = state["device"]
        if device is not None and device.type == "cuda" and not torch.cuda.is_available():
            device = torch.device("cpu")
        self.__dict__.update(StreamingQR._from_plain(state["p"], state["q"], state, device).__dict__)
