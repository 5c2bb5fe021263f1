"""No noise."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from normcore.noise.noise import Noise


class NoNoise(Noise):
    """The identity, where a noise would stand.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 3)
        >>> NoNoise(3)(x) is x
        True
    """

    draws: ClassVar[bool] = False

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """The input, `(N, C, *)`."""
        return x

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.num_features}"
