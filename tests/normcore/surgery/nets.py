"""Nets to operate on: residual blocks whose relu is one module for two call sites, and one that is a function."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """As torchvision writes it: one relu for both places."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.expansion = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Net(nn.Module):
    """A stem whose relu is a function, two residual blocks, and a block whose relu is its own."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList([Block(channels), Block(channels)])
        self.last = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).mean((2, 3)))


def lived(model: nn.Module, *shape: int, seed: int = 0) -> nn.Module:
    """The model in float64 with statistics, gammas (some negative) and betas that nobody starts with, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().train()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)
    for _ in range(3):
        model(torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1)
    return model.eval()


def gap(theirs: Tensor, mine: Tensor) -> float:
    """The largest difference over the largest value."""
    theirs, mine = theirs.detach().double(), mine.detach().double()
    return float((theirs - mine).abs().max() / theirs.abs().max())
