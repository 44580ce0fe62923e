"""The sparse stitch: only its non-zero connections are stored, multiplied and trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from stitchkern import ops
from stitchkern.errors import NotFiniteError, ShapeError
from stitchkern.nn import cost
from stitchkern.nn.channel_map import ChannelMap, map_densely
from stitchkern.nn.pattern import NAMES, pack

KERNELS = ("auto", "sparse", "dense", "compact")
SPARSE_TYPES = (torch.float32, torch.bfloat16, torch.float64)


class SparseStitch(ChannelMap):
    r"""Affine map over channels whose matrix has few non-zeros, :math:`y_o = \sum_{k \in o} v_k x_{c_k} + b_o`.

    A 4-D input (n, p, h, w), contiguous or channels_last, becomes (n, q, h, w); (n, p) and (n, t, p) are mapped over
    the last dimension. x is never copied to another layout. Gradients reach x, ``values`` and ``bias``; the pattern
    stays.

    Args:
        p, q: channels that come in and go out.
        crow, col: the pattern as compressed rows: the entries of row o are crow[o] … crow[o + 1] − 1 (``crow``
            (q + 1,)), their columns ``col`` (nonzeros,), rising within a row.
        bias, size, resize, device, dtype: as for :class:`Stitch`.
        kernel: how the product is made.

            - ``"sparse"``: the native kernel; zeros cost nothing. float32, bfloat16 (sums in float32) and float64.
            - ``"dense"``: torch's dense product with the zeros filled in.
            - ``"compact"``: the dense product without the rows and columns of M that are empty.
            - ``"auto"``: whichever of them was fastest when it was measured, once for each device, data type, memory
              layout, number of threads and power of two of positions, with the gradients where those are wanted.
              ``chosen`` and the repr say which. The choice can differ from run to run, and with it the rounding of the
              result, nothing else: name a kernel where bits must repeat. Inside ``torch.compile``, ``torch.func`` and
              CUDA graphs nothing is measured: the last measured choice holds, or before any, sparse up to a quarter of
              non-zeros on the CPU and up to a tenth elsewhere (in float32 and float64).

    Attributes:
        values: (nonzeros,), in the order of ``col``. bias: (q,) or None.
        crow, col: int32 buffers, saved in the state dict; loading one adopts its pattern.
        nonzeros, density: how many entries there are, and their part of p q.

    A zero of M is not multiplied: 0 · NaN does not spread as in the dense product (and in the other kernels).

    Raises:
        ShapeError: a pattern that is none; from ``forward`` as for :class:`Stitch`. ValueError: an unknown kernel.
        TypeError: from ``forward``, for x in another type than ``values`` outside autocast, or in one that the kernel
            named does not take.

    Source: Csiszárik et al. 2021 (arXiv 2110.14633), section 5.3; the kernel's tiles of positions: Elsen et al. 2020
    (arXiv 1911.09723).
    """

    p: int
    q: int
    crow: Tensor
    col: Tensor
    row: Tensor
    rows_used: Tensor
    columns_used: Tensor
    flat: Tensor
    flat_compact: Tensor

    def __init__(
        self,
        p: int,
        q: int,
        crow: Tensor,
        col: Tensor,
        *,
        bias: bool = True,
        size: tuple[int, int] | None = None,
        resize: str | None = None,
        kernel: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(size, resize)
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}")
        if p < 0 or q < 0:
            raise ShapeError(f"p and q must be at least 0; got {p} and {q}")
        for name, t in (("crow", crow), ("col", col)):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name} must be a tensor; got {type(t).__name__}")
        self.p, self.q, self.kernel = int(p), int(q), kernel
        #: what "auto" took last; None before the first call
        self.chosen: str | None = None
        self._set_pattern(crow.to(device), col.to(device))
        self.values = nn.Parameter(torch.empty(len(col), device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(q, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw values and bias as ``torch.nn.Linear`` does: uniformly from ±1/√(channels that come into an output)."""
        counts = self.crow.diff().clamp(min=1)
        with torch.no_grad():
            self.values.uniform_(-1, 1).mul_(counts[self.row.long()].rsqrt())
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(counts.rsqrt())

    @classmethod
    def from_dense(
        cls,
        weight: Any,
        bias: Tensor | None = None,
        *,
        threshold: float = 0.0,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> SparseStitch:
        """The stitch of the entries of ``weight`` whose magnitude is above ``threshold``.

        Args:
            weight: (q, p), or a :class:`stitchkern.AffineMap`, which brings its bias.
            bias: (q,) or None.
            threshold: 0 keeps every non-zero.
            dtype: of the parameters; by default that of ``weight``, and float32 for an ``AffineMap``.
            options: of the constructor: size, resize, kernel.

        Raises:
            ShapeError: weight is not (q, p), or bias not (q,). NotFiniteError: weight or bias holds NaN or Inf.
            TypeError: either is no dense tensor of a floating-point type.
            ValueError: a threshold below 0, or a bias beside an ``AffineMap``.
        """
        if isinstance(getattr(weight, "weight", None), Tensor):
            if bias is not None:
                raise ValueError("bias must be None beside an AffineMap, which has its own")
            weight, bias, dtype = weight.weight, weight.bias, dtype or torch.float32
        for name, t in (("weight", weight), ("bias", bias)):
            if name == "bias" and t is None:
                continue
            if not isinstance(t, Tensor) or not t.is_floating_point() or t.layout != torch.strided:
                got = f"{t.dtype}, {t.layout}" if isinstance(t, Tensor) else type(t).__name__
                raise TypeError(f"{name} must be a dense tensor of a floating-point type; got {got}")
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ShapeError(
                "weight must be (q, p) and bias (q,); "
                f"got {tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            )
        if not threshold >= 0 or math.isinf(threshold):
            raise ValueError(f"threshold must be 0 or more; got {threshold}")
        weight = weight.detach()
        for name, t in (("weight", weight), ("bias", bias)):
            if t is not None and not bool(t.isfinite().all()):
                raise NotFiniteError(f"{name} holds NaN or Inf")
        kept = weight.abs() > threshold
        row, col = kept.nonzero(as_tuple=True)
        crow = torch.zeros(len(weight) + 1, dtype=torch.long, device=weight.device)
        crow[1:] = kept.sum(1).cumsum(0)
        q, p = weight.shape
        dtype = dtype or weight.dtype
        stitch = cls(p, q, crow, col, bias=bias is not None, device=weight.device, dtype=dtype, **options)
        with torch.no_grad():
            stitch.values.copy_(weight[row, col])
            if stitch.bias is not None and bias is not None:
                stitch.bias.copy_(bias)
        return stitch

    def to_dense(self) -> Tensor:
        """M (q, p) with its zeros; differentiable in ``values``."""
        flat = self.values.new_zeros(self.q * self.p).index_copy(0, self.flat, self.values)
        return flat.view(self.q, self.p)

    @property
    def nonzeros(self) -> int:
        return len(self.col)

    @property
    def density(self) -> float:
        return self.nonzeros / max(self.p * self.q, 1)

    def map_channels(self, x: Tensor) -> Tensor:
        x = self._typed(x)
        kernel = self._choose(x) if self.kernel == "auto" else self.kernel
        if kernel == "sparse" and x.dtype not in SPARSE_TYPES:
            raise TypeError(f"kernel='sparse' takes float32, bfloat16 and float64; x is {x.dtype}")
        return self._ways()[kernel](x)

    def extra_repr(self) -> str:
        chosen = f" ({self.chosen})" if self.kernel == "auto" and self.chosen else ""
        return (
            f"{super().extra_repr()}, nonzeros={self.nonzeros} ({self.density:.1%}), bias={self.bias is not None}, "
            f"kernel={self.kernel!r}{chosen}"
        )

    # ------------------------------------------------------------------------------------------------ the products

    def _ways(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"sparse": self._sparse, "dense": self._dense, "compact": self._compact}

    def _sparse(self, x: Tensor) -> Tensor:
        pattern = [getattr(self, name) for name in NAMES]
        return ops.spconv(x, self.values, self.bias, pattern, 1 if x.ndim == 4 else -1)

    def _dense(self, x: Tensor) -> Tensor:
        return map_densely(x, self.to_dense(), self.bias)

    def _compact(self, x: Tensor) -> Tensor:
        dim = 1 if x.ndim == 4 else x.ndim - 1
        q, p = len(self.rows_used), len(self.columns_used)
        weight = self.values.new_zeros(q * p).index_copy(0, self.flat_compact, self.values).view(q, p)
        if p < self.p:
            x = x.index_select(dim, self.columns_used)
        if q == self.q:
            return map_densely(x, weight, self.bias)
        y = map_densely(x, weight, None if self.bias is None else self.bias[self.rows_used])
        shape = [*y.shape[:dim], self.q, *y.shape[dim + 1 :]]
        others = y.new_zeros(shape) if self.bias is None else self._bias_as(y).expand(shape)
        return others.index_copy(dim, self.rows_used, y)

    def _bias_as(self, y: Tensor) -> Tensor:
        assert self.bias is not None
        return self.bias.to(y.dtype).view(-1, *[1] * (2 if y.ndim == 4 else 0))

    def _typed(self, x: Tensor) -> Tensor:
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            return x.to(torch.get_autocast_dtype(x.device.type)) if x.dtype != torch.float64 else x
        if x.dtype != self.values.dtype:
            raise TypeError(f"x must be {self.values.dtype}, the type of the stitch; got {x.dtype}")
        return x

    # ------------------------------------------------------------------------------------------------ the choice

    def _choose(self, x: Tensor) -> str:
        if x.device.type not in ("cpu", "cuda") or x.dtype not in SPARSE_TYPES:
            return "dense"
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return "dense"  # inside torch.func, whose transforms the sparse op has no rules for
        if torch.compiler.is_compiling() or x.numel() == 0 or cost.cannot_measure(x):
            return self.chosen or self._rule(x)
        wanted = [t for t in (x, self.values, self.bias) if t is not None and t.requires_grad]
        gradients = torch.is_grad_enabled() and bool(wanted)
        sizes = (self.p, self.q, self.nonzeros, len(self.rows_used), len(self.columns_used))
        double = self._double()
        ways = double._ways()
        if len(self.rows_used) == self.q and len(self.columns_used) == self.p:
            del ways["compact"]
        self.chosen = cost.cheapest(ways, x, sizes, [double.values, double.bias], gradients=gradients)
        return self.chosen

    def _double(self) -> SparseStitch:
        """The same numbers in parameters of its own, whose gradients no hook hears of."""
        double = copy(self)
        double._parameters = {
            name: None if t is None else nn.Parameter(t.detach(), t.requires_grad)
            for name, t in self._parameters.items()
        }
        return double

    def _rule(self, x: Tensor) -> str:
        few = self.density <= (0.25 if x.device.type == "cpu" else 0.1)
        return "sparse" if few and (x.device.type == "cpu" or x.dtype != torch.bfloat16) else "dense"

    # ------------------------------------------------------------------------------------------------ the pattern

    def _set_pattern(self, crow: Tensor, col: Tensor) -> None:
        """The pattern and what follows from it. Only ``crow`` and ``col`` are saved."""
        if crow.ndim == 1 and len(crow) != self.q + 1:
            raise ShapeError(f"crow must be (q + 1,) = ({self.q + 1},); got {tuple(crow.shape)}")
        members = dict(zip(NAMES, pack(crow, col, self.p), strict=True))
        row, column = members["row"].long(), members["col"].long()
        rows_used, row_compact = row.unique(return_inverse=True)
        columns_used, column_compact = column.unique(return_inverse=True)
        if not len(row):  # one of each, so that there is a product
            rows_used, columns_used = (torch.arange(min(n, 1), device=row.device) for n in (self.q, self.p))
        members["rows_used"], members["columns_used"] = rows_used, columns_used
        members["flat"], members["flat_compact"] = (
            row * self.p + column,
            row_compact * len(columns_used) + column_compact,
        )
        for name, member in members.items():
            self.register_buffer(name, member, persistent=name in ("crow", "col"))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Adopts the pattern that comes along, with its values, or changes nothing but the bias."""
        crow, col = (state_dict.get(prefix + name, getattr(self, name)) for name in ("crow", "col"))
        values = state_dict.get(prefix + "values")
        if not all(isinstance(t, Tensor) for t in (crow, col)):
            raise TypeError(f"crow and col must be tensors; got {type(crow).__name__} and {type(col).__name__}")
        if not (torch.equal(crow.cpu(), self.crow.cpu()) and torch.equal(col.cpu(), self.col.cpu())):
            if crow.ndim == 1 and len(crow) != self.q + 1:
                rest[-1].append(
                    f"size mismatch for {prefix}crow: the stitch has q = {self.q} outputs, so that it is "
                    f"({self.q + 1},); got {tuple(crow.shape)}"
                )
                return
            if not isinstance(values, Tensor) or values.shape != col.shape:
                got = "none" if values is None else tuple(values.shape) if isinstance(values, Tensor) else type(values)
                rest[-1].append(
                    f"size mismatch for {prefix}values: {prefix}crow and {prefix}col are of another pattern, which "
                    f"takes values {tuple(col.shape)}; got {got}"
                )
                return
            self._set_pattern(crow.to(self.crow.device), col.to(self.crow.device))
            self.values.data = self.values.new_empty(len(col))  # the parameter itself stays that of the optimizer
            self.values.grad, self.chosen = None, None
        super()._load_from_state_dict(state_dict, prefix, *rest)
