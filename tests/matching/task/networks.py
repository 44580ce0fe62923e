"""Small networks and data for task-loss matching, in float64 where sums are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """Two layers to stitch, the second one overwritten at once; ``skip`` keeps the end from being cut."""

    def __init__(self, c: int = 4, classes: int = 3, stride: int = 1, skip: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, c, 3), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c + 1, 3, stride), nn.BatchNorm2d(c + 1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU(inplace=True)
        self.fc = nn.Linear(c + 1, classes)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))).mean((2, 3))
        return self.fc(y + x.mean((1, 2, 3))[:, None] if self.skip else y)


class Tokens(nn.Module):
    """(n, t, c) in the middle, (n, c) towards the end."""

    def __init__(self, c: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.embed, self.mix, self.pooled, self.fc = (
            nn.Linear(6, c),
            nn.Linear(c, c),
            nn.Identity(),
            nn.Linear(c, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pooled(torch.tanh(self.mix(self.embed(x[:, 0]))).mean(1)))


def made(kind: type[nn.Module], seed: int, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(**options).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 2)
        model.fc.weight.data *= 3  # so that the outputs have something to say
        return model


def conv(seed: int, **options: object) -> nn.Module:
    return made(Conv, seed, **options)


def tokens(seed: int, **options: object) -> nn.Module:
    return made(Tokens, seed, **options)


def batches(sizes: tuple[int, ...] = (20, 20, 8), side: int = 6, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 1, side, side, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g))
        for n in sizes
    ]


#: one epoch in the order of the data, with steps that say what the gradient was
PLAIN = {
    "epochs": 1,
    "shuffle": False,
    "batch_size": 20,
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 0.2,
    "milestones": (),
}
