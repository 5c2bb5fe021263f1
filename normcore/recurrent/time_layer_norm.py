"""Layer norm inside a recurrence (Ba, Kiros & Hinton 2016, arXiv:1607.06450, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.norms.norm import at_least_float32, scale_and_shift
from normcore.recurrent.time_norm import TimeNorm
from normcore.refusal import Refusal


class TimeLayerNorm(TimeNorm):
    """Each sample at each time step by the mean and the biased variance of its values.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    The same at every time step, in training and in evaluation: `torch.nn.LayerNorm(C)`, computed in float32 or better.

    Args:
        num_features: C, at least 2.
        eps: Added to the variance, inside the root.
        shift: Learn beta; gamma always is.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Raises:
        Refusal: A sample would be a single value, which would become zero whatever it is.

    Example:
        >>> y = TimeLayerNorm(8)(torch.randn(3, 5, 8), time=0, real=None)
        >>> bool(y.mean(-1).abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        shift: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features < 2:
            raise Refusal(
                "one-value-layer",
                f"layer norm needs more than one value in a sample, got {num_features}; take a larger hidden_size",
            )
        self.num_features, self.eps, self.shift = num_features, eps, shift
        self.weight, bias = scale_and_shift(num_features, affine=True, device=device, dtype=dtype)
        self.bias: nn.Parameter | None = bias if shift else None

    def forward(self, x: Tensor, *, time: int = 0, real: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The normalized values, `(N, T, C)`, float32 or better."""
        x = x.to(at_least_float32(x.dtype))
        weight, bias = (None if values is None else values.to(x.dtype) for values in (self.weight, self.bias))
        return functional.layer_norm(x, (self.num_features,), weight, bias, self.eps)

    def extra_repr(self) -> str:
        """The values and the knobs."""
        return f"{self.num_features}, eps={self.eps}, shift={self.shift}"
