"""Plain nets: ResNets without their shortcuts (He et al. 2016, arXiv:1512.03385, sections 3.3 and 4.2)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from normcore.models.block import Part, Site, block
from normcore.models.initialize import Conv2d, Linear, initialize
from normcore.models.resnet import block_plans, stem_of


class Plain(nn.Module):
    """The convolutions of a ResNet in one row, each with norm and activation: what its shortcuts are compared with.

    Deep plain nets fit their training data worse than shallow ones, although batch norm keeps signals and gradients in
    size; He et al. named it the degradation problem, and took it as the reason for shortcuts. The convolutions have the
    names of those of the resnet of the same depth and width, and so its initial values, bit for bit. As there is no
    addition, the last norm of what was a branch is followed by its activation like every other, which stands where the
    resnet has the activation after the sum, and norms that hold their own non-linearity can stand everywhere.

    Args:
        shape: Channels, height and width of an image.
        num_classes: Logits.
        norm: Makes the norm of a convolution.
        noise: Makes the noise of a convolution.
        seed: Of the initial weights.
        depth: 8, 20, 32, 44, 56 or 110, three stages; or 18, 34 or 50, four.
        width: Multiplier on the channels of every convolution; the product is rounded, and at least 1.
        activation: relu, sigmoid or tanh.
        norm_placement: Whether the norm stands before or after the activation.
        stem: small (3x3) or large (7x7 with stride 2, then a 3x3 max pooling with stride 2).
        dropout: Probability of zero for what goes from one convolution to the next within what was a branch.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.batch import BatchNorm
        >>> model = Plain((3, 32, 32), 10, norm=BatchNorm, noise=NoNoise, seed=0, depth=20, width=0.25)
        >>> len(model.blocks), model(torch.zeros(4, 3, 32, 32)).shape
        (9, torch.Size([4, 10]))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        norm: Part,
        noise: Part,
        seed: int,
        depth: int = 20,
        width: float = 1.0,
        activation: str = "relu",
        norm_placement: str = "before",
        stem: str = "small",
        dropout: float = 0.0,
        init: str = "he",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        site = Site(norm, noise, activation, norm_placement)
        conv = partial(Conv2d, device=device, dtype=dtype)
        plans = block_plans(depth, width)
        self.stem = stem_of(conv, shape[0], plans[0].before, stem, site)
        self.blocks = nn.Sequential()
        for plan in plans:
            *first, last = plan.convs(conv)
            inside = (block(("conv", made), plan.inner, replace(site, dropout=dropout)) for made in first)
            branch = nn.Sequential(*inside, block(("conv", last), plan.after, site))
            self.blocks.append(nn.Sequential(OrderedDict(branch=branch)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = Linear(plans[-1].after, num_classes, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, C, H, W)`."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits
