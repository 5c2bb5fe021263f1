"""Linear layers that a scale and a shift per channel can be multiplied into."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normcore.surgery.evaluation_affine import ScaleShift
from normcore.surgery.hooks import count_hooks

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def refused(linear: nn.Module, num_features: int) -> str | None:
    """Why a scale and a shift cannot be multiplied into a layer, or none where they can."""
    if not isinstance(linear, LINEAR):
        return f"{type(linear).__name__} is no linear map"
    plain = next(kind for kind in LINEAR if isinstance(linear, kind))
    methods = ("forward", "_conv_forward")
    if any(getattr(type(linear), name, None) is not getattr(plain, name, None) for name in methods):
        return f"{type(linear).__name__} does not use its weight as it is"
    if parametrize.is_parametrized(linear):
        return "its weight is parametrized; take torch.nn.utils.parametrize.remove_parametrizations first"
    if count_hooks(linear):
        return f"{type(linear).__name__} carries hooks, which may change its weight or read its output"
    channels = linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels
    if channels != num_features:
        return f"{type(linear).__name__} gives {channels} channels and the norm takes {num_features}"
    return None


def times(linear: nn.Module, affine: ScaleShift) -> nn.Module:
    """A copy of a linear layer followed by a scale and a shift per channel, in one layer.

        W' = scale W,    b' = scale b + shift

    The products are taken in float64 and rounded once, to the layer's own dtype; a missing bias is added.

    Example:
        >>> affine = ScaleShift(torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, 1.0]).double())
        >>> folded = times(nn.Linear(4, 2, bias=False), affine)
        >>> folded.bias
        Parameter containing:
        tensor([1., 1.], requires_grad=True)
    """
    folded = copy.deepcopy(linear)
    weight, bias = linear.get_parameter("weight"), cast("nn.Parameter | None", linear.bias)
    scale, shift = affine.scale.to(weight.device), affine.shift.to(weight.device)
    wide = weight.detach().to(torch.float64)
    groups = int(getattr(linear, "groups", 1))
    if isinstance(linear, TRANSPOSED):
        # (in, out / groups, ...): the inputs of a group stand together, its outputs are dimension 1.
        grouped = wide.view(groups, -1, *wide.shape[1:])
        wide = (grouped * scale.view(groups, 1, -1, *(1,) * (wide.dim() - 2))).flatten(0, 1)
    else:
        wide = wide * scale.view(-1, *(1,) * (wide.dim() - 1))
    shift = shift if bias is None else bias.detach().to(torch.float64) * scale + shift
    folded.weight = nn.Parameter(wide.to(weight.dtype).contiguous(memory_format=_format(weight)), weight.requires_grad)
    folded.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)
    return folded


def _format(weight: Tensor) -> torch.memory_format:
    if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
