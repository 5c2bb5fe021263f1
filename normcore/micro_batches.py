"""A batch computed in parts: the same loss and gradients in the memory of one part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normcore.data.batch import Batch


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts of the same size, in the order of its samples.

    Example:
        >>> [part.labels.tolist() for part in micro_batches(Batch(torch.zeros(4, 1), torch.arange(4)), 2)]
        [[0, 1], [2, 3]]
    """
    masks = [None] * count if batch.mask is None else batch.mask.chunk(count)
    parts = zip(batch.inputs.chunk(count), batch.labels.chunk(count), masks, strict=True)
    return [Batch(inputs, labels, mask) for inputs, labels, mask in parts]


def loss_with_gradients(
    parts: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], scale: Tensor | None = None
) -> Tensor:
    """The sum of several losses, each with a graph of its own that is gone when the next is computed.

    The gradients are computed along, and added up; a backward pass through the sum only hands them out. So the memory
    is that of one part, and there are no second derivatives. Without grad mode only the losses are computed.

    Args:
        parts: Each computes a scalar.
        parameters: Whose gradients there shall be.
        scale: What a part's loss is multiplied by for its backward pass, and its gradients divided by.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> loss = loss_with_gradients([lambda: w.square(), lambda: 2 * w], [w])
        >>> loss.backward()
        >>> loss.item(), w.grad.item()
        (15.0, 8.0)
    """
    if not torch.is_grad_enabled():
        return torch.stack([part() for part in parts]).sum()
    losses: list[Tensor] = []
    sums: list[Tensor | None] = [None] * len(parameters)
    for part in parts:
        loss = part()
        losses.append(loss.detach())
        found = torch.autograd.grad(loss if scale is None else loss * scale, parameters, allow_unused=True)
        for index, gradient in enumerate(found):
            total = sums[index]
            sums[index] = gradient if total is None or gradient is None else total.add_(gradient)
    present = [total for total in sums if total is not None]
    if scale is not None and present:
        torch._foreach_mul_(present, scale.reciprocal())
    value: Tensor = _Computed.apply(torch.stack(losses).sum(), sums, *parameters)  # type: ignore[no-untyped-call]
    return value


class _Computed(torch.autograd.Function):
    """A value whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else outer * gradient for gradient in ctx.gradients)
