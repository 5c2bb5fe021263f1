"""What a layer is in evaluation where it is a scale and a shift per channel."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normcore.surgery.hooks import take_hooks_away

FAR = 2.0**40
"""An input so large that the shift is lost beside it, and the scale keeps all its digits."""
PIXELS: tuple[tuple[int, ...], ...] = ((2, 2), (3,), (2, 2, 2), ())
"""Maps to try a layer on: of two dimensions, one, three, none; torch's layers take only some."""


@dataclass(frozen=True, slots=True)
class ScaleShift:
    """`y = scale x + shift` per channel, in float64."""

    scale: Tensor
    shift: Tensor


def evaluation_affine(layer: nn.Module, num_features: int) -> ScaleShift | None:
    """The scale and the shift per channel that a layer is in evaluation, or none where it is another function.

    They are measured in float64, not read from the layer's parameters, so that no convention about eps or about what a
    running statistic holds is assumed, and a layer nobody has heard of is understood as well. Batch norm and its
    relatives are of this form, their statistics being constants in evaluation; so is the identity.

    Args:
        layer: Takes and gives `(N, num_features, *)`; it is copied, not touched.
        num_features: C, the channels.

    Example:
        >>> norm = nn.BatchNorm2d(2, eps=1e-9)
        >>> norm.running_mean[:] = 3.0
        >>> norm.running_var[:] = 4.0
        >>> evaluation_affine(norm, 2).scale
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> evaluation_affine(nn.GroupNorm(1, 2), 2) is None
        True
    """
    if any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers())):
        return None
    layer = _alone(layer)
    zeros = torch.zeros(4, num_features, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for pixels in PIXELS:
            x = torch.randn(4, num_features, *pixels, dtype=torch.float64, generator=generator)
            zeros = torch.zeros_like(x)
            try:
                shift, far, seen = layer(zeros), layer(zeros + FAR), layer(x)
            except Exception:  # noqa: BLE001, S112 (what is no layer for such maps says so in its own way)
                continue
            return _agrees(x, shift, (far - shift) / FAR, seen)
    return None


def _alone(layer: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation, without hooks: they are somebody else's code."""
    layer = copy.deepcopy(layer)
    take_hooks_away(layer)
    return layer.to(device="cpu", dtype=torch.float64).eval()


def _agrees(x: Tensor, shift: Tensor, scale: Tensor, seen: object) -> ScaleShift | None:
    if not isinstance(seen, Tensor) or seen.shape != x.shape:
        return None
    size = (scale.abs() + shift.abs()).amax()
    if not torch.allclose(seen, scale * x + shift, rtol=1e-9, atol=1e-12 * float(size.clamp(min=1))):
        return None
    scale, shift = (t.transpose(0, 1).flatten(1) for t in (scale, shift))
    if not torch.equal(shift, shift[:, :1].expand_as(shift)):
        return None
    return ScaleShift(scale[:, 0].clone(), shift[:, 0].clone())
