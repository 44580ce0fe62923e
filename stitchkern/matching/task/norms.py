"""BatchNorm with the statistics of each batch, in a model that is otherwise frozen."""

from __future__ import annotations

from torch import nn


class BatchStatistics:
    """Inside, BatchNorm takes the statistics of each batch; running ones come back afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __enter__(self) -> None:
        self._kept = [{k: v.clone() for k, v in m.named_buffers(recurse=False)} for m in self._norms]
        for m in self._norms:
            m.training = True

    def __exit__(self, *_: object) -> None:
        for m, kept in zip(self._norms, self._kept, strict=True):
            m.training = False
            for name, value in kept.items():
                getattr(m, name).copy_(value)
