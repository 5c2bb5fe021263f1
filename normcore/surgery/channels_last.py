"""A norm where the channels are the last dimension."""

from __future__ import annotations

from torch import Tensor, nn

from normcore.norms.norm import Norm


class ChannelsLast(nn.Module):
    """Any norm of the shelf for `(N, *, C)`, the shape that transformers use.

    The channels are moved to dimension 1, as a view, and the result back. Around layer norm over the channels it is
    `torch.nn.LayerNorm(C)`.

    Args:
        norm: Takes and gives `(N, C, *)`.

    Example:
        >>> import torch
        >>> from normcore.norms.group import GroupNorm
        >>> ChannelsLast(GroupNorm(6, num_groups=2))(torch.zeros(2, 5, 6)).shape
        torch.Size([2, 5, 6])
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, *, C)`."""
        y: Tensor = self.norm(x.movedim(-1, 1))
        return y.movedim(1, -1)
