"""What torch's own norms claim, by their type and their knobs."""

from __future__ import annotations

from typing import Literal

from torch import nn

from normcore.norms.claims import Claims


def torch_claims(layer: nn.Module) -> Claims | None:
    """The claims of a norm of `torch.nn`; none for any other layer.

    Example:
        >>> torch_claims(nn.BatchNorm2d(3)).running_variance
        'unbiased'
        >>> torch_claims(nn.ReLU()) is None
        True
    """
    # Subclasses are somebody else's layers, which may do otherwise.
    if type(layer) in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d} and layer.track_running_stats:
        return Claims(statistics="batch", shift_invariant="channel", theorem_4_1=True, running_variance="unbiased")
    if type(layer) in {nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d} and not layer.track_running_stats:
        return Claims(statistics="sample", shift_invariant="channel", memory_format="any", precision="input")
    if type(layer) is nn.GroupNorm:
        return Claims(statistics="sample", shift_invariant="sample")
    if type(layer) is nn.LayerNorm:
        return Claims(statistics="sample", shift_invariant="sample", memory_format="any")
    if type(layer) is nn.RMSNorm:
        # Without an eps of its own it takes that of the input's dtype, which in half precision is another function.
        precision: Literal["float32", "input"] = "input" if layer.eps is None else "float32"
        return Claims(statistics="sample", variance="none", memory_format="any", precision=precision)
    if type(layer) is nn.LocalResponseNorm:
        return Claims(statistics="sample", scale_invariant=False, eps="none", variance="none", precision="input")
    return None
