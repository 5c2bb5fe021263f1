"""What batch norm and its kin share: running statistics, which evaluation normalizes by."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.gathering import Moments, channel_moments, mean_and_var
from normcore.norms.norm import Norm, at_least_float32, scale_and_shift
from normcore.refusal import Refusal


class RunningNorm(Norm):
    """A norm by statistics of the batch in training, and by running ones in evaluation.

    Parameters and buffers are named as in `torch.nn.BatchNorm2d`; a kind that divides by something else than a standard
    deviation keeps that in a buffer of its own name. Buffers are float32 or better and start at 0 (mean) and 1.

    Args:
        num_features: C, the channels.
        eps: Keeps the divisor from zero.
        momentum: Weight of the newest batch in the running statistics; None where all count alike.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.
    """

    spread: ClassVar[str] = "running_var"
    """The buffer of what is divided by."""

    momentum: float | None
    """Weight of the newest batch in the running statistics; None where all count alike, as in torch."""
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float,
        momentum: float | None,
        affine: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=kept))
        self.register_buffer(self.spread, torch.ones(num_features, device=device, dtype=kept))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device, dtype=torch.long))

    def reset_statistics(self) -> None:
        """Put the running statistics back to 0 and 1, and the count of batches to 0."""
        with torch.no_grad():
            self.running_mean.zero_()
            self.get_buffer(self.spread).fill_(1)
            self.num_batches_tracked.zero_()

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """See `normcore.norms.gathering.Gathers`."""
        return channel_moments(x, mask)

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:
        """See `normcore.norms.gathering.Gathers`."""
        mean, var = mean_and_var(moments, unbiased=unbiased)
        return {"running_mean": mean, "running_var": var}

    def by_running_statistics(self, x: Tensor) -> Tensor:
        """`x` as evaluation normalizes it."""
        mean, var = self.running_mean, self.running_var
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Copies: the next batch moves the buffers, and the backward pass may come after it. Torch would not notice.
            mean, var = mean.clone(), var.clone()
        return functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def normalize(self, x: Tensor, mean: Tensor, divisor: Tensor) -> Tensor:
        """`gamma (x - mean) / divisor + beta` in the dtype and memory format of `x`; mean and divisor are `(C,)`."""
        y = (x.to(mean.dtype) - per_channel(mean, x)) / per_channel(divisor, x)
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, x) + per_channel(self.bias, x)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`(C,)` values in a shape that broadcasts against `x`, `(N, C, *)`."""
    return values.view(-1, *(1,) * (x.dim() - 2))


def root(values: Tensor) -> Tensor:
    """The square root of values from 0 on, with a derivative of 0 at 0: a channel that is constant then stays so."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1).sqrt(), 0)


def check_batch(x: Tensor, name: str) -> None:
    """Raise `Refusal` (code `batch-of-one`) for a batch of a single sample, which has no batch statistics."""
    if x.shape[0] < 2:
        raise Refusal(
            "batch-of-one",
            f"{name} needs a batch of at least 2 samples in training, got {x.shape[0]}; "
            f"take a larger batch, or a norm without batch statistics: group, layer or instance",
        )
