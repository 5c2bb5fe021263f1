"""Mean and variance over real tokens only: what norms with a mask share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normcore.norms.norm import at_least_float32
from normcore.refusal import Refusal


def check_mask(x: Tensor, mask: Tensor) -> None:
    """Raise `Refusal` unless `mask` is bool and says of each pixel of each sample of `x` whether it is real.

    Args:
        x: `(N, C, *)`.
        mask: `(N, *)`, True where a token is real; it holds for all channels.

    Raises:
        Refusal: `mask-not-bool` or `mask-differs`.
    """
    if mask.dtype != torch.bool:
        raise Refusal(
            "mask-not-bool",
            f"a mask must be bool, True where a token is real, got {mask.dtype}; compare it with 0 first",
        )
    if mask.shape != x.shape[:1] + x.shape[2:]:
        raise Refusal(
            "mask-differs",
            f"a mask must have the shape {tuple(x.shape[:1] + x.shape[2:])}, that of the input {tuple(x.shape)} "
            f"without its channels, got {tuple(mask.shape)}; give one value for each pixel of each sample",
        )


def zero_where_masked(y: Tensor, mask: Tensor) -> Tensor:
    """`y`, `(N, C, *)`, with zeros where `mask`, `(N, *)`, is False; what stood there, NaN too, has no gradient.

    A norm does it to its input as well as to its output: a NaN in the padding that is multiplied by a gradient of zero
    on its way back is a NaN still.

    Example:
        >>> zero_where_masked(torch.ones(1, 2, 3), torch.tensor([[True, True, False]]))
        tensor([[[1., 1., 0.],
                 [1., 1., 0.]]])
    """
    return torch.where(mask.unsqueeze(1), y, torch.zeros((), device=y.device, dtype=y.dtype))


def masked_mean_var(x: Tensor, mask: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of the real values of `x` over `dims`, in float32 or better.

        mean = sum(real x) / count,   var = sum(real (x - mean)^2) / count

    In two passes, so that a large mean does not eat the variance. Where there is not a single real value, count is 1,
    and mean and variance are 0, so that nothing is divided by zero. With a mask of all True they are torch's mean and
    `var(correction=0)`. What stands in the padding has no influence and no gradient.

    Args:
        x: `(N, C, *)`.
        mask: `(N, *)`, True where a token is real.
        dims: Of `x`, to take the statistics over.

    Returns:
        mean and var: the shape of `x` with 1 in each of `dims`; count: the same, and 1 in the place of the channels.

    Raises:
        Refusal: The mask is not bool, or not of the shape of `x` without its channels.

    Example:
        >>> x, mask = torch.tensor([[[1.0, 3.0, 100.0]]]), torch.tensor([[True, True, False]])
        >>> [statistic.item() for statistic in masked_mean_var(x, mask, (0, 2))]
        [2.0, 1.0, 2.0]
    """
    check_mask(x, mask)
    x = zero_where_masked(x.to(at_least_float32(x.dtype)), mask)
    dims = tuple(d % x.dim() for d in dims)
    per_token = x.shape[1] if 1 in dims else 1
    count = (mask.unsqueeze(1).sum(dims, keepdim=True) * per_token).clamp(min=1).to(x.dtype)
    mean = x.sum(dims, keepdim=True) / count
    var = zero_where_masked(x - mean, mask).square().sum(dims, keepdim=True) / count
    return mean, var, count
