"""Instance norm (Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022)."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.claims import Claims
from normcore.norms.grouped import normalize_groups
from normcore.norms.norm import Norm, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class InstanceNorm(Norm):
    """Each channel of each sample by its mean and variance over the pixels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel, and all that is learned. The same in training and evaluation: no
    running statistics, where torch can keep some. Group norm with a group per channel, and batch norm (in training) of
    a batch of one sample. It takes out what a channel is on average in an image, its contrast and its brightness, so
    that only the pattern is left: style transfer wants that, classification mostly does not.

    Args:
        num_features: C, the channels.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Example:
        >>> y = InstanceNorm(4)(torch.randn(3, 4, 8, 8))
        >>> bool(y[0, 0].mean().abs() < 1e-5)
        True
    """

    claims = Claims(statistics="sample", shift_invariant="channel")

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: A map is a single pixel, which would become zero whatever it is; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if pixels_of(x) == 1:
            raise Refusal(
                "one-pixel-map",
                "instance norm needs more than one pixel in a map, got 1; "
                "take layer or group norm, which look at several channels, or larger maps",
            )
        return normalize_groups(x, self.num_features, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
