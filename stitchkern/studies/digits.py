"""Two small networks and real images that need no download: scikit-learn's handwritten digits.

1,797 images of 8×8 pixels in 10 classes, split once and for all into 1,198 for training and 599 for
testing. The networks have six blocks of convolution, BatchNorm, ReLU; they are tapped after BatchNorm,
before ReLU (`LAYERS`), as in Csiszárik et al. 2021. Everything is determined by the seed, and torch's
global random state is left as it was found.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SpecError

LAYERS = [f"bn{i}" for i in range(1, 7)]
CHANNELS = (1, 16, 16, 32, 32, 48, 48)
STRIDES = (1, 1, 2, 1, 2, 1)
TRAIN, TEST = 1198, 599
LEARNING_RATES = {"adam": 4e-3, "sgd": 0.1}


class Batches:
    """(inputs, labels) in order, `batch_size` at a time; can be iterated any number of times."""

    def __init__(self, inputs: Tensor, labels: Tensor, batch_size: int = 128) -> None:
        self.inputs, self.labels, self.batch_size = inputs, labels, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(t.split(self.batch_size) for t in (self.inputs, self.labels)), strict=True)

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)


def digits(*, batch_size: int = 128) -> tuple[Batches, Batches]:
    """Training and test batches of inputs (n, 1, 8, 8), standardised to about zero mean and unit variance,
    and labels (n,) int64. Raises SpecError if scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpecError("the digits need scikit-learn: pip install 'stitchkern[demo]'") from error
    bunch = load_digits()
    inputs = (torch.from_numpy(bunch.images).float().unsqueeze(1) - 4.9) / 6.0  # pixels are 0 … 16
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(2021))
    train, test = order[:TRAIN], order[TRAIN:]
    return Batches(inputs[train], labels[train], batch_size), Batches(inputs[test], labels[test], batch_size)


def network(seed: int = 0, *, width: float = 1.0, batch_norm: bool = True) -> nn.Sequential:
    """The untrained network of this seed: (n, 1, 8, 8) -> (n, 10); spatial sizes 8, 8, 4, 4, 2, 2.

    `width` times as many channels. Without `batch_norm` the layers of that name hand on what they are given, and
    convolutions have a bias.
    """
    if not 1 / 16 <= width < math.inf:
        raise ValueError(f"width must be a number of at least 1/16, which leaves one channel; got {width}")
    channels = [CHANNELS[0], *(round(width * c) for c in CHANNELS[1:])]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
        torch.manual_seed(seed)
        for i, stride in enumerate(STRIDES, start=1):
            modules[f"conv{i}"] = nn.Conv2d(channels[i - 1], channels[i], 3, stride, padding=1, bias=not batch_norm)
            modules[f"bn{i}"] = nn.BatchNorm2d(channels[i]) if batch_norm else nn.Identity()
            modules[f"relu{i}"] = nn.ReLU()
        modules["pool"] = nn.AdaptiveAvgPool2d(1)
        modules["flatten"] = nn.Flatten()
        modules["fc"] = nn.Linear(channels[-1], 10)
    return nn.Sequential(modules)


def shifted(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (n, c, h, w) moved by up to one pixel each way; what comes in at the rim is background."""
    n, _, h, w = inputs.shape
    padded = F.pad(inputs, (1, 1, 1, 1), value=float(inputs.min()))
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (n, c, 3, 3, h, w)
    dy, dx = torch.randint(0, 3, (2, n), generator=generator)
    return windows[torch.arange(n), :, dy, dx]


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread inside.

    Networks this small lose more by sharing work than they gain, above all on a busy machine, and training
    gives the same bits whatever the number of processors.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train(
    seed: int,
    data: Batches,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float | None = None,
    optimizer: str = "adam",
    width: float = 1.0,
    batch_norm: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Sequential:
    """The network of this seed, trained on `data` with a one-cycle schedule; in eval mode.

    `optimizer` is "adam" or "sgd" (with momentum 0.9), `learning_rate` the highest of the cycle (None: 4e-3 with Adam,
    0.1 with SGD); `width` and `batch_norm` as in `network`. `progress(done, total)` is called after every epoch.
    """
    if optimizer not in LEARNING_RATES:
        raise ValueError(f"optimizer must be one of {', '.join(LEARNING_RATES)}; got {optimizer!r}")
    model = network(seed, width=width, batch_norm=batch_norm).train()
    generator = torch.Generator().manual_seed(seed)
    most = LEARNING_RATES[optimizer] if learning_rate is None else learning_rate
    rule: torch.optim.Optimizer
    if optimizer == "adam":
        rule = torch.optim.Adam(model.parameters())
    else:
        rule = torch.optim.SGD(model.parameters(), lr=most, momentum=0.9)
    steps = -(-len(data.inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(rule, most, total_steps=epochs * steps)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(data.inputs), generator=generator).split(batch_size):
            rule.zero_grad()
            F.cross_entropy(model(shifted(data.inputs[chosen], generator)), data.labels[chosen]).backward()
            rule.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    return model.eval()
