"""Batch norm over the batches of all processes of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.gathering import Moments
from normcore.norms.norm import at_least_float32, check_channels
from normcore.norms.running import RunningNorm, check_batch
from normcore.refusal import Refusal


class SyncBatchNorm(RunningNorm):
    """Batch norm by the mean and variance of the batches of all ranks together.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    In training each rank r takes the count n_r, the mean m_r and the biased variance v_r of its own values, the ranks
    exchange them, once, and each merges them:

        n = sum_r n_r    mean = sum_r n_r m_r / n    var = sum_r n_r (v_r + (m_r - mean)^2) / n

    which is exact for shards of any sizes, an empty one too, and stays so where the mean is large (sums of squares do
    not). So P ranks together are batch norm on the concatenation of their batches, in outputs, running statistics and
    gradients: with L the sum of the ranks' losses, each rank's backward pass gives dL/dx of its own batch, and its
    share of dL/dgamma and dL/dbeta, which the ranks are to add up, as with any other parameter. Without a process
    group, or in one of a single rank, it is batch norm; in evaluation too. Parameters and buffers are named as in
    `torch.nn.BatchNorm2d`.

    `virtual_ranks` splits the batch of a process into that many shares, in order, as equal as can be, each with moments
    of its own, which are merged as those of ranks are: what a cluster would compute, on one device.

    Costs, in a process group, one exchange of 2 C + 1 numbers per rank in each direction of training.

    Args:
        num_features: C, the channels.
        virtual_ranks: Shares that a process splits its batch into.
        eps: Added to the variance, inside the root.
        momentum: Weight of the newest batch in the running statistics.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> y = SyncBatchNorm(3, virtual_ranks=4)(5 + 2 * torch.randn(10, 3, 8, 8))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    claims = Claims(statistics="batch", shift_invariant="channel", theorem_4_1=True, running_variance="unbiased")

    momentum: float

    def __init__(
        self,
        num_features: int,
        *,
        virtual_ranks: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        self.virtual_ranks = virtual_ranks

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, a batch of one sample in a single process, or fewer samples than virtual ranks; or C
                is not `num_features`.
        """
        check_channels(x, self.num_features)
        if not self.training:
            return self.by_running_statistics(x)
        ranks = _num_ranks()
        if ranks == 1:
            check_batch(x, "batch norm")
        if self.virtual_ranks > max(1, x.shape[0]):
            raise Refusal(
                "more-ranks-than-samples",
                f"each virtual rank needs a sample, got virtual_ranks {self.virtual_ranks} and a batch of {x.shape[0]} "
                f"samples; lower virtual_ranks, or take a larger batch",
            )
        self.num_batches_tracked.add_(1)
        if ranks == self.virtual_ranks == 1:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        count, mean, var = self._merged(x)
        with torch.no_grad():
            kept = self.running_mean.dtype
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.detach().to(kept), self.momentum)
            self.running_var.lerp_(unbiased.detach().to(kept), self.momentum)
        return self.normalize(x, mean, (var + self.eps).sqrt())

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Those of all ranks' inputs together; a mask is not taken."""
        if mask is not None:
            return super().moments(x, mask)
        count, mean, var = (t.double() for t in self._merged(x))
        return Moments(count.squeeze(), {"mean": mean, "square": var + mean.square()})

    def _merged(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and biased variance per channel over all shares of all ranks."""
        shares = torch.stack([_moments(share) for share in x.tensor_split(self.virtual_ranks)])
        if (ranks := _num_ranks()) > 1:
            # A sum of which each rank fills its own rows is an exchange of all rows, and its adjoint is a sum again.
            before, after = distributed.get_rank(), ranks - 1 - distributed.get_rank()
            nothing = torch.zeros_like(shares)
            shares = sum_over_ranks(torch.cat([nothing] * before + [shares] + [nothing] * after))
        counts, means, variances = torch.split(shares, [1, self.num_features, self.num_features], dim=1)
        total = counts.sum(0)
        weights = counts / total
        mean = (weights * means).sum(0)
        return total, mean, (weights * (variances + (means - mean).square())).sum(0)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{super().extra_repr()}, virtual_ranks={self.virtual_ranks}"


def _num_ranks() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _moments(share: Tensor) -> Tensor:
    """Count, means and biased variances of a share in one row, in float32 or better; zeros for an empty share."""
    values = share.to(at_least_float32(share.dtype))
    count = values.numel() // values.shape[1]
    if count == 0:
        # Part of the graph nevertheless: the backward pass has an exchange in it that no rank may miss.
        return values.sum() + values.new_zeros(1 + 2 * values.shape[1])
    var, mean = torch.var_mean(values, dim=(0, *range(2, values.dim())), correction=0)
    return torch.cat([values.new_full((1,), count), mean, var])


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, each of which gets it, differentiable as often as one likes."""
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks is its own adjoint."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        """The sum."""
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        """The sum of what each rank's losses say."""
        return sum_over_ranks(gradient)
