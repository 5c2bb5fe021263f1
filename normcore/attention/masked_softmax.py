"""Softmax over a part of the values, right where that part is empty."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.norm import at_least_float32
from normcore.refusal import Refusal


def masked_softmax(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the values that a mask lets in, and zero for all others; zeros where it lets in none.

        p_i = [mask_i] exp(s_i) / sum_j [mask_j] exp(s_j),        0 / 0 = 0

    A row (the values along `dim`) without any True gives zeros, as `torch.nn.functional.scaled_dot_product_attention`
    does, where `torch.softmax` over -inf gives NaN, and over a large negative number weighs the padding. A score of
    -inf is out like a masked one. Whatever stands in a masked score, NaN too, neither gets in nor gets a gradient, and
    all derivatives are finite. An all-True mask is `torch.softmax`; adding the same number to all scores of a row
    changes nothing.

    Computed in float32 or better and rounded once to the input's dtype; costs the softmax and two selections, and the
    backward pass keeps p and the mask.

    Args:
        scores: Any shape, floating point.
        mask: Boolean, True where a score takes part (as in `scaled_dot_product_attention`; `MultiheadAttention` has it
            the other way round); broadcast to the shape of the scores.
        dim: The dimension that sums to one.

    Raises:
        Refusal: The mask is not boolean or does not broadcast to the scores, or the scores are not floating point.

    Example:
        >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]]))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    real, filled = _fill(scores, mask, dim)
    return torch.where(real, torch.softmax(filled, dim), 0.0).to(scores.dtype)


def masked_log_softmax(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of `masked_softmax`, without rounding small probabilities to zero first; -inf for masked scores.

    Derivatives are finite, those of masked scores zero. Take the entries wanted by indexing or `torch.where`, not by
    multiplying with zero: 0 times -inf is NaN.

    Args:
        scores: Any shape, floating point.
        mask: As for `masked_softmax`.
        dim: The dimension whose exponentials sum to one.

    Raises:
        Refusal: As for `masked_softmax`.

    Example:
        >>> masked_log_softmax(torch.tensor([0.0, 1000.0, 0.0]), torch.tensor([True, True, False]))
        tensor([-1000.,     0.,   -inf])
    """
    real, filled = _fill(scores, mask, dim)
    return torch.where(real, torch.log_softmax(filled, dim), -torch.inf).to(scores.dtype)


def _fill(scores: Tensor, mask: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Which scores take part; and scores of which softmax makes no NaN: -inf for the others, zeros in empty rows."""
    _check(scores, mask)
    real = mask & (scores != -torch.inf)
    # Whatever softmax makes of an empty row's zeros is overwritten, and so is its gradient.
    outside = torch.where(real.any(dim, keepdim=True), -torch.inf, 0.0)
    return real, torch.where(real, scores.to(at_least_float32(scores.dtype)), outside)


def _check(scores: Tensor, mask: Tensor) -> None:
    if not scores.is_floating_point():
        raise Refusal(
            "scores-not-floating",
            f"a softmax needs floating point scores, got {scores.dtype}; pass scores.float()",
        )
    if mask.dtype != torch.bool:
        raise Refusal(
            "mask-not-bool",
            f"the mask must be boolean, True where a score takes part, got {mask.dtype}; pass mask > -inf for one that "
            f"would be added to the scores, and mask.bool() for one of zeros and ones",
        )
    shape, target = mask.shape, scores.shape
    extra = len(target) - len(shape)
    if extra < 0 or any(size not in {1, full} for size, full in zip(shape, target[extra:], strict=True)):
        raise Refusal(
            "mask-differs",
            f"the mask must broadcast to the shape of the scores, got mask {tuple(shape)} and scores {tuple(target)}; "
            f"add dimensions of size 1 where it is the same for all",
        )
