"""What every norm owes: one shape in, the same shape out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.refusal import Refusal


class Norm(nn.Module):
    """A normalization layer: `(N, C, *)` to `(N, C, *)`, where `*` is any number of pixel dimensions, or none.

    Statistics are computed in float32 or better, whatever the input's dtype; the output has the input's dtype and its
    memory format (channels_last stays channels_last).
    """

    num_features: int
    """C, the channels."""
    claims: Claims
    """What it promises, and `normcore.certify` tries: of the class, or of the instance where knobs decide."""
    remembers: bool = False
    """Whether a training pass depends on what earlier ones left in the buffers, so that to see it again one must put
    them back."""
    activates: bool = False
    """Whether the layer holds its own non-linearity and stands for norm and activation both."""
    takes_mask: bool = False
    """Whether `forward` takes a `mask`, `(N, *)`, and leaves padding out of its statistics; its signature says it."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Python calls it for each kind of norm."""
        super().__init_subclass__(**keywords)
        cls.takes_mask = "mask" in inspect.signature(cls.forward).parameters


def check_channels(x: Tensor, num_features: int) -> None:
    """Raise `Refusal` (code `channels-differ`) unless `x` has shape `(N, num_features, *)`."""
    if x.dim() < 2 or x.shape[1] != num_features:
        raise Refusal(
            "channels-differ",
            f"the input must have num_features {num_features} in dimension 1, got shape {tuple(x.shape)}; "
            f"build the norm for the channels it is given",
        )


def pixels_of(x: Tensor) -> int:
    """Pixels of one channel of one sample: the product of the trailing dimensions, 1 where there are none."""
    return x.shape[2:].numel()


def scale_and_shift(
    num_features: int, *, affine: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Gamma at one and beta at zero, one each per channel and float32 or better; or neither.

    Args:
        num_features: C, the channels.
        affine: Whether they are learned at all.
        device: Where they live.
        dtype: Their dtype; half precisions are raised to float32, in which an lr of 0.01 still moves a gamma of one.
    """
    if not affine:
        return None, None
    dtype = at_least_float32(dtype or torch.get_default_dtype())
    return (
        nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)),
        nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)),
    )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics are kept in for inputs of `dtype`."""
    return torch.promote_types(dtype, torch.float32)
