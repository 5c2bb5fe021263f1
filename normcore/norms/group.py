"""Group norm (Wu & He 2018, arXiv:1803.08494)."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.channel_groups import divide_channels
from normcore.norms.claims import Claims
from normcore.norms.grouped import normalize_groups
from normcore.norms.norm import Norm, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class GroupNorm(Norm):
    """Each sample by the mean and variance of each group of channels, over the group's channels and pixels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel, and all that is learned. The same in training and evaluation,
    whatever the batch. One group is layer norm, and a group per channel is instance norm.

    With a mask the statistics of a sample run over its real tokens only, and its padding comes out as zero.

    Args:
        num_features: C, the channels.
        num_groups: Groups of channels; must divide C. Not looked at where `channels_per_group` is given.
        channels_per_group: Channels of a group, the same in wide layers as in narrow ones; must divide C.
        divisibility: Where they do not divide C: `error`, or `nearest` for the largest number of groups not above
            `num_groups` that does, or the channels per group nearest to those wished for.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Raises:
        Refusal: `num_groups` or `channels_per_group` does not divide `num_features`, and divisibility is error.

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
        channels_per_group: int | None = None,
        divisibility: str = "error",
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels_per_group is None:
            self.num_groups = divide_groups(num_features, num_groups, divisibility)
            self.wished = "" if self.num_groups == num_groups else f" (nearest to {num_groups})"
        else:
            in_group = divide_channels(num_features, channels_per_group, divisibility)
            self.num_groups = num_features // in_group
            self.wished = "" if in_group == channels_per_group else f" ({in_group} channels each)"
        self.channels_per_group, self.divisibility = channels_per_group, divisibility
        if self.num_groups == num_features:
            self.claims = Claims(statistics="sample", shift_invariant="channel")
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized input, `(N, C, *)`; with a mask, `(N, *)` and True where a token is real, zero elsewhere.

        Raises:
            Refusal: A group holds a single value, which would become zero whatever it is; C is not `num_features`; or
                the mask is not a mask of the input.
        """
        check_channels(x, self.num_features)
        if self.num_groups == self.num_features and pixels_of(x) == 1:
            raise Refusal(
                "one-value-group",
                f"group norm needs more than one value in a group, got {self.num_features} channels of one pixel in "
                f"num_groups {self.num_groups}; take fewer groups",
            )
        return normalize_groups(x, self.num_groups, self.weight, self.bias, self.eps, mask)

    def extra_repr(self) -> str:
        """The channels and the knobs; and the groups that were wished for, where they do not divide."""
        return (
            f"{self.num_features}, num_groups={self.num_groups}{self.wished}, "
            f"channels_per_group={self.channels_per_group}, divisibility={self.divisibility}, "
            f"eps={self.eps}, affine={self.affine}"
        )


def divide_groups(num_features: int, num_groups: int, divisibility: str) -> int:
    """The largest divisor of `num_features` not above `num_groups`; unless it is `num_groups` itself, or an error."""
    nearest = max(d for d in range(1, min(num_groups, num_features) + 1) if num_features % d == 0)
    if nearest != num_groups and divisibility == "error":
        raise Refusal(
            "groups-do-not-divide",
            f"num_groups must divide num_features, got num_groups {num_groups} and num_features {num_features}; "
            f"take a divisor of {num_features}, such as {nearest}",
        )
    return nearest
