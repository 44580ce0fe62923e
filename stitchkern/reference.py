"""The definition of every native op and of the similarity indices, in plain float64 torch.

These functions are what the kernels and indices compute, written to be read. The tests compare every backend with
them; nothing in the library calls them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """(n, h, w, c), any strides -> (n·h·w, c) float64."""
    return x.double().reshape(-1, x.shape[-1])


def moments(x: Tensor, y: Tensor | None = None, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Weighted moments of the rows z = [x, y], centred at their mean.

    With W = Σ wᵢ and z̄ = Σ wᵢ zᵢ / W, a = ‖x − x̄‖², b = ‖y − ȳ‖²:

    - ``mean`` (P,): z̄
    - ``cov`` (P, P): Σ wᵢ (zᵢ − z̄)(zᵢ − z̄)ᵀ / W
    - ``third`` (2, P): Σ w a (z − z̄) and Σ w b (z − z̄)
    - ``norms`` (3,): Σ w a², Σ w a b, Σ w b²
    - ``totals`` (3,): number of rows, W, Σ w²

    x (n, h, w, p), y (n, h, w, q), weight (n, h, w); P = p + q.
    """
    zx = rows(x)
    zy = rows(y) if y is not None else zx[:, :0]
    w = torch.ones(len(zx), dtype=torch.float64, device=zx.device) if weight is None else weight.double().reshape(-1)
    z = torch.cat([zx, zy], dim=1)
    total = w.sum()
    mean = (w @ z) / total
    z = z - mean
    p = zx.shape[1]
    a, b = z[:, :p].square().sum(1), z[:, p:].square().sum(1)
    return {
        "mean": mean,
        "cov": (z * w[:, None]).T @ z / total,
        "third": torch.stack([(w * a) @ z, (w * b) @ z]),
        "norms": torch.stack([(w * a * a).sum(), (w * a * b).sum(), (w * b * b).sum()]),
        "totals": torch.stack(
            [torch.tensor(float(len(zx)), dtype=torch.float64, device=z.device), total, (w * w).sum()]
        ),
    }


def hsic_linear(x: Tensor, y: Tensor, *, unbiased: bool) -> Tensor:
    """HSIC of the linear kernels K = XXᵀ, L = YYᵀ, from the n × n matrices.

    Biased: tr(KHLH) / n² with H = I − 11ᵀ/n. Unbiased (Song et al. 2012, equation 5), with K̃ = K off the diagonal:
    [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)).
    """
    return hsic_of_kernels(kernel_matrix(x, "linear"), kernel_matrix(y, "linear"), unbiased=unbiased)


