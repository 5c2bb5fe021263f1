"""From what a sample is to tokens of a width, and where they stand."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normcore.models.initialize import Conv2d
from normcore.refusal import Refusal


class PatchEmbedding(nn.Module):
    """An image in square patches that do not overlap, each by one and the same linear map (Dosovitskiy et al. 2021).

    Args:
        shape: Channels, height and width of an image.
        width: Of a token.
        patch: Pixels of a patch's side; must divide height and width.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: The patch does not divide the image.

    Example:
        >>> PatchEmbedding((3, 8, 8), 16, 4, device="meta")(torch.empty(2, 3, 8, 8, device="meta")).shape
        torch.Size([2, 4, 16])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        patch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels, *sides = shape
        if any(side % patch for side in sides):
            common = math.gcd(*sides)
            fitting = max(number for number in range(1, patch + 1) if common % number == 0)
            raise Refusal(
                "patch-does-not-divide",
                f"patch must divide the sides of the image, got patch {patch} and {sides[0]}x{sides[1]} pixels; take a "
                f"divisor of both, such as {fitting}",
            )
        self.conv = Conv2d(channels, width, patch, stride=patch, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The patches `(N, L, width)` of images `(N, C, H, W)`, row by row."""
        patches: Tensor = self.conv(x)
        return patches.flatten(2).mT


def sinusoids(length: int, width: int) -> Tensor:
    """What is added to tokens so that their places can be told apart, `(length, width)` in float32.

        p[t, 2i] = sin(t / 10000^(2i / width)),    p[t, 2i + 1] = cos(t / 10000^(2i / width))

    (Vaswani et al. 2017, section 3.5.) Fixed: nothing is learned.

    Example:
        >>> sinusoids(2, 4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width].float()
