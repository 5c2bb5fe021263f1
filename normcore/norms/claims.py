"""What a norm promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Properties that a layer says it has, each of which `normcore.certify` tries to refute.

    A claim is of the function without its learned scale and shift being special: they are at one and zero unless the
    property names them. "Up to eps" means that the property is exact as eps goes to zero.

    Example:
        >>> Claims(statistics="batch", shift_invariant="channel").scale_invariant
        True
    """

    statistics: Literal["batch", "sample", "running", "none"]
    """What statistics are taken over. `batch`: other samples of the batch move a sample's output in training, and
    evaluation uses running statistics; `sample`: each sample by itself, the same in training and evaluation; `running`:
    training too divides by what earlier batches left; `none`: each value by itself."""
    per_pixel: bool = False
    """Each pixel, or token, by itself: those beside it have no influence, so that padding needs no mask."""
    scale_invariant: bool = True
    """f(a x) = f(x) for a > 0, up to eps; in training."""
    shift_invariant: Literal["channel", "sample", "none"] = "none"
    """f(x + b) = f(x): `channel` for any b per channel, `sample` only for the same b in all channels."""
    odd: bool = True
    """f(-x) = -f(x) at a shift of zero."""
    gradient: Literal["exact", "approximate"] = "exact"
    """Whether the backward pass is the derivative of the forward pass, or by design something else."""
    theorem_4_1: bool = False
    """Santurkar et al. 2018, Theorem 4.1, as an equality, for each channel over batch and pixels."""
    eps: Literal["inside", "outside", "none"] = "inside"
    """Whether eps is added to the variance, inside the root, or to the standard deviation, outside."""
    variance: Literal["biased", "unbiased", "none"] = "biased"
    """What a training pass divides by: m, m - 1, or no central variance at all."""
    running_variance: Literal["biased", "unbiased", "none"] = "none"
    """What running statistics hold, where there are any that hold a variance."""
    precision: Literal["float32", "input"] = "float32"
    """What statistics are computed in: float32 or better for every input, by two passes; or the input's own dtype."""
    memory_format: Literal["kept", "any"] = "kept"
    """Whether channels_last inputs give channels_last outputs."""
