"""Layer norm (Ba, Kiros & Hinton 2016, arXiv:1607.06450)."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.claims import Claims
from normcore.norms.grouped import normalize_groups
from normcore.norms.norm import Norm, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class LayerNorm(Norm):
    """Each sample by its mean and variance over all channels and pixels: group norm with one group.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel, and all that is learned. The same in training and evaluation,
    whatever the batch. This is layer norm as convolutional nets use it (Wu & He 2018); the norm of that name in
    transformers and ConvNeXt, which normalizes the channels of each pixel by itself, is another function,
    `normcore.norms.layer_channels`. Without pixels, on `(N, C)`, both are `torch.nn.LayerNorm(C)`.

    With a mask the statistics of a sample run over its real tokens only, and its padding comes out as zero.

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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized input, `(N, C, *)`; with a mask, `(N, *)` and True where a token is real, zero elsewhere.

        Raises:
            Refusal: A sample is a single value, which would become zero whatever it is; C is not `num_features`; or the
                mask is not a mask of the input.
        """
        check_channels(x, self.num_features)
        if self.num_features == 1 and pixels_of(x) == 1:
            raise Refusal(
                "one-value-layer",
                "layer norm needs more than one value in a sample, got 1 channel of 1 pixel; take more channels",
            )
        return normalize_groups(x, 1, self.weight, self.bias, self.eps, mask)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
