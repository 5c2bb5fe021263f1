"""Group norm where the channels of a pixel lie next to each other in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normcore.norms.closed_form import device_type
from normcore.norms.norm import at_least_float32

CHUNK = 2**19
"""Elements, 2 MiB in float32, up to which a temporary stays in the cache of a CPU."""

CENTRED = 3.0
"""Mean over deviation of a group up to which the variance may be taken in one pass."""

TILED_FROM = 8
"""Samples from which a scale and a shift for every pixel of one cost less than a pass over all."""


def normalize_innermost(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """What `normcore.norms.grouped.normalize_groups` gives, for an input with `channels_innermost`.

    Where the channels of a pixel lie next to each other in memory (channels_last, or tokens seen as `(N, C, L)`),
    torch's kernel for CPUs takes the variance in one pass, mean(x^2) - mean(x)^2, which in float32 is off by some
    percent where the mean is a hundred standard deviations, and its backward pass takes tens to hundreds of copies of
    the input. There the mean is subtracted first, unless it turns out to be small beside the deviation, and the closed
    form of the derivative is written out.

    Args:
        x: `(N, C, *)`, its memory order kept.
        num_groups: Divides C.
        weight: Gamma, `(C,)`, or none.
        bias: Beta, `(C,)`, or none; both or neither.
        eps: Added to the variance, inside the root.

    Example:
        >>> tokens = torch.tensor([[[1.0, 10.0], [3.0, 30.0]]]).mT
        >>> normalize_innermost(tokens, 2, None, None, 1e-5).round(decimals=3)
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])
    """
    if _is_precise_enough(x, weight) and _fills(x.shape[1] // num_groups, x):
        if x.dim() != 4:
            y = torch.group_norm(_maps(_rows(x)), num_groups, weight, bias, eps)
            return _unrow(y.movedim(1, -1), x)
        return torch.group_norm(x, num_groups, weight, bias, eps)
    inputs = [x] if weight is None or bias is None else [x, weight, bias]
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    # Forward mode goes on where gradients are off.
    if differentiated or any(_moves(t) for t in inputs):
        whole: Tensor = _Innermost.apply(x, weight, bias, num_groups, eps)[0]  # type: ignore[no-untyped-call]
        return whole
    return _normalize(x, weight, bias, num_groups, eps)[0]


def channels_innermost(x: Tensor) -> bool:
    """Whether the channels of a pixel lie next to each other in memory, as in channels_last, and pixels do not.

    Example:
        >>> tokens = torch.zeros(2, 10, 8)
        >>> channels_innermost(tokens), channels_innermost(tokens.mT)
        (False, True)
    """
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_Innermost` is the derivative of."""
    rows = _rows(x)
    n, pixels, c = rows.shape
    if _is_precise_enough(x, weight) and pixels >= 1024:
        maps = _maps(rows)
        y, mean, rstd = torch.native_group_norm(maps, weight, bias, n, c, pixels, num_groups, eps)
        return _unrow(y.movedim(1, -1), x), mean, rstd
    if num_groups < c and _may_ask(x):
        maps = _maps(rows)
        y, mean, rstd = torch.native_group_norm(maps, weight, bias, n, c, pixels, num_groups, eps)
        # The one pass loses the digits that (mean / deviation)^2 has before its point: here at most one.
        if bool((mean * rstd).abs().max() <= CENTRED):
            return _unrow(y.movedim(1, -1), x), mean, rstd
    if num_groups == 1 and x.is_cpu:
        # The channels of a pixel and its neighbours are one row, over which torch's kernel takes two passes.
        row = rows.to(at_least_float32(x.dtype)).view(n, -1)
        if weight is not None and bias is not None and n >= TILED_FROM:
            # Scale and shift once for every pixel, so that one pass does it all.
            tiled = weight.repeat(pixels), bias.repeat(pixels)
            y, mean, rstd = torch.native_layer_norm(row, (pixels * c,), *tiled, eps)
            return _unrow(y.view(rows.shape).to(x.dtype), x), mean, rstd
        y, mean, rstd = torch.native_group_norm(row.unsqueeze(1), None, None, n, 1, pixels * c, 1, eps)
        y = y.view(rows.shape)
        return _unrow((y if weight is None or bias is None else _line(y, weight, bias)).to(x.dtype), x), mean, rstd
    mean, var = _piecewise(_mean_and_var, rows).view(n, 2, num_groups, -1).unbind(1)
    if num_groups < c:
        # Of channels with equally many values: the mean of their variances and the variance of their means.
        means, mean = mean, mean.mean(-1, keepdim=True)
        var = (var + (means - mean).square()).mean(-1, keepdim=True)
    # A copy, since a Function's output may be no view where forward mode is to pass through it.
    mean, rstd = mean.squeeze(-1).clone(), torch.rsqrt(var.squeeze(-1) + eps)
    scale = _to_channels(rstd, c) if weight is None else _to_channels(rstd, c) * weight
    shift = _to_channels(mean, c) * scale
    return _unrow(_rounded(_line, rows, scale, -shift if bias is None else bias - shift), x), mean, rstd


