"""Statistics over groups of channels: the arithmetic of layer, group and instance norm."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.closed_form import device_type
from normcore.norms.innermost import channels_innermost, normalize_innermost
from normcore.norms.masked import check_mask, masked_mean_var, zero_where_masked
from normcore.norms.norm import at_least_float32


def normalize_groups(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, mask: Tensor | None = None
) -> Tensor:
    """Each group of channels of each sample by its mean and biased variance, then scaled and shifted per channel.

    One group is layer norm, a group per channel is instance norm.

    Args:
        x: `(N, C, *)`.
        num_groups: Divides C.
        weight: Gamma, `(C,)`, or none.
        bias: Beta, `(C,)`, or none; both or neither.
        eps: Added to the variance, inside the root.
        mask: `(N, *)`, True where a token is real; or none.

    Example:
        >>> normalize_groups(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, None, None, 1e-5).round(decimals=3)
        tensor([[-1.,  1., -1.,  1.]])
    """
    if mask is not None:
        return _masked(x, mask, num_groups, weight, bias, eps)
    if not torch.compiler.is_compiling() and channels_innermost(x):
        return normalize_innermost(x, num_groups, weight, bias, eps)
    if device_type(x) == "cpu" and weight is not None:
        # Its kernels for CPUs take half inputs with float32 parameters, and then keep float32 statistics.
        return torch.group_norm(x, num_groups, weight, bias, eps)
    # On other devices torch keeps the statistics of half inputs in half, and under autocast it returns float32.
    return torch.group_norm(x.to(at_least_float32(x.dtype)), num_groups, weight, bias, eps).to(x.dtype)


def _masked(x: Tensor, mask: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    check_mask(x, mask)
    # One dimension more, so that there is one to sum over where x has no pixels.
    mask = mask.unsqueeze(-1)
    real = zero_where_masked(x.to(at_least_float32(x.dtype)).unsqueeze(-1), mask)
    mean, var, _ = masked_mean_var(real, mask, range(2, real.dim()))
    # All channels have the same number of real tokens, so that the variance of a group is the mean of theirs and the
    # variance of their means.
    in_groups = (x.shape[0], num_groups, -1, *mean.shape[2:])
    means, variances = mean.view(in_groups), var.view(in_groups)
    mean = means.mean(2, keepdim=True)
    var = (variances + (means - mean).square()).mean(2, keepdim=True)
    y = (real - mean.expand_as(means).flatten(1, 2)) * torch.rsqrt(var + eps).expand_as(means).flatten(1, 2)
    if weight is not None and bias is not None:
        per_channel = (-1, *[1] * (y.dim() - 2))
        y = y * weight.view(per_channel) + bias.view(per_channel)
    return zero_where_masked(y, mask).squeeze(-1).to(x.dtype)
