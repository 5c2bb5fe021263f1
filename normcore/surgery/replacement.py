"""The norm that takes a layer's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normcore.menu.asked_norm import asked_norm
from normcore.menu.spec import Spec
from normcore.norms.norm import Norm
from normcore.spec import kind_of
from normcore.surgery.known import Known

VARIANCE_INSIDE_THE_ROOT = {"batch", "ghost", "sync", "group", "layer", "instance", "layer_channels", "switchable"}
"""Kinds whose eps is one and the same thing, and whose momentum is, where they have one."""


def asked(to: Spec | dict[str, Any] | str) -> Spec:
    """The spec of a norm, given as itself, as `{"kind": "group", "num_groups": 8}`, or as a kind.

    Raises:
        Refusal: There is no such norm, or it has no such knobs.

    Example:
        >>> asked("layer")
        LayerNormSpec(kind='layer', eps=1e-05, affine=True)
    """
    if isinstance(to, Spec):
        return asked_norm(kind_of(type(to)), to.model_dump(exclude={"kind"}, exclude_unset=True))
    return asked_norm(to, {}) if isinstance(to, str) else asked_norm(to.get("kind"), to)


def knobs_for(spec: Spec, known: Known) -> dict[str, Any]:
    """The knobs of the new norm: as asked for; where nothing was asked, as the layer had them, if they mean the same.

    Example:
        >>> from normcore.surgery.known import recognize
        >>> knobs_for(asked("layer"), recognize(nn.BatchNorm2d(4, eps=1e-3)))
        {'eps': 0.001, 'affine': True}
    """
    knobs = spec.knobs()
    kind = kind_of(type(spec))
    shared = set(known.knobs) & set(knobs) - spec.model_fields_set
    if kind != known.kind:
        shared &= {"eps", "momentum"} if {kind, known.kind} <= VARIANCE_INSIDE_THE_ROOT else set()
    return knobs | {name: known.knobs[name] for name in shared}


def build(spec: Spec, knobs: dict[str, Any], known: Known, others: Sequence[Tensor]) -> Norm:
    """The norm on the layer's device and in its dtype (those of `others`, where the layer has no tensors).

    Raises:
        Refusal: The norm cannot be built for the layer's channels.
    """
    tensors = [*known.layer.parameters(), *known.layer.buffers(), *others]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    norm: Norm = spec.part()(known.num_features, **knobs, device=like.device, dtype=like.dtype)
    frozen = [not parameter.requires_grad for parameter in known.layer.parameters()]
    if known.remark.startswith("it is frozen") or (frozen and all(frozen)):
        norm.requires_grad_(requires_grad=False)
    else:
        for name, parameter in norm.named_parameters():
            theirs = getattr(known.layer, name, None)
            parameter.requires_grad_(not isinstance(theirs, nn.Parameter) or theirs.requires_grad)
    return norm
