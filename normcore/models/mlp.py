"""The multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from normcore.models.block import Part, Site, block
from normcore.models.initialize import Linear, initialize


class Mlp(nn.Module):
    """Fully connected layers, each with a norm, then a linear classifier without one.

    Args:
        shape: Channels, height and width of an image; it is flattened.
        num_classes: Logits.
        norm: Makes the norm of a layer.
        noise: Makes the noise of a layer.
        seed: Of the initial weights.
        hidden: Widths of the hidden layers.
        activation: relu, sigmoid or tanh.
        norm_placement: Whether the norm stands before or after the activation.
        dropout: Probability of zero for what leaves a layer, after its activation.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.batch import BatchNorm
        >>> model = Mlp((1, 8, 8), 10, norm=BatchNorm, noise=NoNoise, seed=0, hidden=(32, 16))
        >>> model(torch.zeros(4, 1, 8, 8)).shape
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
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        norm_placement: str = "before",
        dropout: float = 0.0,
        init: str = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        site = Site(norm, noise, activation, norm_placement, dropout)
        widths = [math.prod(shape), *hidden]
        self.blocks = nn.Sequential(
            *(
                block(("linear", Linear(before, after, device=device, dtype=dtype)), after, site)
                for before, after in pairwise(widths)
            )
        )
        self.classifier = Linear(widths[-1], num_classes, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, C, H, W)`."""
        logits: Tensor = self.classifier(self.blocks(x.flatten(1)))
        return logits
