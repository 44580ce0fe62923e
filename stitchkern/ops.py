"""One typed line per native op, and its shape function. No mathematics: see :mod:`stitchkern.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from stitchkern import _C

#: precision name -> code, and the names of the entries of ``totals``; both come from csrc/moments/moments.h.
PRECISIONS: dict[str, int] = dict(sorted(_C.precisions().items(), key=lambda item: item[1]))
TOTALS: dict[str, int] = _C.totals()
#: kernel name -> code; from csrc/hsic/hsic.h.
HSIC_KERNELS: dict[str, int] = dict(sorted(_C.hsic_kernels().items(), key=lambda item: item[1]))
#: what one problem of :func:`lsq_solve` may have at most; from csrc/lsq/lsq.h.
#: device type -> most features of x that lsq_solve takes
LSQ_MAX_FEATURES: dict[str, int] = _C.LSQ_MAX_FEATURES
LSQ_MAX_PROBES: int = _C.LSQ_MAX_PROBES

_library = torch.ops.stitchkern


def moments_update_(
    second: Tensor,
    first: Tensor,
    third: Tensor,
    origin: Tensor,
    totals: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    precision: int,
    check_finite: bool,
) -> None:
    """Add the rows of x (n, h, w, p) and y (n, h, w, q) to the sums about ``origin``; see :class:`stitchkern.Moments`.

    ``second`` (P, P; upper triangle), ``first`` (P,), ``third`` (2 or 0, P), ``origin`` (P,) and ``totals`` are float64
    and contiguous, P = p + q. ``weight`` (n, h, w) float64. Where ``check_finite`` finds NaN, Inf or a negative weight,
    only the ``bad_*`` entries of ``totals`` change.
    """
    _library.moments_update_(second, first, third, origin, totals, x, y, weight, precision, check_finite)


@torch.library.register_fake("stitchkern::moments_update_")
def _(second, first, third, origin, totals, x, y, weight, precision, check_finite) -> None:
    return None


def lsq_solve(
    cov_xx: Tensor, cov_xy: Tensor, mean_x: Tensor, ridge: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solutions (b, p, q), sums (b, 2, q) and scores (b, 5) of b small least-squares problems: `reference.lsq_solve`.

    ``cov_xx`` (b, p, p; upper triangle), ``cov_xy`` (b, p, q), ``mean_x`` (b, p), ``ridge`` (b,) >= 0 and ``probes``
    (p, k; of ±1) are float64, dimensions after the batch contiguous; p is at most ``LSQ_MAX_FEATURES`` of the device, k
    at most ``LSQ_MAX_PROBES``.
    """
    return _library.lsq_solve(cov_xx, cov_xy, mean_x, ridge, probes)


@torch.library.register_fake("stitchkern::lsq_solve")
def _(cov_xx, cov_xy, mean_x, ridge, probes) -> tuple[Tensor, Tensor, Tensor]:
    count, p, q = cov_xy.shape
    return cov_xx.new_empty(count, p, q), cov_xx.new_empty(count, 2, q), cov_xx.new_empty(count, 5)


def hsic_gram(x: Tensor) -> Tensor:
    """The kernel matrix (n, n) float64 of features (n, p) less their mean, of any type and strides, on a CPU:
    `reference.kernel_matrix`."""
    return _library.hsic_gram(x)


@torch.library.register_fake("stitchkern::hsic_gram")
def _(x) -> Tensor:
    return x.new_empty(len(x), len(x), dtype=torch.float64)


