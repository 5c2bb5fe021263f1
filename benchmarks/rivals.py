"""Whom the shelf is measured against: torch's own layers, timm's where it is installed, and plain formulas.

Run `.venv/bin/python benchmarks/rivals.py` for the list. Where timm cannot be imported, what it computes stands here as
a formula, and is called so. A formula is what one would write first: differentiable operations, no care for passes over
memory, statistics in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


@dataclass(frozen=True, slots=True)
class Rival:
    """Another implementation of a kind on the menu."""

    name: str
    make: Callable[[int, int], nn.Module]
    """Takes the channels of the input, and its dimensions."""


def norm_rivals(kind: str, dimensions: int) -> list[Rival]:
    """Rivals of a norm for inputs of so many dimensions."""
    rivals = {
        "batch": [Rival("torch BatchNorm", _batch)],
        "sync": [Rival("torch SyncBatchNorm", _any(nn.SyncBatchNorm)), Rival("torch BatchNorm", _batch)],
        "ghost": [Rival("torch batch_norm, part by part", partial(_batch, parts=2))],
        "group": [Rival("torch GroupNorm", _any(partial(nn.GroupNorm, 32)))],
        "layer": [Rival("torch GroupNorm(1)", _any(partial(nn.GroupNorm, 1)))],
        "instance": [Rival("torch InstanceNorm", _instance)],
        "layer_channels": [
            Rival("torch LayerNorm, permuted", partial(_Last, nn.LayerNorm, 1e-6)),
            _timm("LayerNorm2d", partial(_Last, nn.LayerNorm, 1e-6)),
        ],
        "rms": [
            Rival("torch RMSNorm, permuted", partial(_Last, nn.RMSNorm, 1e-6)),
            _timm("RmsNorm2d", partial(_Formula, _rms, bias=False)),
        ],
        "local_response": [Rival("torch LocalResponseNorm", _local_response)],
        "filter_response": [
            _timm("FilterResponseNormTlu2d", partial(_Formula, _filter_response, learned=("tau", 0.0)))
        ],
        "evonorm_b0": [_timm("EvoNorm2dB0", partial(_Formula, _evonorm_b0, learned=("v", 1.0), running=True))],
        "evonorm_s0": [_timm("EvoNorm2dS0", partial(_Formula, _evonorm_s0, learned=("v", 1.0)))],
        "lp": [Rival("plain formula", partial(_Formula, _l1, running=True))],
        "batch_renorm": [Rival("plain formula", partial(_Formula, _batch_renorm, running=True))],
        "switchable": [Rival("plain formula", partial(_Formula, _switchable, running=True))],
        "divisive": [Rival("plain formula", partial(_Formula, _divisive, learned=("sigma", 1.0)))],
        "dyt": [Rival("plain formula", partial(_Formula, _dynamic_tanh, learned=("alpha", 0.5)))],
        "whitening": [Rival("plain formula", partial(_Formula, _whitening, running=True))],
        "iterative": [Rival("plain formula", partial(_Formula, _iterative, running=True))],
        "power": [Rival("plain formula", partial(_Formula, _power, running=True))],
    }
    found = rivals.get(kind, [])
    return found if dimensions == 4 else [rival for rival in found if not rival.name.startswith("timm ")]


def weight_rivals(kind: str) -> list[Rival]:
    """Rivals of a weight method, as 3x3 convolutions."""
    conv = partial(nn.Conv2d, kernel_size=3, padding=1)

    def parametrized(method: Callable[..., nn.Module]) -> Callable[[int, int], nn.Module]:
        return lambda channels, _: method(conv(channels, channels))

    def same(layer: Callable[..., nn.Module]) -> Callable[[int, int], nn.Module]:
        return lambda channels, _: layer(channels, channels, kernel_size=3, padding=1)

    return {
        "standardized": [_timm("StdConv2d", same(_StandardizedConv))],
        "scaled": [_timm("ScaledStdConv2d", same(_ScaledConv))],
        "weight_norm": [Rival("torch weight_norm", parametrized(parametrizations.weight_norm))],
        "spectral": [Rival("torch spectral_norm", parametrized(parametrizations.spectral_norm))],
    }.get(kind, [])


def _timm(layer: str, formula: Callable[[int, int], nn.Module]) -> Rival:
    """Timm's layer where timm is installed, else what it computes."""
    try:
        theirs: Any = getattr(importlib.import_module("timm.layers"), layer)
    except (ImportError, AttributeError, RuntimeError):
        return Rival("timm's formula", formula)
    if layer.endswith("Conv2d"):
        return Rival(f"timm {layer}", lambda channels, _: theirs(channels, channels, 3, padding=1))
    knobs = {"EvoNorm2dS0": {"groups": 32}}.get(layer, {})
    return Rival(f"timm {layer}", lambda channels, _: theirs(channels, **knobs))


