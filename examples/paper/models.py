"""The networks of Csiszárik et al. (NeurIPS 2021, arXiv 2110.14633), written from their description.

Tap points of the paper: Tiny-10 after BatchNorm, before ReLU (`bn1` … `bn8`); ResNet-20 after the
residual addition, before ReLU (`layer1.0.add` … `layer3.2.add`), and `bn1` for its "Layer 0.0".
Module names agree with the authors' published state dicts, which load strictly.
"""

from collections import OrderedDict

import torch
from torch import nn

TINY10_LAYERS = [f"bn{i}" for i in range(1, 9)]
RESNET20_LAYERS = ["bn1", *(f"layer{stage}.{block}.add" for stage in (1, 2, 3) for block in (0, 1, 2))]

# Input normalisation: pixels / 255, then per channel.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


def tiny10() -> nn.Sequential:
    """Tiny-10, 86,778 parameters: (n, 3, 32, 32) -> (n, 10). Spatial sizes 30, 28, 13, 11, 9, 4, 2, 2."""
    channels = (3, 16, 16, 32, 32, 32, 64, 64, 64)
    kernels = (3, 3, 3, 3, 3, 3, 3, 1)
    strides = (1, 1, 2, 1, 1, 2, 1, 1)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True), start=1):
        modules[f"conv{i}"] = nn.Conv2d(channels[i - 1], channels[i], kernel, stride)
        modules[f"bn{i}"] = nn.BatchNorm2d(channels[i])
        modules[f"relu{i}"] = nn.ReLU()
    modules["pool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(channels[-1], 10)
    return nn.Sequential(modules)


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, plus the (projected) input; `add` outputs the sum before its ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.add = nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.add(self.bn2(self.conv2(out)) + self.downsample(x)))


def resnet20(width: int = 1) -> nn.Sequential:
    """ResNet-20, `width` times 16, 32, 64 channels: (n, 3, 32, 32) -> (n, 10); 272,474 parameters for 1."""
    channels = (16 * width, 32 * width, 64 * width)
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, channels[0], 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(channels[0]),
        relu=nn.ReLU(),
    )
    inputs = channels[0]
    for stage, outputs in enumerate(channels, start=1):
        blocks = [BasicBlock(inputs, outputs, stride=2 if stage > 1 else 1)]
        blocks += [BasicBlock(outputs, outputs, stride=1) for _ in range(2)]
        modules[f"layer{stage}"] = nn.Sequential(*blocks)
        inputs = outputs
    modules["pool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(inputs, 10)
    return nn.Sequential(modules)