def hsic_sums(x: list[Tensor], kernels: list[int], bandwidth: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums (s, b, n), diagonals (s, b, n) and sums of products (b, s, s) of the kernel matrices of s sides, each
    less ``shift``: `reference.hsic_sums`. Nothing of size n² is stored.

    ``x``: s tensors (n, p_a) of any type and strides; ``kernels``: their codes of ``HSIC_KERNELS``; ``bandwidth`` and
    ``shift`` (s, b) are float64 and contiguous.
    """
    return _library.hsic_sums(x, kernels, bandwidth, shift)


@torch.library.register_fake("stitchkern::hsic_sums")
def _(x, kernels, bandwidth, shift) -> tuple[Tensor, Tensor, Tensor]:
    (s, b), n = bandwidth.shape, x[0].shape[0]
    return bandwidth.new_empty(s, b, n), bandwidth.new_empty(s, b, n), bandwidth.new_empty(b, s, s)


def hsic_backward(
    x: list[Tensor],
    kernels: list[int],
    bandwidth: Tensor,
    shift: Tensor,
    grad_rows: Tensor,
    grad_diagonal: Tensor,
    grad_sums: Tensor,
) -> list[Tensor]:
    """The gradient (n, p_a) float64 of each side, from those of the results of `hsic_sums` (float64, contiguous)."""
    return _library.hsic_backward(x, kernels, bandwidth, shift, grad_rows, grad_diagonal, grad_sums)


@torch.library.register_fake("stitchkern::hsic_backward")
def _(x, kernels, bandwidth, shift, grad_rows, grad_diagonal, grad_sums) -> list[Tensor]:
    return [bandwidth.new_empty(t.shape) for t in x]


def _keep_hsic(ctx, inputs, output) -> None:
    x, ctx.kernels, bandwidth, shift = inputs
    ctx.save_for_backward(bandwidth, shift, *x)


def _hsic_gradient(ctx, *grads):
    bandwidth, shift, *x = ctx.saved_tensors
    found = hsic_backward(x, ctx.kernels, bandwidth, shift, *(g.contiguous() for g in grads))
    return [g.to(t.dtype) for g, t in zip(found, x, strict=True)], None, None, None


torch.library.register_autograd("stitchkern::hsic_sums", _hsic_gradient, setup_context=_keep_hsic)


def _keep_nothing(ctx, inputs, output) -> None:
    return None


def _no_second_gradient(ctx, *grads):
    raise RuntimeError("kernel sums can be differentiated once; hsic_backward has no gradient of its own")


# or else torch would take the gradient for a constant, and warn at most
torch.library.register_autograd("stitchkern::hsic_backward", _no_second_gradient, setup_context=_keep_nothing)


def spconv(x: Tensor, values: Tensor, bias: Tensor | None, pattern: list[Tensor], channel_dim: int) -> Tensor:
    """M x + b over dimension ``channel_dim`` of x (1 … 4 dimensions, p channels there), M sparse: `reference.spconv`.

    x is float64, float32 or bfloat16, with any strides; ``values`` (nonzeros,) and ``bias`` (q,) any floating-point
    type. ``pattern`` is made by :func:`stitchkern.nn.pattern.pack`. The result is dense and in x's type; its channels
    are innermost in memory where those of x are.
    """
    return _library.spconv(x, values, bias, pattern, channel_dim)


@torch.library.register_fake("stitchkern::spconv")
def _(x, values, bias, pattern, channel_dim) -> Tensor:
    dim, q = channel_dim % x.ndim, pattern[0].shape[0] - 1
    around = [*x.shape[:dim], *x.shape[dim + 1 :]]
    if x.stride(dim) == 1 and x.shape[dim] > 1:
        return x.new_empty([*around, q]).movedim(-1, dim)
    return x.new_empty([*around[:dim], q, *around[dim:]])


def spconv_weight_grad(x: Tensor, grad: Tensor, pattern: list[Tensor], channel_dim: int) -> Tensor:
    """Σ grad[row] x[col] over all positions for each non-zero of M, (nonzeros,): `reference.spconv_weight_grad`.

    ``grad`` is like the result of :func:`spconv`, in x's type; float64 comes out for float64, otherwise float32.
    """
    return _library.spconv_weight_grad(x, grad, pattern, channel_dim)


@torch.library.register_fake("stitchkern::spconv_weight_grad")
def _(x, grad, pattern, channel_dim) -> Tensor:
    return x.new_empty(pattern[1].shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _transposed(values: Tensor, pattern: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return values.index_select(0, pattern[3]), [*pattern[4:], *pattern[:4]]


def _keep_spconv(ctx, inputs, output) -> None:
    x, values, bias, pattern, ctx.channel_dim = inputs
    ctx.save_for_backward(x, values, *pattern)
    ctx.bias_type = None if bias is None else bias.dtype


def _spconv_gradient(ctx, grad):
    x, values, *pattern = ctx.saved_tensors
    of_x = of_values = of_bias = None
    if ctx.needs_input_grad[0]:
        values_t, pattern_t = _transposed(values, pattern)
        of_x = spconv(grad, values_t, None, pattern_t, ctx.channel_dim)
    if ctx.needs_input_grad[1]:
        of_values = spconv_weight_grad(x, grad, pattern, ctx.channel_dim).to(values.dtype)
    if ctx.needs_input_grad[2]:
        others = [d for d in range(grad.ndim) if d != ctx.channel_dim % grad.ndim]
        of_bias = grad.sum(others, dtype=ctx.bias_type) if others else grad.to(ctx.bias_type)
    return of_x, of_values, of_bias, [None] * len(pattern), None


torch.library.register_autograd("stitchkern::spconv", _spconv_gradient, setup_context=_keep_spconv)


def _keep_spconv_weight_grad(ctx, inputs, output) -> None:
    x, grad, pattern, ctx.channel_dim = inputs
    ctx.save_for_backward(x, grad, *pattern)


def _spconv_weight_grad_gradient(ctx, grad_values):
    x, grad, *pattern = ctx.saved_tensors
    values_t, pattern_t = _transposed(grad_values, pattern)
    of_x = spconv(grad, values_t, None, pattern_t, ctx.channel_dim)
    return of_x, spconv(x, grad_values, None, pattern, ctx.channel_dim), [None] * len(pattern), None


torch.library.register_autograd(
    "stitchkern::spconv_weight_grad", _spconv_weight_grad_gradient, setup_context=_keep_spconv_weight_grad
)


def lasso_path(
    gram: Tensor,
    cross: Tensor,
    energy: Tensor,
    l1: Tensor,
    l2: Tensor,
    start: Tensor,
    positive: bool,
    grouped: bool,
    tol: float,
    max_sweeps: int,
) -> tuple[Tensor, Tensor]:
    """Coefficients (a, q, p) and scores (a, q, 7; ``LASSO_SCORES``) of q Lasso paths: `reference.lasso_score`.

    ``gram`` (p, p; symmetric), ``cross`` (p, q), ``energy`` (q,), penalties ``l1`` and ``l2`` (a, q), in the order in
    which each starts from the one before it, and ``start`` (q, p) are float64 and contiguous.
    """
    return _library.lasso_path(gram, cross, energy, l1, l2, start, positive, grouped, tol, max_sweeps)


@torch.library.register_fake("stitchkern::lasso_path")
def _(gram, cross, energy, l1, l2, start, positive, grouped, tol, max_sweeps) -> tuple[Tensor, Tensor]:
    a, (p, q) = l1.shape[0], cross.shape
    return gram.new_empty(a, q, p), gram.new_empty(a, q, len(LASSO_SCORES))


#: entries of the scores; from csrc/lasso/lasso.h
LASSO_SCORES = ("violation", "gap", "explained", "norm", "squares", "sweeps", "nonzero")
