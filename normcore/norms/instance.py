"""Instance norm (Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class InstanceNorm(Norm):
    """Each channel of each sample by its mean and variance over the pixels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel. The same in training and evaluation: no running statistics. Group
    norm with a group per channel, and batch norm (in training) of a batch of one sample.

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
        y = functional.instance_norm(x.to(at_least_float32(x.dtype)), weight=self.weight, bias=self.bias, eps=self.eps)
        # torch's instance norm returns its own memory format; a net in channels_last would be copied back and forth.
        return torch.empty_like(x).copy_(y) if y.stride() != x.stride() else y.to(x.dtype)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
