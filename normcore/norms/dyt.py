"""Dynamic tanh (Zhu, Chen, He, LeCun & Liu 2025, arXiv:2503.10622)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.norms.norm import Norm, at_least_float32, check_channels, scale_and_shift


class DynamicTanh(Norm):
    """Each value by itself through a tanh of learned slope: what takes a norm's place without any statistics.

        y = gamma tanh(alpha x) + beta

    alpha, one number for the whole layer, and gamma and beta per channel are learned. The same in training and
    evaluation, whatever the batch, the pixels and the other channels. Small values pass at the slope alpha gamma and
    large ones are squashed, |y - beta| < |gamma|, as layer norm does to the outliers among its tokens (section 3 of the
    paper); but it is neither scale nor shift invariant. With no statistic to keep, half inputs are worked on in half.

    Args:
        num_features: C, the channels.
        alpha: Where the learned slope starts. The paper takes 0.5, and less in wide language models.
        affine: Learn gamma and beta; alpha is learned in any case.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Example:
        >>> DynamicTanh(1)(torch.tensor([[[-100.0, 0.0, 0.02]]])).detach()
        tensor([[[-1.0000,  0.0000,  0.0100]]])
    """

    claims = Claims(statistics="none", per_pixel=True, scale_invariant=False, eps="none", variance="none")

    def __init__(
        self,
        num_features: int,
        *,
        alpha: float = 0.5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.initial_alpha, self.affine = num_features, alpha, affine
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.alpha = nn.Parameter(torch.full((1,), alpha, device=device, dtype=kept))
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The squashed input, `(N, C, *)`.

        Raises:
            Refusal: C is not `num_features`.
        """
        check_channels(x, self.num_features)
        y = torch.tanh(x * self.alpha.to(x.dtype))
        if self.weight is None or self.bias is None:
            return y
        per_channel = (-1, *[1] * (x.dim() - 2))
        return y * self.weight.to(x.dtype).view(per_channel) + self.bias.to(x.dtype).view(per_channel)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, alpha={self.initial_alpha}, affine={self.affine}"
