"""Layer norm (Ba, Kiros & Hinton 2016, arXiv:1607.06450)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class LayerNorm(Norm):
    """Each sample by its mean and variance over all channels and pixels: group norm with one group.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel. This is layer norm as convolutional nets use it (Wu & He 2018); the
    norms of that name which normalize the channels of each pixel by itself are another function. Without pixels, on
    `(N, C)`, both are `torch.nn.LayerNorm(C)`.

    Args:
        num_features: C, the channels.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Example:
        >>> y = LayerNorm(4)(torch.randn(3, 4, 8, 8))
        >>> bool(y[0].mean().abs() < 1e-5)
        True
    """

    claims = Claims(statistics="sample", shift_invariant="sample")

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
            Refusal: A sample is a single value, which would become zero whatever it is; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if self.num_features == 1 and pixels_of(x) == 1:
            raise Refusal(
                "one-value-layer",
                "layer norm needs more than one value in a sample, got 1 channel of 1 pixel; take more channels",
            )
        # On some devices torch keeps the statistics of half inputs in half, and under autocast it returns float32.
        y = functional.group_norm(x.to(at_least_float32(x.dtype)), 1, self.weight, self.bias, self.eps)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