def _moves(tensor: Tensor) -> bool:
    """Whether forward mode goes through it."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _unviewed(y: Tensor) -> Tensor:
    """The same values in the same memory, and no view; tensors of transforms have no such form."""
    return y if torch._C._are_functorch_transforms_active() else y.data  # noqa: SLF001


class _Innermost(Function):
    """Group norm of an input whose channels are innermost, and its statistics: all three with their derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output; mean and 1 / sqrt(var + eps) of the groups, `(N, num_groups)`."""
        y, mean, rstd = _normalize(x, weight, bias, num_groups, eps)
        # A Function's output that is a view cannot be changed in place, as many activations do.
        return _unviewed(y), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the input and the statistics."""
        x, weight, _, num_groups, _ = inputs
        ctx.num_groups = num_groups
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.save_for_forward(x, weight, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_mean: Tensor | None, grad_rstd: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias.

        With sums over pixels `s = sum(g)`, `t = sum(g xhat)` and over a group's k values, per channel scale a = gamma
        rstd: dx = a g - rstd sum(gamma s) / k - rstd xhat sum(gamma t) / k, which is a line in g and in x.
        """
        x, weight, mean, rstd = ctx.saved_tensors
        num_groups: int = ctx.num_groups
        rows = _rows(x)
        n, pixels, c = rows.shape
        in_group = c // num_groups
        g = torch.zeros_like(rows) if grad is None else _rows(grad)
        if not torch.is_grad_enabled() and grad_mean is grad_rstd is None and _mixes(x, weight) and _fills(in_group, x):
            affine = weight is not None
            maps, g = _maps(rows), _maps(g)
            dx, d_weight, d_bias = torch.ops.aten.native_group_norm_backward(
                g, maps, mean, rstd, weight, n, c, pixels, num_groups, (True, affine, affine)
            )
            return _unrow(dx.movedim(1, -1), x), d_weight, d_bias, None, None
        s, t = torch.split(_piecewise(_sums, g, rows), 1, 1)
        scale = _to_channels(rstd, c)
        t = (t - _to_channels(mean, c) * s) * scale
        d_weight = d_bias = None
        if weight is not None:
            d_weight, d_bias, scale = t.sum((0, 1)), s.sum((0, 1)), scale * weight
            s, t = s * weight, t * weight
        count = pixels * in_group
        slope = rstd.square() * _over_groups(t, num_groups)
        level = -rstd * _over_groups(s, num_groups)
        if grad_rstd is not None:
            slope = slope + rstd**3 * grad_rstd
        if grad_mean is not None:
            level = level + grad_mean
        slope = slope / -count
        level = level / count - slope * mean
        dx = _rounded(_plane, rows, g, _to_channels(slope, c), scale, _to_channels(level, c))
        return _unrow(dx, x), d_weight, d_bias, None, None

    @staticmethod
    def jvp(
        ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_others: None
    ) -> tuple[Tensor, ...]:
        """How the output and the statistics move with the inputs."""
        x, weight, mean, rstd = ctx.saved_tensors
        rows = _rows(x).to(mean.dtype)
        c = x.shape[1]
        count = rows.shape[1] * c // ctx.num_groups
        along = torch.zeros_like(rows) if x_t is None else _rows(x_t).to(mean.dtype)
        normalized = (rows - _to_channels(mean, c)) * _to_channels(rstd, c)
        mean_t = _over_groups(along.sum(1, keepdim=True), ctx.num_groups) / count
        rstd_t = _over_groups((along * normalized).sum(1, keepdim=True), ctx.num_groups) * rstd.square() / -count
        y_t = (along - _to_channels(mean_t, c)) * _to_channels(rstd, c) + normalized * _to_channels(rstd_t / rstd, c)
        if weight is not None:
            y_t = y_t * weight
        if weight_t is not None:
            y_t = y_t + normalized * weight_t
        if bias_t is not None:
            y_t = y_t + bias_t
        return _unrow(y_t.to(x.dtype), x), mean_t, rstd_t


# A Function with a context of its own looks up its signature at every call, which takes longer than a small kernel.
_Innermost.forward.__signature__ = inspect.signature(_Innermost.forward)  # type: ignore[attr-defined]


def _rows(x: Tensor) -> Tensor:
    """`(N, C, *)` as `(N, pixels, C)`, with the channels innermost in memory too."""
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1]).contiguous()


def _maps(rows: Tensor) -> Tensor:
    """`(N, pixels, C)` as maps of one line, in channels_last: what torch's kernels know."""
    return rows.unsqueeze(1).movedim(-1, 1)


def _unrow(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(x.movedim(1, -1).shape).movedim(-1, 1)


def _mixes(x: Tensor, weight: Tensor | None) -> bool:
    """Whether torch's kernel keeps the statistics of `x` in float32 or better: on CPUs, by the parameters' dtype."""
    return device_type(x) == "cpu" and (weight is not None or x.dtype == at_least_float32(x.dtype))


def _may_ask(x: Tensor) -> bool:
    """Whether a result may be looked at to choose the next operation: on the CPU, outside of transforms."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch._C._are_functorch_transforms_active()  # noqa: SLF001


def _is_precise_enough(x: Tensor, weight: Tensor | None) -> bool:
    """Whether one pass in float32 loses less than the rounding of `x` has lost: where that was to bfloat16."""
    return x.dtype == torch.bfloat16 and _mixes(x, weight)


def _fills(channels: int, x: Tensor) -> bool:
    """Whether so many channels of a pixel fill a vector register, without which torch's kernels take each by itself."""
    return channels * x.element_size() >= 32


def _over_groups(per_channel: Tensor, num_groups: int) -> Tensor:
    """`(N, 1, C)` summed to `(N, num_groups)`."""
    n, _, c = per_channel.shape
    return per_channel.squeeze(1) if num_groups == c else per_channel.reshape(n, num_groups, -1).sum(-1)


def _to_channels(per_group: Tensor, num_features: int) -> Tensor:
    """`(N, num_groups)` repeated to `(N, 1, C)`."""
    n, num_groups = per_group.shape
    if num_groups == num_features:
        return per_group.unsqueeze(1)
    return per_group.unsqueeze(-1).expand(n, num_groups, num_features // num_groups).reshape(n, 1, num_features)


def _piecewise(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`compute(*tensors)`, a few samples at a time, so that its temporaries stay in the cache of a CPU."""
    first = tensors[0]
    if first.numel() <= CHUNK or not first.is_cpu:
        return compute(*tensors)
    samples = max(1, CHUNK * first.shape[0] // first.numel())
    return torch.cat([compute(*piece) for piece in zip(*(torch.split(t, samples) for t in tensors), strict=True)])


def _rounded(compute: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """`compute` in the dtype of `x`: at once, or piecewise where that needs a wider temporary."""
    if x.dtype == at_least_float32(x.dtype):
        return compute(x, *others)
    return _piecewise(lambda *piece: compute(*piece).to(x.dtype), x, *others)


def _mean_and_var(x: Tensor) -> Tensor:
    """Of the pixels of each channel, `(N, 2, C)`."""
    x = x.to(at_least_float32(x.dtype))
    mean = x.mean(1, keepdim=True)
    deviations = x - mean
    squares = deviations.square() if torch.is_grad_enabled() else deviations.mul_(deviations)
    return torch.cat([mean, squares.mean(1, keepdim=True)], 1)


def _sums(g: Tensor, x: Tensor) -> Tensor:
    """Of g and of g x over the pixels of each channel, `(N, 2, C)`."""
    dtype = at_least_float32(x.dtype)
    g = g.to(dtype)
    return torch.cat([g.sum(1, keepdim=True), (g * x.to(dtype)).sum(1, keepdim=True)], 1)


def _line(x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    x = x.to(slope.dtype)
    # In forward mode torch's addcmul does not broadcast its first argument as it should.
    return x * slope + level if torch.is_grad_enabled() else torch.addcmul(level, x, slope)


def _plane(x: Tensor, y: Tensor, slope_x: Tensor, slope_y: Tensor, level: Tensor) -> Tensor:
    z, y = _line(x, slope_x, level), y.to(level.dtype)
    return z + y * slope_y if torch.is_grad_enabled() else z.addcmul_(y, slope_y)