def _any(layer: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
    """A layer for inputs of any dimensions."""
    return lambda channels, _: layer(channels)


def _batch(channels: int, dimensions: int, *, parts: int = 1) -> nn.Module:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[dimensions](channels)
    return norm if parts == 1 else _Parts(norm, parts)


def _instance(channels: int, dimensions: int) -> nn.Module:
    return {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d}[dimensions](channels, affine=True)


def _local_response(_channels: int, _dimensions: int) -> nn.Module:
    # Torch divides alpha by the size.
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


class _Parts(nn.Module):
    """Batch norm of each part of the batch by itself."""

    def __init__(self, norm: nn.Module, parts: int) -> None:
        super().__init__()
        self.norm, self.parts = norm, parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.chunk(self.parts)])


class _Last(nn.Module):
    """A norm of the last dimension, on channels that are moved there and back."""

    def __init__(self, norm: Callable[..., nn.Module], eps: float, channels: int, _: int) -> None:
        super().__init__()
        self.norm = norm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class _Formula(nn.Module):
    """A formula of x in float32, of gamma and beta, and of what else it learns or keeps running."""

    def __init__(
        self,
        formula: Callable[..., Tensor],
        channels: int,
        dimensions: int,
        *,
        learned: tuple[str, float] | None = None,
        running: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.formula, shape = formula, (channels, *[1] * (dimensions - 2))
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else 0.0
        self.learned = None
        if learned is not None:
            self.learned = nn.Parameter(torch.full(shape if learned[0] in {"tau", "v"} else (), learned[1]))
        self.running = torch.zeros(2, *shape) if running else None

    def forward(self, x: Tensor) -> Tensor:
        extra = [value for value in (self.learned, self.running) if value is not None]
        return self.formula(x.float(), self.weight, self.bias, *extra).to(x.dtype)


def _rms(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * weight + bias


def _filter_response(x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor) -> Tensor:
    square = x.square().mean(_pixels(x), keepdim=True)
    return torch.maximum(x * (square + 1e-6).rsqrt() * weight + bias, tau)


def _evonorm_b0(x: Tensor, weight: Tensor, bias: Tensor, v: Tensor, running: Tensor) -> Tensor:
    var = x.var((0, *_pixels(x)), correction=0, keepdim=True)
    running[1].lerp_(var.detach()[0], 0.1)
    own = (x.var(_pixels(x), correction=0, keepdim=True) + 1e-3).sqrt()
    return x / torch.maximum((var + 1e-3).sqrt(), v * x + own) * weight + bias


def _evonorm_s0(x: Tensor, weight: Tensor, bias: Tensor, v: Tensor) -> Tensor:
    groups = x.reshape(x.shape[0], 32, -1)
    std = (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt().expand_as(groups).reshape(x.shape)
    return x * torch.sigmoid(v * x) / std * weight + bias


def _l1(x: Tensor, weight: Tensor, bias: Tensor, running: Tensor) -> Tensor:
    mean = x.mean((0, *_pixels(x)), keepdim=True)
    size = x.abs().mean((0, *_pixels(x)), keepdim=True)
    running[0].lerp_(mean.detach()[0], 0.1)
    running[1].lerp_(size.detach()[0], 0.1)
    return (x - mean) / (size + 1e-5) * weight + bias


def _batch_renorm(x: Tensor, weight: Tensor, bias: Tensor, running: Tensor) -> Tensor:
    # In its warm-up, where r is 1 and d is 0.
    mean = x.mean((0, *_pixels(x)), keepdim=True)
    std = x.var((0, *_pixels(x)), correction=0, keepdim=True).sqrt() + 1e-3
    running[0].lerp_(mean.detach()[0], 0.01)
    running[1].lerp_(std.detach()[0], 0.01)
    return (x - mean) / std * weight + bias


def _switchable(x: Tensor, weight: Tensor, bias: Tensor, running: Tensor) -> Tensor:
    # With its first weights: a third each of instance, layer and batch statistics.
    means = [x.mean(d, keepdim=True) for d in (_pixels(x), (1, *_pixels(x)), (0, *_pixels(x)))]
    variances = [x.var(d, correction=0, keepdim=True) for d in (_pixels(x), (1, *_pixels(x)), (0, *_pixels(x)))]
    running[0].lerp_(means[2].detach()[0], 0.1)
    running[1].lerp_(variances[2].detach()[0], 0.1)
    return (x - sum(means) / 3) / (sum(variances) / 3 + 1e-5).sqrt() * weight + bias


def _divisive(x: Tensor, weight: Tensor, bias: Tensor, sigma: Tensor) -> Tensor:
    def local(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values.mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)

    v = x - local(x)
    return v / (sigma.square() + local(v.square())).sqrt() * weight + bias


def _dynamic_tanh(x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor) -> Tensor:
    return torch.tanh(alpha * x) * weight + bias


def _power(x: Tensor, weight: Tensor, bias: Tensor, running: Tensor) -> Tensor:
    # In its warm-up, where the gradient is exact.
    square = x.square().mean((0, *_pixels(x)), keepdim=True)
    running[1].lerp_(square.detach()[0], 0.1)
    return x * (square + 1e-5).rsqrt() * weight + bias


def _whitening(x: Tensor, weight: Tensor, bias: Tensor, running: Tensor) -> Tensor:
    def root(sigma: Tensor) -> Tensor:
        values, axes = torch.linalg.eigh(sigma)
        return axes * values.rsqrt().unsqueeze(-2) @ axes.mT

    return _decorrelated(x, 16, root, running) * weight + bias


def _iterative(x: Tensor, weight: Tensor, bias: Tensor, running: Tensor) -> Tensor:
    def root(sigma: Tensor) -> Tensor:
        trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        p = torch.eye(sigma.shape[-1]).expand_as(sigma)
        for _ in range(5):
            p = 1.5 * p - 0.5 * p @ p @ p @ (sigma / trace)
        return p * trace.rsqrt()

    return _decorrelated(x, 64, root, running) * weight + bias


def _decorrelated(x: Tensor, channels: int, root: Callable[[Tensor], Tensor], running: Tensor) -> Tensor:
    rows = x.transpose(0, 1).reshape(-1, channels, x.numel() // x.shape[1])
    mean = rows.mean(-1, keepdim=True)
    rows = rows - mean
    matrices = root(rows @ rows.mT / rows.shape[-1] + 1e-5 * torch.eye(channels))
    running[0].view(-1).lerp_(mean.detach().view(-1), 0.1)
    return (matrices @ rows).view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


class _StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, _standardized(self.weight, None), self.bias, padding=1)


class _ScaledConv(nn.Conv2d):
    def __init__(self, *sizes: int, kernel_size: int, padding: int) -> None:
        super().__init__(*sizes, kernel_size=kernel_size, padding=padding)
        self.gain = nn.Parameter(torch.ones(self.weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain * self.weight[0].numel() ** -0.5
        return functional.conv2d(x, _standardized(self.weight, gain), self.bias, padding=1)


def _standardized(weight: Tensor, gain: Tensor | None) -> Tensor:
    """Each filter by its own mean and variance: batch norm of one sample that has the filters for channels."""
    rows = weight.reshape(1, weight.shape[0], -1)
    return functional.batch_norm(rows, None, None, gain, None, True, 0.0, 1e-6).view_as(weight)


if __name__ == "__main__":
    from normcore.spec import MENU, kind_of

    for kind in map(kind_of, MENU["norm"]):
        print(f"{kind:16}", ", ".join(rival.name for rival in norm_rivals(kind, 4)) or "nobody")
    for kind in map(kind_of, MENU["weight"]):
        print(f"{kind:16}", ", ".join(rival.name for rival in weight_rivals(kind)) or "nobody")
