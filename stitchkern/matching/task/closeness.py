"""How like the end's own activation the stitched one is, from moments of (x, y): no sample is read again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stitchkern.statistics import Statistics


@dataclass(frozen=True)
class Closeness:
    r"""CKA and R² of stitched activations z = W x + b with y, over all samples and positions.

    .. math::
        \mathrm{CKA} = \frac{\|W S_{xy}\|_F^2}{\|W S_{xx} W^\top\|_F \|S_{yy}\|_F},\qquad
        R^2 = 1 - \frac{E\|W x + b - y\|^2}{E\|y-\bar y\|^2}

    The linear (biased) CKA of the channels, every position a row, as the least-squares map itself is fitted; W may
    carry a gradient, so that CKA can be a penalty.
    """

    stats: Statistics

    def cka(self, weight: Tensor) -> Tensor:
        """Of W (…, q, p) float64; 0 where z does not vary, NaN where y does not."""
        s = self.stats
        # about unit size, so that squares of covariances of tiny activations do not vanish
        scale_x, scale_y = (c.diagonal(dim1=-2, dim2=-1).mean().sqrt() for c in (s.cov_xx, s.cov_yy))
        sx = torch.where(scale_x > 0, scale_x, 1.0)
        sy = torch.where(scale_y > 0, scale_y, 1.0)
        weight = weight / weight.detach().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        cross = (weight @ (s.cov_xy / sx / sy)).square().sum((-2, -1))
        own = (weight @ (s.cov_xx / sx / sx) @ weight.mT).square().sum((-2, -1))
        y = (s.cov_yy / sy / sy).square().sum().sqrt()
        varies = own > 0
        value = cross / (torch.where(varies, own, 1.0).sqrt() * y)
        return torch.where(varies | (y == 0), value, torch.zeros_like(value))

    def r2(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of W (…, q, p), b (…, q) float64; NaN where y does not vary."""
        s = self.stats
        total = s.cov_yy.diagonal().sum()
        fitted = 2 * (weight.mT * s.cov_xy).sum((-2, -1)) - ((weight @ s.cov_xx) * weight).sum((-2, -1))
        shift = (weight @ s.mean_x[..., None])[..., 0] + bias - s.mean_y
        residual = total - fitted + shift.square().sum(-1)
        return torch.where(total > 0, 1 - residual / torch.where(total > 0, total, 1.0), torch.nan)
