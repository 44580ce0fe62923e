"""What a user would otherwise write: published formulas in plain torch and numpy.

Those named after a code that no package index has take its steps, from its paper and its answers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

# ------------------------------------------------------------------------------------------------------------ CKA


def pairs_of_layers(a: nn.Module, b: nn.Module, batches: list[Tensor], layers: list[str], *, centred: bool) -> Tensor:
    """Minibatch CKA of all pairs: Gram matrices in hooks, then HSIC₁ of all pairs by one product."""
    grams: list[Tensor] = []

    def hook(_module: nn.Module, _input: tuple, output: Tensor) -> None:
        x = output.flatten(1)
        if centred:
            x = x - x.mean(0)
        grams.append(x @ x.T)

    handles = [model.get_submodule(name).register_forward_hook(hook) for model in (a, b) for name in layers]
    sums = torch.zeros(2 * len(layers), 2 * len(layers))
    with torch.inference_mode():
        for batch in batches:
            grams.clear()
            a(batch), b(batch)
            sums += unbiased_hsic(torch.stack(grams))
    for handle in handles:
        handle.remove()
    return _cka(sums, len(layers))


def unbiased_hsic(k: Tensor) -> Tensor:
    """HSIC₁ (Song et al. 2012) between all of the matrices k (l, n, n)."""
    n = k.shape[-1]
    k.diagonal(dim1=1, dim2=2).zero_()
    rows = k.sum(2)
    total, flat = rows.sum(1), k.flatten(1)
    products = flat @ flat.T + torch.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T
    return products / (n * (n - 3))


def pairs_of_features(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """CKA of all pairs of stored features: centred Gram matrices and one product."""
    grams = torch.stack([(c @ c.T).flatten() for c in (t - t.mean(0) for t in (*xs, *ys))])
    return _cka(grams @ grams.T, len(xs))


def _cka(hsic: Tensor, count: int) -> Tensor:
    """(count, rest) of the HSIC between all layers of both sides."""
    own = hsic.diagonal().sqrt()
    return (hsic / torch.outer(own, own))[:count, count:]


def linear_cka(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    xy, xx, yy = (product.square().sum() for product in (x.T @ y, x.T @ x, y.T @ y))
    return (xy / (xx * yy).sqrt()).item()


def linear_cka_numpy(x: Tensor, y: Tensor) -> float:
    a, b = (t.numpy() - t.numpy().mean(0) for t in (x, y))
    return float(np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


# ---------------------------------------------------------------------------------------- canonical correlations


def cca_of_samples(x: Tensor, y: Tensor) -> float:
    """QR of the samples, and the angles between what they span."""
    x, y = (torch.linalg.qr(t - t.mean(0)).Q for t in (x, y))
    return torch.linalg.svdvals(x.T @ y).mean().item()


def svcca_of_samples(x: Tensor, y: Tensor) -> float:
    """SVD of the samples; the left singular vectors of what is kept are the bases whose angles count."""
    bases = []
    for t in (x, y):
        u, s, _ = torch.linalg.svd(t - t.mean(0), full_matrices=False)
        bases.append(u[:, : _kept(s.square())])
    return torch.linalg.svdvals(bases[0].T @ bases[1]).mean().item()


def svcca_of_covariances(x: Tensor, y: Tensor) -> float:
    """Eigenvectors of the covariances, in float64: the fewest operations that we know of."""
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    halves = []
    for t in (x, y):
        values, vectors = torch.linalg.eigh(t.T @ t)
        values, vectors = values.flip(0), vectors.flip(1)
        k = _kept(values)
        halves.append(vectors[:, :k] / values[:k].sqrt())
    return torch.linalg.svdvals(halves[0].T @ (x.T @ y) @ halves[1]).mean().item()


def _kept(variances: Tensor) -> int:
    share = variances.cumsum(0) / variances.sum()
    return int((share < 0.99).sum()) + 1


def svcca_of_google(x: Tensor, y: Tensor) -> float:
    """google/svcca's steps in numpy: SVD of centred activations (p, n), then CCA of what it keeps."""
    reduced = []
    for t in (x, y):
        acts = t.numpy().T
        _, s, v = np.linalg.svd(acts - acts.mean(1, keepdims=True), full_matrices=False)
        k = _kept(torch.from_numpy(s).double().square())
        reduced.append(s[:k, None] * v[:k])
    k = len(reduced[0])
    cov = np.cov(*reduced)
    left, right = _inverse_root(cov[:k, :k]), _inverse_root(cov[k:, k:])
    return float(np.linalg.svd(left @ cov[:k, k:] @ right)[1].mean())


def pwcca_of_sim_metric(x: Tensor, y: Tensor) -> float:
    """sim_metric's steps in numpy, float64: covariances, inverse roots, SVD, weights from the canonical variates."""
    a, b = (t.double().numpy() for t in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    root_a, root_b = _inverse_root(a.T @ a), _inverse_root(b.T @ b)
    u, rho, _ = np.linalg.svd(root_a @ (a.T @ b) @ root_b)
    weight = np.abs((a @ (root_a @ u[:, : len(rho)])).T @ a).sum(1)
    return float(weight @ rho / weight.sum())


def pwcca_of_covariances(x: Tensor, y: Tensor) -> float:
    """The same in torch, the weights from covariances too."""
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    cov = x.T @ x
    roots = []
    for c in (cov, y.T @ y):
        values, vectors = torch.linalg.eigh(c)
        roots.append(vectors / values.sqrt() @ vectors.T)
    u, rho, _ = torch.linalg.svd(roots[0] @ (x.T @ y) @ roots[1])
    weight = (u.T @ roots[0] @ cov).abs().sum(1)
    return ((weight * rho).sum() / weight.sum()).item()


def _inverse_root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return (vectors / np.sqrt(values)) @ vectors.T


# ------------------------------------------------------------------------------------------- neighbours, distances


def mutual_knn_sorted(x: Tensor, y: Tensor, k: int) -> float:
    """platonic-rep's steps: products of normalised samples, all of them sorted, and n × n masks."""
    masks = []
    for t in (x, y):
        order = _cosines(t).argsort(dim=1, descending=True)[:, :k]
        masks.append(torch.zeros(len(t), len(t)).scatter_(1, order, 1.0))
    return ((masks[0] * masks[1]).sum(1) / k).mean().item()


def mutual_knn_topk(x: Tensor, y: Tensor, k: int) -> float:
    masks = []
    for t in (x, y):
        nearest = _cosines(t).topk(k, dim=1).indices
        masks.append(torch.zeros(len(t), len(t), dtype=torch.bool).scatter_(1, nearest, True))
    return (masks[0] & masks[1]).sum().item() / (k * len(x))


def _cosines(t: Tensor) -> Tensor:
    t = torch.nn.functional.normalize(t, dim=1)
    return (t @ t.T).fill_diagonal_(-torch.inf)


def rsa_scipy(x: Tensor, y: Tensor) -> float:
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    return float(spearmanr(pdist(x.numpy()), pdist(y.numpy())).statistic)


def rsa_torch(x: Tensor, y: Tensor) -> float:
    """pdist by products, ranks by sorting twice: no ties, float32."""
    above = torch.triu_indices(len(x), len(x), 1)
    ranks = []
    for t in (x, y):
        d = torch.cdist(t, t)[above[0], above[1]]
        order = d.argsort()
        ranks.append(torch.empty(len(d), dtype=torch.float64).scatter_(0, order, torch.arange(len(d)).double()))
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()
