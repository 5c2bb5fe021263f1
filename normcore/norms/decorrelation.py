"""Groups of channels times their whitening matrix: the formula, and the same in few passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normcore.norms.channel_groups import covariance, from_groups, to_groups, turn, without_autocast
from normcore.norms.closed_form import ClosedForm, parts
from normcore.norms.norm import at_least_float32

Root = Callable[[Tensor, int], Tensor]
"""From covariances to whitening matrices, `(G, D, D)` both; second, the orders of derivatives that will be asked."""

Statistics = tuple[Tensor, Tensor, Tensor]
"""Of a batch: means `(1, G, D, 1)`, covariances and whitening matrices, `(G, D, D)` both."""


def decorrelated(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, channels_per_group: int, root: Root
) -> tuple[Tensor, Statistics]:
    """`weight W (x - mean) + bias` and what it is made of, in differentiable operations."""
    with without_autocast(x):
        values = x.to(at_least_float32(x.dtype))
        groups = to_groups(values, channels_per_group)
        mean = groups.mean((0, 3), keepdim=True)
        centred = groups - mean
        of_groups = covariance(centred)
        whitening = root(of_groups, 2)
        return from_groups(turned(centred, whitening, weight, bias), values).to(x.dtype), (mean, of_groups, whitening)


def batch_statistics(x: Tensor, channels_per_group: int, root: Root) -> Statistics:
    """Those of `decorrelated`, part by part; not differentiable."""
    with torch.no_grad(), without_autocast(x):
        count, dtype = x.numel() // x.shape[1], at_least_float32(x.dtype)
        pixels = (0, *range(2, x.dim()))
        mean = torch.stack([part.to(dtype).sum(pixels) for (part,) in parts(x)]).sum(0) / count
        mean = mean.view(1, -1, channels_per_group, 1)
        of_groups = mean.new_zeros(mean.shape[1], channels_per_group, channels_per_group)
        for (part,) in parts(x):
            centred = to_groups(part.to(dtype), channels_per_group) - mean
            of_groups += (centred @ centred.mT).sum(0) / count
        return mean, of_groups, root(of_groups, 0)


def turned(centred: Tensor, whitening: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`weight W centred + bias` of groups `(B, G, D, L)`."""
    per_channel = (*centred.shape[1:3], 1)
    if weight is not None:
        whitening = weight.to(centred.dtype).view(per_channel) * whitening
    y = turn(whitening, centred)
    return y if bias is None else y + bias.to(centred.dtype).view(per_channel)


class Decorrelation(ClosedForm):
    """`decorrelated` of x, weight and bias, given its statistics too, which fast passes need not find again.

    Inputs: x, weight, bias, the three statistics and the root. With M = sum_l g_l (x_l - mean)^T over the m values l
    of the channels, dW = gamma M, and dcov what the derivative of the root makes of it:

        dgamma_i = (M W^T)_ii,   dbeta = sum_l g_l
        dx = W^T gamma (g - mean(g)) + (dcov + dcov^T) (x - mean) / m
    """

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        """The formula."""
        x, weight, bias, _, of_groups, _, root = inputs
        return decorrelated(x, weight, bias, of_groups.shape[-1], root)[0]

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        """One pass."""
        x, weight, bias, mean, _, whitening, _ = inputs
        y = torch.empty_like(x)
        with without_autocast(x):
            for into, part in parts(y, x):
                values = part.to(mean.dtype)
                centred = to_groups(values, whitening.shape[-1]) - mean
                into.copy_(from_groups(turned(centred, whitening, weight, bias), values))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """Two passes."""
        x, weight, bias, mean, of_groups, whitening, root = inputs
        count, size, kept = x.numel() // x.shape[1], of_groups.shape[-1], mean.dtype
        with without_autocast(x):
            products, sums = torch.zeros_like(of_groups), torch.zeros_like(mean)
            for grad_part, part in parts(grad, x):
                values = part.to(kept)
                pushed = to_groups(grad_part.to(kept), size, values)
                products += (pushed @ (to_groups(values, size) - mean).mT).sum(0)
                sums += pushed.sum((0, 3), keepdim=True)
            gamma = torch.ones_like(mean[0]) if weight is None else weight.to(kept).view(mean.shape[1:])
            with torch.enable_grad():
                start = of_groups.detach().requires_grad_()
                (of_start,) = torch.autograd.grad(root(start, 1), start, gamma * products)
            back, spread = (gamma * whitening).mT, (of_start + of_start.mT) / count
            of_x = torch.empty_like(x)
            for into, grad_part, part in parts(of_x, grad, x):
                values = part.to(kept)
                pushed = to_groups(grad_part.to(kept), size, values) - sums / count
                centred = to_groups(values, size) - mean
                into.copy_(from_groups(turn(back, pushed) + turn(spread, centred), values))
        of_weight = None if weight is None else (products * whitening).sum(-1).flatten().to(weight.dtype)
        of_bias = None if bias is None else sums.flatten().to(bias.dtype)
        return of_x, of_weight, of_bias, *[None] * 4
