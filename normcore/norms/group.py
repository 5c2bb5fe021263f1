"""Group norm (Wu & He 2018, arXiv:1803.08494)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class GroupNorm(Norm):
    """Each sample by the mean and variance of each group of channels, over the group's channels and pixels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel. The same in training and evaluation, whatever the batch. One group is
    layer norm, and a group per channel is instance norm.

    Args:
        num_features: C, the channels.
        num_groups: Groups of channels; must divide C.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Raises:
        Refusal: `num_groups` does not divide `num_features`.

    Example:
        >>> y = GroupNorm(4, num_groups=2)(torch.randn(3, 4, 8, 8))
        >>> bool(y[0, :2].mean().abs() < 1e-5)
        True
    """

    claims = Claims(statistics="sample", shift_invariant="sample")

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 32,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features % num_groups:
            nearest = max(d for d in range(1, min(num_groups, num_features) + 1) if num_features % d == 0)
            raise Refusal(
                "groups-do-not-divide",
                f"num_groups must divide num_features, got num_groups {num_groups} and num_features {num_features}; "
                f"take a divisor of {num_features}, such as {nearest}",
            )
        self.num_features, self.num_groups, self.eps, self.affine = num_features, num_groups, eps, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: A group holds a single value, which would become zero whatever it is; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if self.num_groups == self.num_features and pixels_of(x) == 1:
            raise Refusal(
                "one-value-group",
                f"group norm needs more than one value in a group, got {self.num_features} channels of one pixel in "
                f"num_groups {self.num_groups}; take fewer groups",
            )
        # On some devices torch keeps the statistics of half inputs in half, and under autocast it returns float32.
        y = functional.group_norm(x.to(at_least_float32(x.dtype)), self.num_groups, self.weight, self.bias, self.eps)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, affine={self.affine}"
