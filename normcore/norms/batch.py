"""Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.masked import masked_mean_var, zero_where_masked
from normcore.norms.norm import check_channels, pixels_of
from normcore.norms.running import RunningNorm, check_batch

Estimator = Literal["ema", "paper", "population"]


class BatchNorm(RunningNorm):
    """Each channel by its mean and variance over the batch and the pixels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    In training mean and var are the batch's, var biased (divided by m = N x pixels). In evaluation they are the running
    statistics, which each batch b of a training pass moves. Three estimates of them are on offer:

    - `ema`: `running = (1 - momentum) running + momentum new`, with the unbiased var (divided by m - 1), as in torch;
    - `paper`: mean_b(mean), mean_b(unbiased var), every batch since the last reset with the same weight (algorithm 2 of
      the paper; torch's `momentum=None`);
    - `population`: mean and biased variance of all values since the last reset taken together, so that a batch counts
      by its size, and the variance between the batches' means counts too.

    All batches of one size give `paper` and `population` the same mean. The last two are meant for a pass over the
    training set with fixed weights, after `reset_statistics()`: while weights move they hold on to activations of long
    ago. `normcore.train` makes that pass before it evaluates; `normcore.recompute_statistics` makes it for any model.

    Parameters and buffers are named as in `torch.nn.BatchNorm2d`, so state dicts fit both ways; the number of values
    that `population` has seen is not among them, and after loading every batch before is taken to have been as large as
    the next. With a single sample per batch batch norm would be instance norm in training and something else in
    evaluation, so at least two are asked for, on maps as well.

    Args:
        num_features: C, the channels.
        eps: Added to the variance, inside the root.
        momentum: Weight of the newest batch in the running statistics of `ema`; the others have none.
        estimator: Which estimate of the statistics evaluation uses.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> y = BatchNorm(3)(5 + 2 * torch.randn(64, 3, 8, 8))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    claims = Claims(statistics="batch", shift_invariant="channel", theorem_4_1=True, running_variance="unbiased")

    values_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        estimator: Estimator = "ema",
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        moving = momentum if estimator == "ema" else None
        super().__init__(num_features, eps=eps, momentum=moving, affine=affine, device=device, dtype=dtype)
        self.estimator: Estimator = estimator
        if estimator == "population":
            self.claims = Claims(
                statistics="batch", shift_invariant="channel", theorem_4_1=True, running_variance="biased"
            )
            # Of one value, not of none: what a compiled graph writes into a float64 number on the CPU is lost in 2.13.
            values = torch.zeros(1, device=device, dtype=torch.float64)
            self.register_buffer("values_tracked", values, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Args:
            x: `(N, C, *)`.
            mask: `(N, *)`, True where a token is real: statistics are those of the real tokens, and the output is zero
                at the others. A batch without any real token gives zeros and moves nothing but the count of batches.

        Raises:
            Refusal: In training, a batch of one sample; C is not `num_features`; or the mask does not fit.
        """
        check_channels(x, self.num_features)
        if mask is not None:
            return self._masked(x, mask)
        if not self.training:
            return self.by_running_statistics(x)
        check_batch(x, "batch norm")
        self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self._fused(x, self.running_mean, self.running_var, self.momentum)
        # A momentum of one leaves the batch's own statistics in the buffers it is given.
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = self._fused(x, mean, var, 1.0)
        count = torch.full((), x.shape[0] * pixels_of(x), device=x.device, dtype=torch.float64)
        self._move(mean, var, count)
        return y

    def _fused(self, x: Tensor, mean: Tensor, var: Tensor, momentum: float) -> Tensor:
        return functional.batch_norm(x, mean, var, self.weight, self.bias, True, momentum, self.eps)

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        x = zero_where_masked(x, mask)
        if not self.training:
            return zero_where_masked(self.by_running_statistics(x), mask)
        check_batch(x, "batch norm")
        mean, var, count = (t.flatten() for t in masked_mean_var(x, mask, (0, *range(2, x.dim()))))
        self.num_batches_tracked.add_(1)
        with torch.no_grad():
            # The count is at least 1 also where there is none.
            real = mask.any()
            unbiased = var * count / (count - 1).clamp(min=1)
            self._move(
                torch.where(real, mean, self.running_mean),
                torch.where(real, unbiased, self.running_var),
                (count * real).squeeze(),
            )
        return zero_where_masked(self.normalize(x, mean, (var + self.eps).sqrt()), mask)

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Let the running statistics follow a batch of `count` values with this mean and unbiased var."""
        kept = self.running_mean.dtype
        mean, var, count = mean.detach().to(kept), var.detach().to(kept), count.detach().double()
        if self.momentum is not None:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        elif self.estimator == "paper":
            weight = self.num_batches_tracked.to(kept).reciprocal()
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(var, weight)
        else:
            before = torch.where(self.values_tracked > 0, self.values_tracked, (self.num_batches_tracked - 1) * count)
            self.values_tracked.copy_(before + count)
            weight = (count / self.values_tracked.clamp(min=1)).to(kept)
            biased = var * ((count - 1).clamp(min=0) / count.clamp(min=1)).to(kept)
            between = weight * (1 - weight) * (mean - self.running_mean).square()
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(biased, weight).add_(between)

    def reset_statistics(self) -> None:
        """Put the running statistics back to 0 and 1, and the count of batches to 0."""
        super().reset_statistics()
        if self.estimator == "population":
            self.values_tracked.zero_()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.estimator == "population":
            # They were of other statistics than those just loaded.
            self.values_tracked.zero_()

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{super().extra_repr()}, estimator={self.estimator}"
