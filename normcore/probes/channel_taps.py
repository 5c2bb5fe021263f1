"""Mean and variance per channel of what modules give while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.gathering import channel_moments
from normcore.norms.norm import at_least_float32

CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)
"""Layers whose channels are the last dimension of their output, and not the second."""


@dataclass(slots=True, eq=False)
class ChannelTap:
    """What the outputs of a module have added up to.

    All calls of a pass count together: micro-batches, time steps, places of a module that stands at several.

    Attributes:
        sums: Per channel the number of values, their sum and that of their squares, `(3, C)` in float64; None where the
            module gave nothing that has channels.
        eps: Of the dtype that the outputs' moments were taken in.
    """

    sums: Tensor | None = None
    eps: float = 0.0

    @torch.no_grad()
    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Count an output `(N, C, *)`, where the mask is given only what is real."""
        moments = channel_moments(x.detach(), mask)
        mean, square = moments.means["mean"], moments.means["square"]
        self.eps = torch.finfo(at_least_float32(x.dtype)).eps
        new = torch.stack([torch.ones_like(mean), mean, square]) * moments.count
        self.sums = new if self.sums is None else self.sums + new

    def mean_and_var(self) -> tuple[Tensor, Tensor] | None:
        """Mean and (biased) variance of each channel, `(C,)` in float64; None where there were no values."""
        if self.sums is None:
            return None
        count, total, squares = self.sums
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0)


@contextmanager
def tapped(
    model: nn.Module, modules: Sequence[nn.Module | None], average: Callable[[list[Tensor]], None]
) -> Iterator[list[ChannelTap]]:
    """A scope in which every pass of a model adds to a tap on the output of each module.

    Channels are the second dimension, and the last of linear maps, embeddings and layer norms of torch. The mask that
    the model is called with holds for outputs that have its shape beside the channels.

    Args:
        model: That will be run.
        modules: Inside it; a tap on None stays empty.
        average: Averages over devices, in place, when the scope is left.

    Example:
        >>> model = nn.Sequential(nn.Flatten())
        >>> with tapped(model, [model[0]], lambda _: None) as (tap,):
        ...     _ = model(torch.tensor([[1.0], [3.0]]))
        >>> [value.item() for value in tap.mean_and_var()]
        [2.0, 1.0]
    """
    taps, masks = [ChannelTap() for _ in modules], list[Tensor | None]([None])

    def called(_: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        masks[0] = named.get("mask")

    def hook(tap: ChannelTap) -> Callable[..., None]:
        def ran(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() >= 2:
                x = output.movedim(-1, 1) if isinstance(module, CHANNELS_LAST) else output
                mask = masks[0] if masks[0] is not None and masks[0].shape == x.shape[:1] + x.shape[2:] else None
                tap.add(x, mask)

        return ran

    handles = [model.register_forward_pre_hook(called, with_kwargs=True)]
    handles += [
        module.register_forward_hook(hook(tap)) for module, tap in zip(modules, taps, strict=True) if module is not None
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
    average([tap.sums for tap in taps if tap.sums is not None])
