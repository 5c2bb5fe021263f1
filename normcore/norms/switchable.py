"""Switchable norm (Luo, Ren, Peng, Zhang & Li 2019, arXiv:1806.10779)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.norms.closed_form import map_moments
from normcore.norms.norm import at_least_float32, check_channels, pixels_of
from normcore.norms.running import RunningNorm, per_channel
from normcore.refusal import Refusal


class SwitchableNorm(RunningNorm):
    """Each channel of each sample by learned mixtures of the instance's, the layer's and the batch's statistics.

        y = gamma (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + eps) + beta,   k in instance, layer, batch

    w and v are softmaxes of three logits each (`mean_weight`, `var_weight`, all at 1 first, so that every kind weighs a
    third), learned for the whole layer beside gamma and beta per channel. Layer and batch statistics are put together
    from those of the instances: a variance is the mean of their variances and the variance of their means. All of the
    weight on one kind makes it instance norm, layer norm or batch norm. As in batch norm, running statistics (mean from
    0, var from 1 and divided by m - 1) stand for the batch's in evaluation; the others are the sample's own there too.

    All three variances that divide are biased, as in the paper's equations. The paper's own code takes the instance's
    unbiased (a factor of 64/63 on maps of 8x8) and starts the running variance at 0.

    A batch of one sample is taken: its batch statistics are its instances'. One of none passes and moves nothing. A map
    of one pixel is not taken: its instance statistics are the pixel and 0.

    Costs the two passes over the input that instance norm costs, and some numbers per map.

    Args:
        num_features: C, the channels.
        eps: Added to the mixed variance, inside the root.
        momentum: Weight of the newest batch in the running statistics.
        affine: Learn gamma and beta; the weights of the mixtures are learned in any case.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> norm = SwitchableNorm(4)
        >>> norm.mean_weight.softmax(0).tolist()
        [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
        >>> norm(torch.randn(3, 4, 8, 8)).shape
        torch.Size([3, 4, 8, 8])
    """

    claims = Claims(statistics="batch", shift_invariant="sample", running_variance="unbiased")

    momentum: float

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
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.mean_weight = nn.Parameter(torch.ones(3, device=device, dtype=kept))
        self.var_weight = nn.Parameter(torch.ones(3, device=device, dtype=kept))

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: A map is a single pixel; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if pixels_of(x) == 1:
            raise Refusal(
                "one-pixel-map",
                "switchable norm needs more than one pixel in a map, got 1, of which the instance's statistics are the "
                "pixel itself and 0; take batch, layer or group norm, which look further, or larger maps",
            )
        mean, var = map_moments(x)
        layer_mean, layer_var = _pooled(mean, var, 1)
        if self.training:
            batch_mean, batch_var = _pooled(mean, var, 0)
            if x.shape[0] > 0:
                self._move(batch_mean, batch_var, x.shape[0] * pixels_of(x))
        else:
            # Copies: the next batch moves the buffers, and the backward pass may come after it.
            batch_mean = per_channel(self.running_mean.clone(), x)
            batch_var = per_channel(self.running_var.clone(), x)
        mean = _mixed(self.mean_weight, mean, layer_mean, batch_mean)
        scale = torch.rsqrt(_mixed(self.var_weight, var, layer_var, batch_var) + self.eps)
        if self.weight is not None and self.bias is not None:
            scale = scale * per_channel(self.weight, x)
            shift = per_channel(self.bias, x) - mean * scale
        else:
            shift = -mean * scale
        return (x.to(scale.dtype) * scale + shift).to(x.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Let the running statistics follow a batch of `count` values per channel with this mean and biased var."""
        kept = self.running_mean.dtype
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.detach().flatten().to(kept), self.momentum)
        self.running_var.lerp_(var.detach().flatten().to(kept) * (count / (count - 1)), self.momentum)


def _pooled(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of equally many values each along `dim`, from theirs."""
    together = mean.mean(dim, keepdim=True)
    return together, (var + (mean - together).square()).mean(dim, keepdim=True)


def _mixed(logits: Tensor, *statistics: Tensor) -> Tensor:
    instance, layer, batch = logits.softmax(0).unbind()
    return instance * statistics[0] + layer * statistics[1] + batch * statistics[2]
