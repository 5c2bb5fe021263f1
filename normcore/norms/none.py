"""No norm: the control arm."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.claims import Claims
from normcore.norms.norm import Norm, check_channels


class NoNorm(Norm):
    """The identity, where a norm would stand.

    Example:
        >>> x = torch.randn(2, 3, 4, 4)
        >>> NoNorm(3)(x) is x
        True
    """

    claims = Claims(statistics="none", per_pixel=True, scale_invariant=False, eps="none", variance="none")

    def __init__(
        self,
        num_features: int,
        *,
        device: torch.device | str | None = None,  # noqa: ARG002 (every norm can be built the same way)
        dtype: torch.dtype | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """The input, `(N, C, *)`; raises `Refusal` where C is not `num_features`."""
        check_channels(x, self.num_features)
        return x

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.num_features}"
