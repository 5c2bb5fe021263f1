"""A norm of any origin, in the words of the shelf."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normcore.menu.norms import NormSpec
from normcore.norms.norm import Norm
from normcore.spec import kind_of
from normcore.surgery.channels_last import ChannelsLast

NAMED_AS_NORM = re.compile(r"norm(act)?(\dd)?(act)?(fp32)?$", re.IGNORECASE)
"""Class names that say "I am a norm" of layers nobody here has read."""
CHANNELS_FIRST_LAYER_NORMS = {"LayerNorm2d", "LayerNorm2dFp32", "LayerNormAct2d"}
"""Subclasses of `torch.nn.LayerNorm`, in timm and torchvision, that normalize dimension 1 of `(N, C, H, W)`."""
WITH_A_LIFE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""What a module holds that is more than a norm, whatever it is called."""
RMS_NORMS = {"RMSNorm": True, "RmsNorm": True, "RmsNormFp32": True, "RmsNorm2d": False, "RmsNorm2dFp32": False}
"""RMS norms of torch and timm, and whether the channels are the last dimension."""


@dataclass(frozen=True, slots=True)
class Known:
    """A layer that stands for a norm of the shelf."""

    layer: nn.Module
    norm: nn.Module
    """Where its parameters and statistics are: the layer itself, or the norm of the shelf that it holds."""
    kind: str
    """Of the norm on the shelf that it is, or is nearest to."""
    num_features: int
    """C, the channels."""
    knobs: dict[str, Any]
    """The knobs of that kind which it is known to have."""
    gamma: Tensor | None = None
    """The scale, `(C,)`."""
    beta: Tensor | None = None
    """The shift, `(C,)`."""
    channels_last: bool = False
    """Whether it takes `(N, *, C)`, as transformers do, and not `(N, C, *)`."""
    after: dict[str, nn.Module] = field(default_factory=dict)
    """What it does to the normalized values before it returns them, by name: timm's layers hold their activation."""
    remark: str = ""
    """Where it is not just the norm of that kind."""


