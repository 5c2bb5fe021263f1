"""A small Inception after that of the batch normalization paper (Ioffe & Szegedy 2015, arXiv:1502.03167, appendix)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from normcore.models.block import Part, Site, block
from normcore.models.dropout import Dropout
from normcore.models.initialize import Conv2d, Linear, initialize

STEM = 16
"""Channels of the first convolution."""


@dataclass(frozen=True)
class InceptionPlan:
    """Channels of a block's branches: (reduction, result) of those with 3x3 convolutions."""

    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    pool: int

    @property
    def halves(self) -> bool:
        """Whether it halves the map: without a 1x1 branch, and with a pooling that keeps its channels."""
        return self.one == self.pool == 0


PLANS = (
    InceptionPlan(16, (16, 16), (16, 24), 8),
    InceptionPlan(16, (16, 24), (16, 24), 16),
    InceptionPlan(0, (32, 40), (16, 24), 0),
    InceptionPlan(56, (16, 24), (24, 32), 32),
    InceptionPlan(48, (24, 32), (24, 32), 32),
    InceptionPlan(0, (32, 48), (48, 64), 0),
    InceptionPlan(88, (48, 80), (40, 56), 32),
    InceptionPlan(88, (48, 80), (48, 56), 32),
)
"""A quarter of the channels of the paper's blocks 3a, 3b, 3c, 4a, 4b, 4e, 5a and 5b (appendix, figure 5)."""


class InceptionBlock(nn.Module):
    """Branches side by side, their channels put together.

        y = [one(x), three(x), five(x), pool(x)]

    one is a 1x1 convolution; three a 1x1 and a 3x3; five a 1x1 and two 3x3, in the place of the 5x5 of the first
    Inception; pool a 3x3 pooling and a 1x1. A block that halves the map has stride 2 at the end of three and five,
    no one, and a max pooling of stride 2 with nothing after it.

    Args:
        before: Channels that it is given.
        plan: Those of its branches.
        conv: Makes a convolution.
        site: What stands after each.
        pooling: Makes the pooling of a block that does not halve.
    """

    def __init__(
        self,
        before: int,
        plan: InceptionPlan,
        conv: Callable[..., Conv2d],
        site: Site,
        pooling: Callable[..., nn.Module] = nn.AvgPool2d,
    ) -> None:
        super().__init__()

        def made(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
            layer = conv(inputs, outputs, size, stride=stride, padding=size // 2)
            return block(("conv", layer), outputs, site)

        stride = 2 if plan.halves else 1
        (small, three), (little, double) = plan.three, plan.double
        self.branches = nn.ModuleDict()
        if not plan.halves:
            self.branches["one"] = made(before, plan.one, 1)
        self.branches["three"] = nn.Sequential(made(before, small, 1), made(small, three, 3, stride))
        self.branches["five"] = nn.Sequential(
            made(before, little, 1), made(little, double, 3), made(double, double, 3, stride)
        )
        if plan.halves:
            self.branches["around"] = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.branches["project"] = nn.Sequential(pooling(3, stride=1, padding=1), made(before, plan.pool, 1))
        self.num_features = plan.one + three + double + (before if plan.halves else plan.pool)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, num_features, H, W)`, or of half the height and width, of `(N, C, H, W)`."""
        return torch.cat([branch(x) for branch in self.branches.values()], 1)


class InceptionSmall(nn.Module):
    """A 3x3 convolution, eight Inception blocks of which two halve the map, average pooling, one linear classifier.

    Channels are a quarter of the paper's, and the layers that bring 224 pixels down to 28 are one 3x3 convolution, so
    that it is a net for images of 32. Convolutions keep their bias with every norm, so that arms share their
    parameters. Dropout stands before the classifier, where the first Inception had it and the paper took it away
    because batch norm made it unnecessary: the two can be compared.

    Args:
        shape: Channels, height and width of an image.
        num_classes: Logits.
        norm: Makes the norm of a convolution.
        noise: Makes the noise of a convolution.
        seed: Of the initial weights.
        width: Multiplier on the channels of every convolution; the product is rounded, and at least 1.
        activation: relu, sigmoid or tanh.
        norm_placement: Whether the norm stands before or after the activation.
        dropout: Probability of zero for what the classifier is given.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.batch import BatchNorm
        >>> model = InceptionSmall((3, 32, 32), 10, norm=BatchNorm, noise=NoNoise, seed=0, width=0.5)
        >>> model(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        norm: Part,
        noise: Part,
        seed: int,
        width: float = 1.0,
        activation: str = "relu",
        norm_placement: str = "before",
        dropout: float = 0.0,
        init: str = "he",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        site = Site(norm, noise, activation, norm_placement)
        conv = partial(Conv2d, device=device, dtype=dtype)
        channels = _scaled(STEM, width)
        self.stem = block(("conv", conv(shape[0], channels, 3, padding=1)), channels, site)
        self.blocks = nn.Sequential()
        for number, plan in enumerate(PLANS):
            # The last block of the paper pools by the maximum.
            pooling = nn.MaxPool2d if number == len(PLANS) - 1 else nn.AvgPool2d
            made = InceptionBlock(channels, _wide(plan, width), conv, site, pooling)
            self.blocks.append(made)
            channels = made.num_features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = Dropout(dropout) if dropout > 0 else None
        self.classifier = Linear(channels, num_classes, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, C, H, W)`."""
        features: Tensor = self.pool(self.blocks(self.stem(x))).flatten(1)
        if self.dropout is not None:
            features = self.dropout(features)
        logits: Tensor = self.classifier(features)
        return logits


def _scaled(channels: int, width: float) -> int:
    return max(1, round(width * channels))


def _wide(plan: InceptionPlan, width: float) -> InceptionPlan:
    if plan.halves:
        one, pool = 0, 0
    else:
        one, pool = _scaled(plan.one, width), _scaled(plan.pool, width)
    (small, three), (little, double) = plan.three, plan.double
    return InceptionPlan(
        one, (_scaled(small, width), _scaled(three, width)), (_scaled(little, width), _scaled(double, width)), pool
    )
