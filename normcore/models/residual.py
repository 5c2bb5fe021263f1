"""The residual block: what a net adds to what it was given."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """A branch, a way around it, and their sum.

        h = entry(x)
        y = activation(branch(h) + shortcut(x or h))

    With activations after the addition (He et al. 2016, arXiv:1512.03385) the entry is the identity; with activations
    first (arXiv:1603.05027) it is a norm with its activation, and what follows the addition is the identity.

    Args:
        entry: Before the branch.
        branch: One part per linear map, each with the map and what follows it within the branch.
        shortcut: The way around.
        activation: After the addition.
        shares_entry: Whether the shortcut is given what the branch is given, rather than x.

    Example:
        >>> import torch
        >>> block = ResidualBlock(nn.Identity(), nn.Sequential(nn.Linear(2, 2)), nn.Identity(), nn.ReLU())
        >>> _ = nn.init.zeros_(block.branch[0].weight), nn.init.zeros_(block.branch[0].bias)
        >>> block(torch.tensor([[-1.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """

    def __init__(
        self,
        entry: nn.Module,
        branch: nn.Sequential,
        shortcut: nn.Module,
        activation: nn.Module,
        *,
        shares_entry: bool = False,
    ) -> None:
        super().__init__()
        self.entry, self.branch, self.shortcut, self.activation = entry, branch, shortcut, activation
        self.shares_entry = shares_entry

    def forward(self, x: Tensor) -> Tensor:
        """The sum, activated or not, `(N, C', H', W')`."""
        h = self.entry(x)
        around = self.shortcut(h if self.shares_entry else x)
        y: Tensor = self.activation(self.branch(h) + around)
        return y


class PaddedShortcut(nn.Module):
    """The identity with other shapes: every stride-th pixel, and zeros in the new channels (option A of the paper).

    Args:
        new_channels: Channels of zeros, after those there are.
        stride: Of rows and of columns.

    Example:
        >>> import torch
        >>> PaddedShortcut(1, stride=2)(torch.ones(1, 2, 4, 4)).sum((2, 3)).tolist()
        [[4.0, 4.0, 0.0]]
    """

    def __init__(self, new_channels: int, *, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C + new_channels, H / stride, W / stride)`."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        """The shapes."""
        return f"new_channels={self.new_channels}, stride={self.stride}"
