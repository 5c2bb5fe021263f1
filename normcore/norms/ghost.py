"""Ghost batch norm (Hoffer, Hubara & Soudry 2017, arXiv:1705.08741, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.norm import check_channels, pixels_of
from normcore.norms.running import RunningNorm
from normcore.refusal import Refusal


class GhostBatchNorm(RunningNorm):
    """Batch norm over virtual batches: each k samples of a batch, in their order, by their own mean and variance.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    In training mean and var are those of the virtual batch, var biased; a large batch so keeps the noise, and the
    generalization, of a small one. In evaluation they are one set of running statistics, which each step moves once
    towards the mean and the unbiased var of the whole batch: those of the virtual batches pooled, the variance between
    them included, so that `running_mean` and `running_var` are batch norm's, whatever k. (The paper moves them once per
    virtual batch, towards the variance within it.) Parameters and buffers are named as in `torch.nn.BatchNorm2d`.

    One virtual batch as large as the batch is batch norm; one per sample is, in training, instance norm. Costs what
    batch norm does, and a copy of the output.

    Args:
        num_features: C, the channels.
        virtual_batch_size: k, the samples that are normalized together; must divide the batch.
        eps: Added to the variance, inside the root.
        momentum: Weight of the newest batch in the running statistics.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> y = GhostBatchNorm(3, virtual_batch_size=16)(torch.randn(64, 3, 8, 8))
        >>> bool(y[16:32].mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    claims = Claims(statistics="batch", shift_invariant="channel", running_variance="unbiased")

    momentum: float

    def __init__(
        self,
        num_features: int,
        *,
        virtual_batch_size: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        self.virtual_batch_size = virtual_batch_size

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, k does not divide N, or a virtual batch has a single value of a channel; or C is not
                `num_features`.
        """
        check_channels(x, self.num_features)
        if not self.training:
            return self.by_running_statistics(x)
        self._check_batch(x)
        self.num_batches_tracked.add_(1)
        if x.is_meta:
            # One call stands for all: without values they would be no different, and each takes milliseconds there.
            return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        ghosts = torch.split(x, self.virtual_batch_size)
        # A momentum of one leaves each virtual batch's own statistics, var unbiased, in the buffers it is given.
        means = torch.zeros_like(self.running_mean).repeat(len(ghosts), 1)
        unbiased = torch.zeros_like(means)
        y = torch.cat(
            [
                functional.batch_norm(ghost, mean, var, self.weight, self.bias, True, 1.0, self.eps)
                for ghost, mean, var in zip(ghosts, means.unbind(), unbiased.unbind(), strict=True)
            ]
        )
        self._move(means, unbiased, self.virtual_batch_size * pixels_of(x))
        return y

    @torch.no_grad()
    def _move(self, means: Tensor, unbiased: Tensor, values: int) -> None:
        """Let the running statistics follow virtual batches of `values` values per channel, `(G, C)` each."""
        means, unbiased, total = means.detach(), unbiased.detach(), values * len(means)
        mean = means.mean(0)
        within = unbiased.mean(0) * (values - 1)
        between = (means - mean).square().mean(0) * values
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_((within + between) * len(means) / (total - 1), self.momentum)

    def _check_batch(self, x: Tensor) -> None:
        k, samples = self.virtual_batch_size, x.shape[0]
        if samples % k or samples == 0:
            possible = [d for d in range(1, samples + 1) if samples % d == 0 and d * pixels_of(x) > 1]
            nearest = min(possible, key=lambda d: abs(d - k), default=1)
            raise Refusal(
                "virtual-batch-does-not-divide",
                f"virtual_batch_size must divide the batch, got virtual_batch_size {k} and a batch of {samples} "
                f"samples; take a divisor of {samples}, such as {nearest}, "
                f"or drop a last batch that is smaller than the others",
            )
        if k * pixels_of(x) == 1:
            raise Refusal(
                "one-value-virtual-batch",
                "a virtual batch needs more than one value of a channel, got virtual_batch_size 1 on maps of 1 pixel; "
                "take a larger virtual_batch_size",
            )

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{super().extra_repr()}, virtual_batch_size={self.virtual_batch_size}"
