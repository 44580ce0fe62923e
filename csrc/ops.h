// Every op of the extension, once. Shapes and mathematics: stitchkern/ops.py and stitchkern/reference.py.
#pragma once

namespace stitchkern {

inline constexpr const char* SCHEMAS[] = {
    "moments_update_(Tensor(a!) second, Tensor(b!) first, Tensor(c!) third, Tensor(d!) origin, Tensor(e!) totals, "
    "Tensor x, Tensor? y, Tensor? weight, int precision, bool check_finite) -> ()",
    "lsq_solve(Tensor cov_xx, Tensor cov_xy, Tensor mean_x, Tensor ridge, Tensor probes) -> (Tensor, Tensor, Tensor)",
    "hsic_gram(Tensor x) -> Tensor",
    "hsic_sums(Tensor[] x, int[] kernels, Tensor bandwidth, Tensor shift) -> (Tensor, Tensor, Tensor)",
    "hsic_backward(Tensor[] x, int[] kernels, Tensor bandwidth, Tensor shift, Tensor grad_rows, Tensor grad_diagonal, "
    "Tensor grad_sums) -> Tensor[]",
    "spconv(Tensor x, Tensor values, Tensor? bias, Tensor[] pattern, int channel_dim) -> Tensor",
    "spconv_weight_grad(Tensor x, Tensor grad, Tensor[] pattern, int channel_dim) -> Tensor",
    "lasso_path(Tensor gram, Tensor cross, Tensor energy, Tensor l1, Tensor l2, Tensor start, bool positive, "
    "bool grouped, float tol, int max_sweeps) -> (Tensor, Tensor)",
};

}  // namespace stitchkern