def recognize(layer: nn.Module, channels: int | None = None) -> Known | str | None:
    """The norm that a layer is; or why it cannot be told, in a sentence; or none, where it is no norm at all.

    Args:
        layer: Of torch, timm, torchvision or the shelf.
        channels: C of its input, for layers that do not say it.

    Example:
        >>> known = recognize(nn.GroupNorm(2, 6, eps=1e-3))
        >>> known.kind, known.num_features, known.knobs
        ('group', 6, {'num_groups': 2, 'eps': 0.001})
        >>> recognize(nn.LazyBatchNorm2d())
        'its channels are unknown until it has seen a batch; run the model once before'
    """
    if isinstance(layer, torch.jit.ScriptModule):
        name = getattr(layer, "original_name", "")
        return "it stands in a scripted module, whose code is fixed" if NAMED_AS_NORM.search(name) else None
    if isinstance(layer, nn.LocalResponseNorm):
        return _local_response(layer, channels)
    for kind, read in READERS:
        if isinstance(layer, kind):
            return read(layer)
    name = type(layer).__name__
    if name == "FrozenBatchNorm2d":
        return _frozen(layer)
    if name in RMS_NORMS:
        return _rms(layer)
    if NAMED_AS_NORM.search(name) and not any(isinstance(inner, WITH_A_LIFE) for inner in layer.modules()):
        return f"{name} is called a norm and is none that is known here"
    return None


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a norm, or is called one: its inside is its own affair."""
    return recognize(layer) is not None


def norms_of(model: nn.Module, channels: Mapping[str, int] = MappingProxyType({})) -> dict[str, Known | str]:
    """Every norm of a model by its first path, with what it is, or why that cannot be told; not what is inside norms.

    Args:
        model: Any.
        channels: C of the input by path, where it has been seen.
    """
    found: dict[str, Known | str] = {}
    for path, layer in model.named_modules():
        if "parametrizations" in path.split("."):
            continue  # Weight norm and spectral norm are norms of weights.
        known = recognize(layer, channels.get(path))
        if known is not None and not any(path.startswith(f"{outer}.") or outer == "" for outer in found):
            found[path] = known
    return found


def _of_the_shelf(layer: nn.Module, norm: Norm, *, channels_last: bool) -> Known | str:
    for spec in get_args(NormSpec):
        if spec.target == f"{type(norm).__module__}:{type(norm).__name__}":
            names = [name for name in spec.model_fields if name not in {"kind", "affine"}]
            knobs = {name: getattr(norm, name) for name in names if hasattr(norm, name)}
            if "num_groups" in knobs:
                knobs.pop("channels_per_group", None)  # Two words for one thing, and a spec takes one.
            kind = kind_of(spec)
            return _known(layer, kind, norm.num_features, knobs, norm=norm, channels_last=channels_last)
    return f"{type(norm).__name__} is not on the menu"


def _batch(layer: _BatchNorm) -> Known:
    knobs = {"eps": layer.eps, "momentum": layer.momentum}
    remarks = []
    if layer.momentum is None:
        knobs["momentum"] = 0.1
        remarks.append("its running statistics are plain averages (momentum None), of which the shelf knows none: 0.1")
    if layer.running_mean is None:
        remarks.append("it normalizes by the batch in evaluation as well")
    return _known(layer, "batch", layer.num_features, knobs, remark="; ".join(remarks))


def _frozen(layer: nn.Module) -> Known | str:
    if not isinstance(layer.running_mean, Tensor):
        return "its channels are unknown"
    remark = "it is frozen: neither statistics nor parameters moved"
    return _known(layer, "batch", layer.running_mean.numel(), {"eps": layer.eps}, remark=remark)


def _group(layer: nn.GroupNorm) -> Known:
    return _known(layer, "group", layer.num_channels, {"num_groups": layer.num_groups, "eps": layer.eps})


def _instance(layer: _InstanceNorm) -> Known:
    remark = "it normalizes by running statistics in evaluation" if layer.track_running_stats else ""
    return _known(layer, "instance", layer.num_features, {"eps": layer.eps}, remark=remark)


def _layer(layer: nn.LayerNorm) -> Known | str:
    shape = layer.normalized_shape
    if len(shape) == 1:
        last = type(layer).__name__ not in CHANNELS_FIRST_LAYER_NORMS
        return _known(layer, "layer_channels", shape[0], {"eps": layer.eps}, channels_last=last)
    if len(shape) != 3:
        return f"normalized_shape {shape} does not say which dimension is the channels"
    per_pixel = any(t is not None and not _one_per_channel(t) for t in (layer.weight, layer.bias))
    remark = "its gamma and beta differ from pixel to pixel: their means are taken" if per_pixel else ""
    return _known(layer, "layer", shape[0], {"eps": layer.eps}, remark=remark)


def _local_response(layer: nn.LocalResponseNorm, channels: int | None) -> Known | str:
    if channels is None:
        return "it does not say how many channels it is given; hand in a calibration batch, which shows them"
    knobs = {name: getattr(layer, name) for name in ("size", "alpha", "beta", "k")}
    return _known(layer, "local_response", channels, knobs | {"convention": "torch"})


def _rms(layer: nn.Module) -> Known | str:
    weight = getattr(layer, "weight", None)
    shape = list(getattr(layer, "normalized_shape", None) or (weight.shape if isinstance(weight, Tensor) else ()))
    if len(shape) != 1:
        return f"normalized_shape {tuple(shape)} does not say which dimension is the channels"
    eps = getattr(layer, "eps", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.get_default_dtype()
    knobs = {"eps": torch.finfo(dtype).eps if eps is None else eps}
    return _known(layer, "rms", shape[0], knobs, channels_last=RMS_NORMS[type(layer).__name__])


def _known(
    layer: nn.Module,
    kind: str,
    num_features: int,
    knobs: dict[str, Any],
    *,
    norm: nn.Module | None = None,
    channels_last: bool = False,
    remark: str = "",
) -> Known:
    norm = norm or layer
    gamma, beta = (_per_channel(getattr(norm, name, None), num_features) for name in ("weight", "bias"))
    after = {name: child for name, child in layer.named_children() if name in {"drop", "act"}}
    after = {name: child for name, child in after.items() if type(child) is not nn.Identity}
    return Known(layer, norm, kind, num_features, knobs, gamma, beta, channels_last, after, remark)


def _per_channel(values: object, num_features: int) -> Tensor | None:
    """One value per channel, of a parameter per channel or per channel and pixel."""
    if not isinstance(values, Tensor) or values.shape[:1] != (num_features,):
        return None
    return values.detach().flatten(1).mean(1) if values.dim() > 1 else values.detach()


def _one_per_channel(values: Tensor) -> bool:
    flat = values.detach().flatten(1)
    return not values.is_meta and bool((flat == flat[:, :1]).all())


READERS: tuple[tuple[type[nn.Module], Callable[[Any], Known | str]], ...] = (
    (ChannelsLast, lambda layer: _of_the_shelf(layer, layer.norm, channels_last=True)),
    (Norm, lambda layer: _of_the_shelf(layer, layer, channels_last=False)),
    (_LazyNormBase, lambda _: "its channels are unknown until it has seen a batch; run the model once before"),
    (_BatchNorm, _batch),
    (_InstanceNorm, _instance),
    (nn.GroupNorm, _group),
    (nn.LayerNorm, _layer),
)
"""Who reads a layer, by its class; the first that fits."""