def least_squares(x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """M (q, p), b (q,) that minimise Σ w ‖M x + b − y‖², minimum norm, by a float64 SVD of the data."""
    zx, zy = rows(x), rows(y)
    w = torch.ones(len(zx), dtype=torch.float64) if weight is None else weight.double().reshape(-1)
    mean_x, mean_y = (w @ zx) / w.sum(), (w @ zy) / w.sum()
    s = w.sqrt()[:, None]
    m = torch.linalg.lstsq(s * (zx - mean_x), s * (zy - mean_y), driver="gelsd").solution.T
    return m, mean_y - m @ mean_x


def lsq_solve(
    cov_xx: Tensor, cov_xy: Tensor, mean_x: Tensor, ridge: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares from moments, in correlation form: for each problem of the batch, with C from the upper triangle,

    - d_j = sqrt(C_jj + r) where that is a positive number, otherwise 1; A = D⁻¹ (C + r I) D⁻¹ = Uᵀ U. A dead feature
      (C_jj + r = 0) has its unit row in A, and zeros in S
    - Z = U⁻ᵀ D⁻¹ S, X = D⁻¹ U⁻¹ Z
    - explained = ‖Z‖² + r ‖X‖², the second term as ‖(√r D⁻¹) (U⁻¹ Z)‖², which cannot overflow where the first does not
    - pivot = min U_jj², norm = ‖A‖_F, inverse = sqrt(mean ‖A⁻¹ w‖² over the probes w), an estimate of ‖A⁻¹‖_F
    - size = ‖D X‖_F; sums: Σ_j X_jk x̄_j and Σ_j |X_jk| sqrt(C_jj), for each target k

    Returns X (b, p, q), sums (b, 2, q) and (explained, pivot, norm, inverse, size) (b, 5). Where a pivot is not a
    positive number, X = 0, sums = 0 and the score is (0, that pivot, norm, inf, 0). cov_xx (b, p, p), cov_xy (b, p, q),
    mean_x (b, p), ridge (b,), probes (p, k).
    """
    count, p, q = cov_xy.shape
    solutions = torch.zeros_like(cov_xy, memory_format=torch.contiguous_format)
    sums, scores = cov_xx.new_zeros(count, 2, q), cov_xx.new_zeros(count, 5)
    for i, (c, s, mean, r) in enumerate(zip(cov_xx, cov_xy, mean_x, ridge, strict=True)):
        deviation = c.diagonal().clamp(min=0.0).sqrt()
        c = c.triu() + c.triu(1).T
        c.diagonal().add_(r)
        dead = c.diagonal() == 0
        usable = (c.diagonal() > 0) & c.diagonal().isfinite()
        d = torch.where(usable, c.diagonal(), 1.0).sqrt()
        inverse_d = torch.where(dead, 0.0, 1 / d)
        a = c * inverse_d[:, None] * inverse_d
        a.diagonal()[usable | dead] = 1.0
        a.diagonal()[~(usable | dead)] = c.diagonal()[~(usable | dead)]
        score = scores[i]
        score[2] = a.norm()

        # row by row: what is left of A, S and W below row j, minus row j's part in it
        rest = torch.cat([a, s * inverse_d[:, None], probes], dim=1)
        pivots = []
        for j in range(p):
            pivots.append(rest[j, j].clone())
            if not (pivots[j] > 0 and pivots[j].isfinite()):
                score[1], score[3] = pivots[j], float("inf")
                break
            rest[j] /= pivots[j].sqrt()
            rest[j + 1 :] -= torch.outer(rest[j, j + 1 : p], rest[j])
        else:
            u, z, w = rest[:, :p].triu(), rest[:, p : p + q], rest[:, p + q :]
            back = torch.linalg.solve_triangular(u, torch.cat([z, w], dim=1), upper=True)
            x = back[:, :q] * inverse_d[:, None]
            solutions[i], sums[i, 0], sums[i, 1] = x, mean @ x, deviation @ x.abs()
            score[0] = z.square().sum() + (r.sqrt() * x).square().sum()
            score[1] = torch.stack(pivots).min()
            score[3] = back[:, q:].square().sum(0).mean().sqrt() if probes.shape[1] else 0.0
            score[4] = back[:, :q].square().sum().sqrt()
    return solutions, sums, scores


# ------------------------------------------------------------------------------------------ sparse maps


def lasso(
    gram: Tensor, cross: Tensor, l1: Tensor, l2: Tensor, *, positive: bool = False, grouped: bool = False, sweeps: int
) -> Tensor:
    """M (q, p) that minimises Σ_k ½ mₖᵀ G mₖ − mₖᵀ sₖ + l1ₖ ‖mₖ‖₁ + ½ l2ₖ ‖mₖ‖², by plain coordinate descent.

    Grouped: l1 Σ_j ‖M_:j‖ for the 1-norm, l1 and l2 the same for all targets. gram (p, p), cross (p, q), l1, l2 (q,).
    """
    weight = torch.zeros_like(cross.T)
    for _ in range(sweeps):
        for j in (gram.diagonal() > 0).nonzero()[:, 0].tolist():
            pull = cross[j] - weight @ gram[j] + weight[:, j] * gram[j, j]
            if positive:
                pull = pull.clamp(min=0.0)
            size = pull.norm().expand_as(pull) if grouped else pull.abs()
            shrunk = torch.where(size > l1, 1 - l1 / torch.where(size > 0, size, 1.0), 0.0)
            weight[:, j] = shrunk * pull / (gram[j, j] + l2)
    return weight


def lasso_score(
    gram: Tensor,
    cross: Tensor,
    energy: Tensor,
    weight: Tensor,
    l1: Tensor,
    l2: Tensor,
    *,
    positive: bool = False,
    grouped: bool = False,
) -> dict[str, Tensor]:
    """What is known of the coefficients M (q, p), for each target, with C = S − G Mᵀ (p, q):

    - ``violation``: the largest distance of c_j − l2 m_j to l1 ∂|m_j|, relative to max |s|. Grouped: of C_j − l2 M_:j
      to l1 ∂‖M_:j‖, relative to max ‖S_j‖
    - ``explained``: 2 mᵀ s − mᵀ G m; ``norm``: ‖m‖₁, grouped the share in Σ_j ‖M_:j‖; ``squares``: ‖m‖²
    - ``objective``: ½ (energy − explained) + l1 norm + ½ l2 squares
    - ``gap``: objective minus that of a dual point, grouped the shares in it. l2 > 0: Σ_j h(m_j) + h*(c_j) − m_j c_j
      with h(m) = l1 |m| + ½ l2 m², h*(c) = (|c| − l1)₊² / (2 l2). l2 = 0: with t = min(1, l1 / max |c|), r = y − M x,
      the dual value ½ E y² − ½ E (t r − y)²

    Positive: c₊ stands for |c|, and where m = 0 only c > l1 violates. Dead features (G_jj = 0) count with s = 0.
    """
    live = gram.diagonal() > 0
    s = cross * live[:, None]
    c = s - gram @ weight.T
    m = weight.T
    slope = c - l2 * m
    reach, tilt = (c.clamp(min=0.0), slope.clamp(min=0.0)) if positive else (c.abs(), slope.abs())
    if grouped:
        size = m.norm(dim=1, keepdim=True)
        off = slope - torch.where(size > 0, l1 * m / torch.where(size > 0, size, 1.0), 0.0)
        if positive:
            off = torch.where(m == 0, off.clamp(min=0.0), off)
        off = off.norm(dim=1, keepdim=True)
        violation = torch.where(size > 0, off, (off - l1).clamp(min=0.0)).amax(0)
        scale = s.norm(dim=1).amax()
        norm = (m.square() / torch.where(size > 0, size, 1.0)).sum(0)
        beyond = (reach.norm(dim=1, keepdim=True) - l1).clamp(min=0.0).square().sum(0) / len(l1)
        largest = tilt.norm(dim=1).amax()
    else:
        violation = torch.where(m != 0, (slope - l1 * m.sign()).abs(), (reach - l1).clamp(min=0.0)).amax(0)
        scale = s.abs().amax(0)
        norm = m.abs().sum(0)
        beyond = (reach - l1).clamp(min=0.0).square().sum(0)
        largest = tilt.amax(0)
    explained, squares = (m * (s + c)).sum(0), m.square().sum(0)
    objective = (energy - explained) / 2 + l1 * norm + l2 * squares / 2
    t = torch.where(largest > l1, l1 / torch.where(largest > 0, largest, 1.0), 1.0)
    residual, with_y = energy - explained, energy - (m * s).sum(0)  # E r², E r y
    dual = t * with_y - t.square() * residual / 2
    ridge = l1 * norm + l2 * squares / 2 + beyond / (2 * torch.where(l2 > 0, l2, 1.0)) - (m * c).sum(0)
    return {
        "violation": torch.where(scale > 0, violation / torch.where(scale > 0, scale, 1.0), 0.0).expand_as(norm),
        "gap": torch.where(l2 > 0, ridge, objective - dual),
        "explained": explained,
        "norm": norm,
        "squares": squares,
        "objective": objective,
    }


# ------------------------------------------------------------------------------------------ similarity indices


def orthonormal_basis(x: Tensor, tolerance: float = 1e-4) -> Tensor:
    """An orthonormal basis (n, r) of what the centred features span; σ below tolerance · σ_max, of features divided by
    their deviation, are rounding of float32 inputs."""
    x = x.double() - x.double().mean(0)
    spread = x.std(0, correction=0)
    live = spread > 1e-12 * x.abs().max()
    u, s, _ = torch.linalg.svd(x[:, live] / spread[live], full_matrices=False)
    return u[:, s > tolerance * s[0]]


def canonical_correlations(x: Tensor, y: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Cosines of the principal angles between the spans (Björck and Golub 1973): singular values of QₓᵀQᵧ."""
    return torch.linalg.svdvals(orthonormal_basis(x, tolerance).T @ orthonormal_basis(y, tolerance))


def pwcca(x: Tensor, y: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Σ αᵢρᵢ / Σ αᵢ with αᵢ = Σⱼ |⟨hᵢ, xⱼ⟩| over the centred features of x."""
    basis = orthonormal_basis(x, tolerance)
    u, rho, _ = torch.linalg.svd(basis.T @ orthonormal_basis(y, tolerance), full_matrices=False)
    alpha = ((basis @ u).T @ (x.double() - x.double().mean(0))).abs().sum(1)
    return (alpha * rho).sum() / alpha.sum()


def linear_r2(x: Tensor, y: Tensor, tolerance: float = 1e-4) -> Tensor:
    """‖QₓᵀY‖² / ‖Y‖² of centred Y: the share of y's variance in what x spans."""
    y = y.double() - y.double().mean(0)
    return (orthonormal_basis(x, tolerance).T @ y).square().sum() / y.square().sum()


def svcca(x: Tensor, y: Tensor, threshold: float = 0.99) -> Tensor:
    """Mean canonical correlation of the leading left singular vectors that hold this share of Σσ²."""
    bases = []
    for t in (x, y):
        u, s, _ = torch.linalg.svd(t.double() - t.double().mean(0), full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum()
        bases.append(u[:, : int((share < threshold).sum()) + 1])
    return torch.linalg.svdvals(bases[0].T @ bases[1]).mean()


def shape_cosine(x: Tensor, y: Tensor, alpha: float = 1.0, tolerance: float = 1e-4) -> Tensor:
    """‖φ(X)ᵀφ(Y)‖_* / (‖φ(X)‖ ‖φ(Y)‖), φ(X) = X̃ (α I + (1 − α)(X̃ᵀX̃/n)^-½), X̃ of mean variance 1 where it varies."""
    sides = []
    for t in (x, y):
        u, s, _ = torch.linalg.svd(t.double() - t.double().mean(0), full_matrices=False)
        rank = orthonormal_basis(t, tolerance).shape[1]
        s = s[:rank] / s[:rank].square().mean().sqrt()
        mixed = s * alpha + (1 - alpha)
        sides.append(u[:, :rank] * mixed / mixed.square().sum().sqrt())
    return torch.linalg.svdvals(sides[0].T @ sides[1]).sum()


def gulp_squared(x: Tensor, y: Tensor, ridge: float, tolerance: float = 1e-4) -> Tensor:
    """‖T_x − T_y‖² with T = X̃ (X̃ᵀX̃ + λI)⁻¹ X̃ᵀ, X̃ centred and of Frobenius norm 1."""
    predictions = []
    for t in (x, y):
        u, s, _ = torch.linalg.svd(t.double() - t.double().mean(0), full_matrices=False)
        rank = orthonormal_basis(t, tolerance).shape[1]
        u, share = u[:, :rank], s[:rank].square() / s.square().sum()
        predictions.append((u * (share / (share + ridge))) @ u.T)
    return (predictions[0] - predictions[1]).square().sum()


def eigenspace_overlap(x: Tensor, y: Tensor, *, center: bool = False, tolerance: float = 1e-6) -> Tensor:
    """‖UᵀV‖² / max(r_x, r_y) of the left singular vectors; σ ≤ tolerance · σ_max of features of norm 1 are rounding."""
    bases = []
    for t in (x, y):
        t = t.double() - (t.double().mean(0) if center else 0)
        size = t.square().sum(0).sqrt()
        live = size > 1e-12 * size.max()
        u, s, _ = torch.linalg.svd(t[:, live] / size[live], full_matrices=False)
        bases.append(u[:, s > tolerance * s[0]])
    return (bases[0].T @ bases[1]).square().sum() / max(b.shape[1] for b in bases)


def fidelity(a: Tensor, b: Tensor) -> Tensor:
    """tr (A^½ B A^½)^½ of two symmetric positive semidefinite matrices, by their roots."""
    roots = []
    for m in (a, b):
        values, vectors = torch.linalg.eigh(m.double())
        values = torch.where(values > 1e-12 * values[-1], values, 0.0)
        roots.append((vectors * values.sqrt()) @ vectors.T)
    return torch.linalg.svdvals(roots[0] @ roots[1]).sum()


def correlations(x: Tensor, y: Tensor) -> Tensor:
    """corr(x_j, y_k) (p, q) of the features that vary."""
    sides = []
    for t in (x, y):
        t = t.double()[:, (t != t[0]).any(0)]
        t = t - t.mean(0)
        sides.append(t / t.square().sum(0).sqrt())
    return sides[0].T @ sides[1]


def correlation_match(x: Tensor, y: Tensor, kind: str) -> float:
    """Hard: the mean correlation of the one-to-one matching with the largest sum; soft: of everyone's best partner."""
    from scipy.optimize import linear_sum_assignment

    r = correlations(x, y).numpy()
    if kind == "soft":
        return float(r.max(1).mean() + r.max(0).mean()) / 2
    return float(r[linear_sum_assignment(-r)].mean())


def transport_cost(cost: Tensor) -> float:
    """min Σ T∘cost over T ≥ 0 with row sums 1/p and column sums 1/q: the linear programme."""
    from scipy.optimize import linprog

    p, q = cost.shape
    sums = torch.cat([torch.eye(p).repeat_interleave(q, 1), torch.eye(q).repeat(1, p)])
    mass = [1 / p] * p + [1 / q] * q
    largest = float(cost.abs().max())
    return float(linprog((cost / largest).flatten().numpy(), A_eq=sums.numpy(), b_eq=mass).fun) * largest


def soft_matching_distance(x: Tensor, y: Tensor, *, standardize: bool = False) -> float:
    """√ min Σ T_jk E(x_j − y_k)² over transport plans, of centred features; of standardised ones that is 2 − 2 corr."""
    if standardize:
        return max(transport_cost(2 - 2 * correlations(x, y)), 0.0) ** 0.5
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return transport_cost((x[:, :, None] - y[:, None]).square().mean(0)) ** 0.5


def magnitude(x: Tensor) -> Tensor:
    """‖mean of the samples‖."""
    return x.double().mean(0).norm()


def concentricity(x: Tensor) -> Tensor:
    """The mean of cos(x_i, x̄)."""
    x = x.double()
    return torch.nn.functional.cosine_similarity(x, x.mean(0, keepdim=True), dim=1).mean()


def uniformity(x: Tensor, t: float = 2.0, *, normalize: bool = True, self_pairs: bool = False) -> Tensor:
    """log of the mean of exp(−t ‖a − b‖²) over pairs of different samples of norm 1, or over all n² pairs."""
    x = x.double()
    exponents = -t * distances(x / x.norm(dim=1, keepdim=True) if normalize else x).square()
    off = exponents[~torch.eye(len(x), dtype=torch.bool)]
    pairs = exponents.flatten() if self_pairs else off
    return pairs.logsumexp(0) - torch.tensor(float(len(pairs))).double().log()


def sample_distances(x: Tensor, metric: str) -> Tensor:
    """(n, n): ‖a − b‖, or 1 − cos(a, b) = ½‖u − v‖² of samples of norm 1, for "correlation" about their own mean."""
    x = x.double()
    if metric == "euclidean":
        return distances(x)
    if metric == "correlation":
        x = x - x.mean(1, keepdim=True)
    return distances(x / x.square().sum(1, keepdim=True).sqrt()).square() / 2


def tied(d: Tensor, metric: str) -> Tensor:
    """The same with one value for each run of values whose neighbours lie within rounding: a relative 2^-41, and of
    samples of norm 1, at a distance of √(2d), 2^-50 of that."""
    values, order = d.flatten().sort()
    width = 2.0**-41 * values + (0 if metric == "euclidean" else 2.0**-50 * (2 * values).sqrt())
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[1:] = ~(values.diff() <= width[1:])
    result = torch.empty_like(values)
    result[order] = values[starts][starts.cumsum(0) - 1]
    return result.reshape(d.shape)


def rsa(x: Tensor, y: Tensor, metric: str, comparison: str) -> float:
    """The correlation of the upper triangles of both distance matrices, or of their ranks."""
    from scipy.stats import rankdata

    above = torch.triu_indices(len(x), len(x), 1)
    vectors = [sample_distances(t, metric)[above[0], above[1]] for t in (x, y)]
    if comparison == "spearman":
        vectors = [torch.from_numpy(rankdata(tied(v, metric).numpy())) for v in vectors]
    return torch.corrcoef(torch.stack(vectors))[0, 1].item()


def rsm_norm(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """‖S(x) − S(y)‖_F of the n × n inner products (of centred samples: linear) or distances."""
    sides = []
    for t in (x.double(), y.double()):
        if metric in ("linear", "inner"):
            t = t - t.mean(0) if metric == "linear" else t
            sides.append(t @ t.T)
        else:
            sides.append(sample_distances(t, metric))
    return (sides[0] - sides[1]).square().sum().sqrt()


def distance_correlation(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """√ of the mean product of the centred distance matrices, over those with themselves; unbiased: of U-centred ones
    (zero on the diagonal, sums divided by n − 2 and (n − 1)(n − 2)), and no root."""
    n, centred = len(x), []
    for t in (x, y):
        d = sample_distances(t, "euclidean")
        if unbiased:
            d = d - d.sum(0) / (n - 2) - d.sum(1, keepdim=True) / (n - 2) + d.sum() / ((n - 1) * (n - 2))
            d = d - d.diag().diag()
        else:
            d = d - d.mean(0) - d.mean(1, keepdim=True) + d.mean()
        centred.append(d)
    a, b = centred
    value = (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
    return value if unbiased else value.clamp(min=0).sqrt()


def neighbour_lists(x: Tensor, k: int, metric: str) -> list[list[int]]:
    """The k nearest other samples of each by distance; equally distant ones by index."""
    d = tied(sample_distances(x, metric), metric)
    order = d.fill_diagonal_(torch.inf).argsort(stable=True)
    return order[:, :k].tolist()


def neighbour_sets(x: Tensor, k: int, metric: str) -> list[set[int]]:
    """The k nearest other samples of each; of equally distant ones the first."""
    return [set(found) for found in neighbour_lists(x, k, metric)]


def mutual_knn(x: Tensor, y: Tensor, k: int, metric: str) -> float:
    """The mean of |N_x(i) ∩ N_y(i)| / k."""
    both = zip(neighbour_sets(x, k, metric), neighbour_sets(y, k, metric), strict=True)
    return sum(len(a & b) for a, b in both) / (k * len(x))


def jaccard(x: Tensor, y: Tensor, k: int, metric: str) -> float:
    """The mean of |N_x(i) ∩ N_y(i)| / |N_x(i) ∪ N_y(i)|."""
    both = zip(neighbour_sets(x, k, metric), neighbour_sets(y, k, metric), strict=True)
    return sum(len(a & b) / len(a | b) for a, b in both) / len(x)


def cycle_knn(x: Tensor, y: Tensor, k: int, metric: str) -> float:
    """The share of i that are among the neighbours in x of some neighbour of i in y."""
    in_x, in_y = neighbour_sets(x, k, metric), neighbour_sets(y, k, metric)
    return sum(any(i in in_x[j] for j in found) for i, found in enumerate(in_y)) / len(x)


def rank_similarity(x: Tensor, y: Tensor, k: int, metric: str) -> float:
    """The mean over samples of Σ 2 / ((1 + |r − s|)(r + s)) / (1 + … + 1/K) over the K neighbours that are shared."""
    total = 0.0
    for a, b in zip(neighbour_lists(x, k, metric), neighbour_lists(y, k, metric), strict=True):
        ranks = [(a.index(j) + 1, b.index(j) + 1) for j in set(a) & set(b)]
        score = sum(2 / ((1 + abs(r - s)) * (r + s)) for r, s in ranks)
        total += score / sum(1 / i for i in range(1, len(ranks) + 1)) if ranks else 0.0
    return total / len(x)


def second_order_cosine(x: Tensor, y: Tensor, k: int) -> float:
    """The mean cosine of (cos(x_i, x_j)) and (cos(y_i, y_j)) over the neighbours j of i in x or in y."""
    kernels = [1 - sample_distances(t, "cosine") for t in (x, y)]
    total = 0.0
    for i, (a, b) in enumerate(zip(*(neighbour_sets(t, k, "cosine") for t in (x, y)), strict=True)):
        s, t = (m[i, list(a | b)] for m in kernels)
        total += (s @ t / (s.norm() * t.norm())).item()
    return total / len(x)


def cknna(x: Tensor, y: Tensor, k: int) -> float:
    """Σ αᵢⱼ K̃ᵢⱼ L̃ᵢⱼ over pairs that are neighbours on both sides, K̃ = K − its row means, K of unit samples."""
    kernels = [1 - sample_distances(t, "cosine") for t in (x, y)]
    k_x, k_y = (m - m.mean(1, keepdim=True) for m in kernels)
    masks = []
    for t in (x, y):
        masks.append(torch.zeros(len(t), len(t), dtype=torch.bool))
        for i, found in enumerate(neighbour_sets(t, k, "cosine")):
            masks[-1][i, list(found)] = True
    own = (k_x * k_x)[masks[0]].sum() * (k_y * k_y)[masks[1]].sum()
    return ((k_x * k_y)[masks[0] & masks[1]].sum() / own.sqrt()).item()


def distances(x: Tensor) -> Tensor:
    """(n, n): ‖a − b‖ for the rows of x (n, p), as norms of differences."""
    return torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")


def kernel_matrix(x: Tensor, kernel: str, bandwidth: float = 1.0) -> Tensor:
    """(n, n), of the rows of x (n, p): linear (a − x̄)ᵀ(b − x̄), rbf exp(−‖a − b‖²/(2σ²)), laplace exp(−‖a − b‖/σ)."""
    x = x.double()
    if kernel == "linear":
        return (x - x.mean(0)) @ (x - x.mean(0)).T
    distance = distances(x)
    return torch.exp(-distance.square() / (2 * bandwidth**2) if kernel == "rbf" else -distance / bandwidth)


def hsic_sums(x: list[Tensor], kernels: list[str], bandwidth: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With K = k − c for each side and bandwidth, k its kernel matrix, and K̃ the same with zeros on the diagonal:

    row sums of K̃ (s, b, n), diagonals of K (s, b, n), and Σ K̃∘L̃ of every two sides (b, s, s).
    x: s of (n, p_a); bandwidth, shift (s, b): σ and c.
    """
    rows, diagonals, sums = [], [], []
    for widths, shifts in zip(bandwidth.T.tolist(), shift.T.tolist(), strict=True):
        sides = zip(x, kernels, widths, shifts, strict=True)
        k = torch.stack([kernel_matrix(t, kernel, width) - c for t, kernel, width, c in sides])
        diagonals.append(k.diagonal(dim1=1, dim2=2))
        k = k - torch.diag_embed(diagonals[-1])
        rows.append(k.sum(2))
        sums.append(torch.einsum("aij,cij->ac", k, k))
    return torch.stack(rows, 1), torch.stack(diagonals, 1), torch.stack(sums)


def hsic_of_kernels(k: Tensor, l: Tensor, *, unbiased: bool) -> Tensor:
    """HSIC of two kernel matrices: see :func:`hsic_linear`."""
    n = len(k)
    if not unbiased:
        k, l = (m - m.mean(0) - m.mean(1)[:, None] + m.mean() for m in (k, l))
        return (k * l).sum() / n**2
    k, l = k - k.diag().diag(), l - l.diag().diag()
    return ((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l.sum(1)) / (n - 2)) / (
        n * (n - 3)
    )


def spconv(
    x: Tensor, values: Tensor, bias: Tensor | None, row: Tensor, col: Tensor, q: int, channel_dim: int
) -> Tensor:
    """y[o] = b[o] + Σ values[k] x[col[k]] over the entries k with row[k] = o, at each position; channels of x and y are
    dimension ``channel_dim``. What M has no entry for is not multiplied: 0 · NaN is 0 there."""
    rows = x.double().movedim(channel_dim, -1)
    y = rows.new_zeros(*rows.shape[:-1], q)
    if bias is not None:
        y += bias.double()
    for k in range(len(values)):
        y[..., row[k]] += values[k].double() * rows[..., col[k]]
    return y.movedim(-1, channel_dim)


def spconv_weight_grad(x: Tensor, grad: Tensor, row: Tensor, col: Tensor, channel_dim: int) -> Tensor:
    """Σ grad[row[k]] x[col[k]] over the positions, for each entry k."""
    x, grad = (t.double().movedim(channel_dim, -1)[None] for t in (x, grad))
    return (grad[..., row.long()] * x[..., col.long()]).sum(list(range(x.ndim - 1)))
