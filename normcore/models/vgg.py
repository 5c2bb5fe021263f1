"""VGG (Simonyan & Zisserman 2015, arXiv:1409.1556) for small images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normcore.models.block import Part, Site, block
from normcore.models.initialize import Conv2d, Linear, initialize
from normcore.refusal import Refusal

STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    13: ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
"""Channels of the convolutions between the poolings: configurations A, B, D and E of the paper's table 1."""

SMALLEST_IMAGE = 2 ** len(STAGES[11])
"""Pixels of a side below which a pooling would have nothing to pool."""


class Vgg(nn.Module):
    """3x3 convolutions with a norm each, five 2x2 max poolings, one linear classifier without a norm.

    The three fully connected layers of the original, made for images of 224x224, are one linear layer here, as is usual
    for CIFAR-10. Convolutions keep their bias with every norm, so that arms share their parameters.

    Args:
        shape: Channels, height and width of an image.
        num_classes: Logits.
        norm: Makes the norm of a convolution.
        noise: Makes the noise of a convolution.
        seed: Of the initial weights.
        depth: 11, 13, 16 or 19: layers with weights in the original.
        width: Multiplier on the channels of every convolution; the product is rounded, and at least 1.
        activation: relu, sigmoid or tanh.
        norm_placement: Whether the norm stands before or after the activation.
        dropout: Probability of zero for what leaves a convolution's activation (and norm), before a pooling.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: The image is too small for five poolings.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.batch import BatchNorm
        >>> model = Vgg((3, 32, 32), 10, norm=BatchNorm, noise=NoNoise, seed=0, width=0.25)
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
        depth: int = 11,
        width: float = 1.0,
        activation: str = "relu",
        norm_placement: str = "before",
        dropout: float = 0.0,
        init: str = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels, *sides = shape
        if min(sides) < SMALLEST_IMAGE:
            raise Refusal(
                "image-too-small",
                f"five poolings need an image of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, "
                f"got {sides[0]}x{sides[1]}; set data.size to {SMALLEST_IMAGE}, or take the mlp",
            )
        site = Site(norm, noise, activation, norm_placement, dropout)
        self.blocks = nn.Sequential()
        for stage in STAGES[depth]:
            for full_width in stage:
                after = max(1, round(width * full_width))
                conv = Conv2d(channels, after, 3, padding=1, device=device, dtype=dtype)
                self.blocks.append(block(("conv", conv), after, site))
                channels = after
            self.blocks[-1].add_module("pool", nn.MaxPool2d(2))
        pixels = math.prod(side // SMALLEST_IMAGE for side in sides)
        self.classifier = Linear(channels * pixels, num_classes, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, C, H, W)`."""
        logits: Tensor = self.classifier(self.blocks(x).flatten(1))
        return logits
