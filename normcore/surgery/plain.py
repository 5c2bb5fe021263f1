"""A layer's normalization apart from what it does afterwards."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from normcore.norms.norm import Norm
from normcore.surgery.channels_last import ChannelsLast
from normcore.surgery.hooks import take_hooks_away
from normcore.surgery.known import Known


def plain(known: Known) -> nn.Module:
    """A copy of a layer in evaluation that normalizes, scales and shifts, and leaves the rest: no threshold of its own,
    none of the activation that timm's layers hold, no hooks.

    Example:
        >>> from normcore.norms.filter_response import FilterResponseNorm
        >>> from normcore.surgery.known import recognize
        >>> norm = plain(recognize(FilterResponseNorm(2)))
        >>> bool(norm(torch.randn(2, 2, 4, 4)).min() < 0)
        True
    """
    layer = copy.deepcopy(known.layer).eval()
    for name in known.after:
        setattr(layer, name, nn.Identity())
    take_hooks_away(layer)
    take_threshold_away(layer.norm if isinstance(layer, ChannelsLast) else layer)
    return layer


def take_threshold_away(layer: nn.Module) -> None:
    """Lowers the thresholds of a thresholded linear unit until nothing is below."""
    tau = getattr(layer, "tau", None)
    if isinstance(layer, Norm) and isinstance(tau, nn.Parameter):
        with torch.no_grad():
            tau.fill_(-torch.inf)


def after(known: Known, norm: nn.Module) -> nn.Module:
    """`norm` followed by what a layer does after normalizing; the identity is left out where something follows."""
    if not known.after:
        return norm
    parts = OrderedDict(known.after)
    if type(norm) is nn.Identity:
        return next(iter(parts.values())) if len(parts) == 1 else nn.Sequential(parts)
    return nn.Sequential(OrderedDict([("norm", norm), *parts.items()]))
