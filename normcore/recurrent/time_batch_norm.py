"""Batch norm inside a recurrence (Cooijmans et al. 2017, arXiv:1603.09025, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.norms.masked import masked_mean_var
from normcore.norms.norm import at_least_float32, scale_and_shift
from normcore.recurrent.time_norm import TimeNorm
from normcore.refusal import Refusal


class TimeBatchNorm(TimeNorm):
    """Each value by its mean and variance over the batch, with running statistics of their own for each time step.

        y = gamma (x - mean_t) / sqrt(var_t + eps) + beta

    gamma and beta are shared over time. In training mean_t and var_t are the batch's at time step t, var_t biased, over
    the samples that are real then; running statistics move towards them, with the unbiased variance, as in
    `normcore.norms.batch.BatchNorm`, to which this is equal at any one time step. A time step at which fewer than two
    samples are real has no variance: its output is beta, and its running statistics stay as they are.

    In evaluation mean_t and var_t are the running statistics of time step t, or of the last time step that training has
    seen, where that came earlier: the paper's T_max is the longest sequence of the training, not a number to be set.

    Args:
        num_features: C, the values of a sample at a time step.
        max_length: Time steps that have statistics of their own; the longest sequence of the training.
        eps: Added to the variance, inside the root.
        momentum: Weight of the newest batch in the running statistics.
        gamma: Initial value of gamma. The paper's 0.1 keeps tanh and sigmoid in their middle, where gradients pass;
            at 1 they vanish over time, and 0.01 and below trained unstably (section 4).
        shift: Learn beta; gamma always is.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> norm = TimeBatchNorm(8, max_length=5)
        >>> y = norm(torch.randn(100, 5, 8), time=0, real=None)
        >>> bool((y.std(0, correction=0) - 0.1).abs().max() < 1e-4)
        True
        >>> norm.eval()(torch.randn(1, 1000, 8), time=0, real=None).shape
        torch.Size([1, 1000, 8])
    """

    running_mean: Tensor
    """`(max_length, C)`."""
    running_var: Tensor
    """`(max_length, C)`, unbiased."""
    num_batches_tracked: Tensor
    """`(max_length,)`: batches in the running statistics of each time step."""

    def __init__(
        self,
        num_features: int,
        *,
        max_length: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        gamma: float = 0.1,
        shift: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.max_length, self.eps, self.momentum = num_features, max_length, eps, momentum
        self.gamma, self.shift = gamma, shift
        weight, bias = scale_and_shift(num_features, affine=True, device=device, dtype=dtype)
        assert weight is not None
        nn.init.constant_(weight, gamma)
        self.weight: nn.Parameter = weight
        self.bias: nn.Parameter | None = bias if shift else None
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.register_buffer("running_mean", torch.zeros(max_length, num_features, device=device, dtype=kept))
        self.register_buffer("running_var", torch.ones(max_length, num_features, device=device, dtype=kept))
        self.register_buffer("num_batches_tracked", torch.zeros(max_length, device=device, dtype=torch.long))

    def forward(self, x: Tensor, *, time: int = 0, real: Tensor | None = None) -> Tensor:
        """The normalized values, `(N, T, C)`, float32 or better.

        Raises:
            Refusal: In training, a batch of one sample, or a time step beyond `max_length`.
        """
        x = x.to(at_least_float32(x.dtype))
        mean, var = self._of_batch(x, time, real) if self.training else self._of_population(time, x.shape[1])
        y = (x - mean) * (var + self.eps).rsqrt() * self.weight
        return y if self.bias is None else y + self.bias

    def _of_batch(self, x: Tensor, time: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each time step, `(T, C)`; and the running ones are moved."""
        samples, length, _ = x.shape
        if samples < 2:
            raise Refusal(
                "batch-of-one",
                f"batch norm needs a batch of at least 2 samples in training, got {samples}; "
                f"take a larger batch, or layer norm",
            )
        if time + length > self.max_length:
            raise Refusal(
                "sequence-too-long",
                f"in training a sequence may have at most max_length {self.max_length} time steps, which have "
                f"statistics of their own, got {time + length}; set max_length to the longest sequence of the training",
            )
        if real is None:
            real = torch.ones((samples, length), device=x.device, dtype=torch.bool)
        mean, var, count = (statistic[0].mT for statistic in masked_mean_var(x.mT, real, (0,)))
        with torch.no_grad():
            self._follow(slice(time, time + length), mean.detach(), var.detach(), count)
        return mean, var

    def _follow(self, times: slice, mean: Tensor, var: Tensor, count: Tensor) -> None:
        enough = count >= 2
        rate = self.momentum * enough.to(self.running_mean.dtype)
        unbiased = var * count / (count - 1).clamp(min=1)
        self.running_mean[times].lerp_(mean.to(rate.dtype), rate)
        self.running_var[times].lerp_(unbiased.to(rate.dtype), rate)
        self.num_batches_tracked[times].add_(enough[:, 0])

    def _of_population(self, time: int, length: int) -> tuple[Tensor, Tensor]:
        # Sequences are padded at their end, so the time steps that have been seen are the first ones.
        last = ((self.num_batches_tracked > 0).sum() - 1).clamp(min=0)
        times = torch.arange(time, time + length, device=last.device).minimum(last)
        return self.running_mean[times], self.running_var[times]

    def extra_repr(self) -> str:
        """The values and the knobs."""
        return (
            f"{self.num_features}, max_length={self.max_length}, eps={self.eps}, momentum={self.momentum}, "
            f"gamma={self.gamma}, shift={self.shift}"
        )
