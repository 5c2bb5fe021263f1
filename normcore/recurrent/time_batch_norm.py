"""Batch norm inside a recurrence (Cooijmans et al. 2017, arXiv:1603.09025, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.norms.batch import Estimator
from normcore.norms.masked import masked_mean_var
from normcore.norms.norm import at_least_float32, scale_and_shift
from normcore.recurrent.time_norm import TimeNorm
from normcore.refusal import Refusal


class TimeBatchNorm(TimeNorm):
    """Each value by its mean and variance over the batch, with running statistics of their own for each time step.

        y = gamma (x - mean_t) / sqrt(var_t + eps) + beta

    gamma and beta are shared over time. In training mean_t and var_t are the batch's at time step t, var_t biased, over
    the samples that are real then, and the running statistics follow them. At any one time step this is
    `normcore.norms.batch.BatchNorm`, with the same three estimates of the running statistics. A time step at which
    fewer than two samples are real has no variance: its output is beta, and its running statistics stay as they are.

    In evaluation mean_t and var_t are the running statistics of time step t, or of the last time step that training has
    seen, where that came earlier: the paper's T_max is the longest sequence of the training, not a number to be set.

    To compute the statistics anew, for weights that no longer move: set `estimator`, call `reset_statistics()`, and run
    the training set once in training mode.

    Args:
        num_features: C, the values of a sample at a time step.
        max_length: Time steps that have statistics of their own; the longest sequence of the training.
        eps: Added to the variance, inside the root.
        momentum: Weight of the newest batch in the running statistics of `ema`.
        estimator: Which estimate of the statistics evaluation uses: `ema`, `paper` (the mean over the batches, as in
            section 3) or `population`.
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
    """`(max_length, C)`, unbiased; of `population`, biased."""
    num_batches_tracked: Tensor
    """`(max_length,)`: batches in the running statistics of each time step."""
    values_tracked: Tensor
    """`(max_length,)`: samples in them."""

    def __init__(
        self,
        num_features: int,
        *,
        max_length: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        estimator: Estimator = "ema",
        gamma: float = 0.1,
        shift: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.max_length, self.eps, self.momentum = num_features, max_length, eps, momentum
        self.estimator: Estimator = estimator
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
        self.register_buffer("values_tracked", torch.zeros(max_length, device=device, dtype=torch.long))

    def forward(self, x: Tensor, *, time: int = 0, real: Tensor | None = None) -> Tensor:
        """The normalized values, `(N, T, C)`, float32 or better.

        Raises:
            Refusal: In training, a batch of one sample, or a time step beyond `max_length`.
        """
        x = x.to(at_least_float32(x.dtype))
        times = slice(time, time + x.shape[1])
        if not self.training:
            return self._normalize(x, *self._of_population(times))
        self._check(x, times)
        if real is None:
            return self._fused(x, times)
        mean, var, count = (statistic[0].mT for statistic in masked_mean_var(x.mT, real, (0,)))
        self._follow(times, mean.detach(), var.detach(), count.detach())
        return self._normalize(x, mean, var)

    def _normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = (x - mean) * ((var + self.eps).rsqrt() * self.weight)
        return y if self.bias is None else y + self.bias

    def _fused(self, x: Tensor, times: slice) -> Tensor:
        """Torch's batch norm, to which the values of every time step are channels."""
        samples, length, _ = x.shape
        weight = self.weight.to(x.dtype).repeat(length)
        bias = torch.zeros_like(weight) if self.bias is None else self.bias.to(x.dtype).repeat(length)
        # A momentum of one leaves the batch's own statistics, var unbiased, in the buffers it is given.
        mean, var = torch.zeros_like(weight), torch.zeros_like(weight)
        y = functional.batch_norm(x.flatten(1), mean, var, weight, bias, True, 1.0, self.eps).view_as(x)
        count = torch.full((length, 1), samples, device=x.device)
        self._follow(times, mean.view(length, -1), var.view(length, -1) * ((samples - 1) / samples), count)
        return y

    def _check(self, x: Tensor, times: slice) -> None:
        if x.shape[0] < 2:
            raise Refusal(
                "batch-of-one",
                f"batch norm needs a batch of at least 2 samples in training, got {x.shape[0]}; "
                f"take a larger batch, or layer norm",
            )
        if times.stop > self.max_length:
            raise Refusal(
                "sequence-too-long",
                f"in training a sequence may have at most max_length {self.max_length} time steps, which have "
                f"statistics of their own, got {times.stop}; set max_length to the longest sequence of the training",
            )

    @torch.no_grad()
    def _follow(self, times: slice, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Let the running statistics follow a batch: mean and biased var are `(T, C)`, count is `(T, 1)`."""
        running_mean, running_var = self.running_mean[times], self.running_var[times]
        kept, enough = running_mean.dtype, count >= 2
        mean, var, count = mean.to(kept), var.to(kept), (count * enough).to(kept)
        batches = self.num_batches_tracked[times].add_(enough[:, 0]).unsqueeze(1)
        values = self.values_tracked[times].add_(count[:, 0].long()).unsqueeze(1)
        if self.estimator == "population":
            weight = count / values.clamp(min=1)
            between = weight * (1 - weight) * (mean - running_mean).square()
            running_var.lerp_(var, weight).add_(between)
        else:
            weight = enough / batches.clamp(min=1) if self.estimator == "paper" else self.momentum * enough
            running_var.lerp_(var * count / (count - 1).clamp(min=1), weight.to(kept))
        running_mean.lerp_(mean, weight.to(kept))

    def reset_statistics(self) -> None:
        """Put the running statistics back to 0 and 1, and the counts of batches and samples to 0."""
        with torch.no_grad():
            for buffer in self.buffers():
                buffer.zero_()
            self.running_var.fill_(1)

    def _of_population(self, times: slice) -> tuple[Tensor, Tensor]:
        # Sequences are padded at their end, so the time steps that have been seen are the first ones.
        last = ((self.num_batches_tracked > 0).sum() - 1).clamp(min=0)
        rows = torch.arange(times.start, times.stop, device=last.device).minimum(last)
        return self.running_mean[rows], self.running_var[rows]

    def extra_repr(self) -> str:
        """The values and the knobs."""
        return (
            f"{self.num_features}, max_length={self.max_length}, eps={self.eps}, momentum={self.momentum}, "
            f"estimator={self.estimator}, gamma={self.gamma}, shift={self.shift}"
        )
