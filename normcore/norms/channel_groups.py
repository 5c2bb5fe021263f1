"""Groups of channels that are whitened together: how they are cut, seen as matrices, and turned."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from normcore.refusal import Refusal


def divide_channels(num_features: int, channels_per_group: int, divisibility: str) -> int:
    """Channels of a group: `channels_per_group` where it divides `num_features`, else the nearest divisor, or an error.

    Args:
        num_features: C, the channels.
        channels_per_group: Those wished for a group.
        divisibility: What to do where they do not divide: error or nearest (the smaller of two equally near).

    Raises:
        Refusal: They do not divide, and divisibility is error.

    Example:
        >>> divide_channels(48, 20, "nearest")
        16
    """
    divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
    nearest = min(divisors, key=lambda d: abs(d - channels_per_group))
    if nearest != channels_per_group and divisibility == "error":
        raise Refusal(
            "channels-per-group-do-not-divide",
            f"channels_per_group must divide num_features, got channels_per_group {channels_per_group} and "
            f"num_features {num_features}; take a divisor of {num_features}, such as {nearest}, or set divisibility to "
            f"nearest",
        )
    return nearest


def check_enough_values(x: Tensor, channels_per_group: int) -> None:
    """Raise `Refusal` unless channels of `x` have more values than a group has channels.

    m values less their mean span m - 1 dimensions, so that the covariance of m or more channels is singular. Whitened,
    such values lie at the corners of one and the same simplex, whatever they were.
    """
    if (values := x.numel() // x.shape[1]) <= channels_per_group:
        raise Refusal(
            "too-few-values-to-whiten",
            f"whitening needs more values of a channel than a group has channels, in training, got {values} values "
            f"(samples times pixels) and {channels_per_group} channels in a group; take fewer channels_per_group, or a "
            f"larger batch",
        )


def to_groups(x: Tensor, channels_per_group: int, like: Tensor | None = None) -> Tensor:
    """`x`, `(N, C, *)`, as `(B, G, D, L)`: B parts with L values each of the D channels of G groups.

    A view where channels are last in memory (B is 1, L all values), and where they are not (B is N, L the pixels). What
    is to meet the groups of another tensor, a gradient those of its input, is parted `like` that one, whatever order
    its own memory has.
    """
    last = x.movedim(1, -1)
    if (last if like is None else like.movedim(1, -1)).is_contiguous():
        return last.reshape(1, -1, x.shape[1] // channels_per_group, channels_per_group).permute(0, 2, 3, 1)
    return x.reshape(x.shape[0], -1, channels_per_group, x.shape[2:].numel())


def from_groups(groups: Tensor, x: Tensor) -> Tensor:
    """The inverse of `to_groups`: the shape and the memory format of `x`."""
    last = x.movedim(1, -1)
    if last.is_contiguous():
        return groups.permute(0, 3, 1, 2).contiguous().view(last.shape).movedim(-1, 1)
    return groups.contiguous().view(x.shape)


def covariance(centred: Tensor) -> Tensor:
    """`(G, D, D)`: the biased covariance of each group's channels, from `(B, G, D, L)` without their means."""
    parts, _, _, values = centred.shape
    return (centred @ centred.mT).sum(0) / (parts * values)


def turn(matrices: Tensor, groups: Tensor) -> Tensor:
    """`(B, G, D, L)`: each group's values, multiplied from the left by its matrix of `(G, D, D)`."""
    if groups.stride(-1) == 1:
        return matrices @ groups
    # The product is made where it will stand: channels last.
    return (groups.mT @ matrices.mT).mT


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A scope in which products of matrices have the dtype of their factors, under autocast too."""
    device = x.device.type
    under = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if under else nullcontext()
