"""Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.norm import Norm, at_least_float32, check_channels, scale_and_shift
from normcore.refusal import Refusal


class BatchNorm(Norm):
    """Each channel by its mean and variance over the batch and the pixels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    In training mean and var are the batch's, var biased (divided by m = N x pixels), and the running statistics move
    towards them: `running = (1 - momentum) running + momentum new`, with the unbiased var (divided by m - 1). In
    evaluation they are the running statistics. Parameters and buffers are named as in `torch.nn.BatchNorm2d`, so state
    dicts fit both ways. With a single sample per batch batch norm would be instance norm in training and something
    else in evaluation, so at least two are asked for, on maps as well.

    Args:
        num_features: C, the channels.
        eps: Added to the variance, inside the root.
        momentum: Weight of the newest batch in the running statistics.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> y = BatchNorm(3)(5 + 2 * torch.randn(64, 3, 8, 8))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    claims = Claims(statistics="batch", shift_invariant="channel", theorem_4_1=True, running_variance="unbiased")

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=kept))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=kept))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, a batch of one sample; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if self.training:
            if x.shape[0] < 2:
                raise Refusal(
                    "batch-of-one",
                    f"batch norm needs a batch of at least 2 samples in training, got {x.shape[0]}; "
                    f"take a larger batch, or a norm without batch statistics: group, layer or instance",
                )
            self.num_batches_tracked.add_(1)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
