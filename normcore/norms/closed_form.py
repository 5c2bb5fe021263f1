"""A formula with passes over memory written by hand, and torch's own derivatives beyond the first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from normcore.norms.norm import at_least_float32

CACHED = 2**19
"""Values of a part on a CPU: with what is computed from it, it fits into the second-level cache of one core."""

rehearsed: ContextVar[str] = ContextVar("rehearsed", default="meta")
"""The type of the device that the meta device stands for, where it is to take memory as that one would."""


class ClosedForm(torch.autograd.Function):
    """A function of tensors that is written twice: as a formula, and as fast passes forward and backward.

    `plain` is the formula in differentiable operations. It is what a compiler, an export, `torch.func.vmap`, forward
    mode and every second derivative are given; the tests hold the fast passes to it, value and gradient. `quick` and
    `quick_backward` do the same in place and part by part, and keep nothing between them but the inputs: in eager mode
    on a CPU a norm's time is its passes over memory, and a part of the batch that stays in the cache passes for free.

    The inputs may also be numbers or none, which have no gradient.
    """

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        """The formula."""
        raise NotImplementedError

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        """The same value."""
        raise NotImplementedError

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """The gradient of every input from the gradient of the output; none for what is no tensor."""
        raise NotImplementedError

    @classmethod
    def of(cls, *inputs: Any) -> Tensor:
        """The value, differentiable in every way."""
        if torch.compiler.is_compiling() or inputs[0].numel() == 0:
            return cls.plain(*inputs)
        value: Tensor = cls.apply(*inputs)  # type: ignore[no-untyped-call]
        return value

    @classmethod
    def forward(cls, *inputs: Any) -> Tensor:
        """Torch calls it."""
        return cls.quick(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        """Torch calls it."""
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Torch calls it, in grad mode where the gradient will be differentiated in turn."""
        if not torch.is_grad_enabled() and not _is_mapped(grad):
            return cls.quick_backward(grad, *_all(ctx, ctx.saved_tensors))
        gradients = iter(cls._pull(ctx)(grad))
        return tuple(next(gradients) if other is None else None for other in ctx.others)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Tensor:
        """Torch calls it: the derivative in u of the backward pass of u, which is linear in it."""
        given = [tangent for tangent, other in zip(tangents, ctx.others, strict=True) if other is None]
        directions = tuple(
            torch.zeros_like(tensor) if tangent is None else tangent
            for tensor, tangent in zip(ctx.saved_tensors, given, strict=True)
        )
        push = torch.func.vjp(cls._pull(ctx), torch.zeros_like(ctx.saved_tensors[0]))[1]
        along: Tensor = push(directions)[0]
        return along

    @classmethod
    def _pull(cls, ctx: Any) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """From a gradient of the formula's value to those of its tensors."""
        pull: Callable[[Tensor], tuple[Tensor, ...]] = torch.func.vjp(
            lambda *tensors: cls.plain(*_all(ctx, tensors)), *ctx.saved_tensors
        )[1]
        return pull

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Torch calls it."""
        return torch.vmap(cls.plain, in_dims, randomness=info.randomness)(*inputs), 0


# Torch looks the signature up at every call, which takes longer than a small kernel.
ClosedForm.forward.__func__.__signature__ = inspect.signature(ClosedForm.forward.__func__)  # type: ignore[attr-defined]


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape `(N, ...)` in parts along N that a CPU's cache holds; elsewhere in one part."""
    if torch.compiler.is_compiling():
        # A split, even into one part, has no ONNX form where the number of samples is open.
        return iter([tensors])
    first = tensors[0]
    samples = first.shape[0]
    if device_type(first) == "cpu" and first.numel() > CACHED:
        samples = max(1, CACHED * first.shape[0] // first.numel())
    return zip(*(torch.split(tensor, samples) for tensor in tensors), strict=True)


def device_type(x: Tensor) -> str:
    """The type of the device whose kernels x is for: where it lives, or what its meta device stands for."""
    return rehearsed.get() if x.is_meta else x.device.type


def workspace(out: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a part's output is computed: where it will stand if that is precise enough, or beside it."""
    return out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)


def along_channels(x: Tensor, *per_channel: Tensor | None) -> tuple[Any, ...]:
    """Tensors `(C,)` in the dtype of x's statistics and with x's dimensions, `(1, C, 1, ...)`; none stays none."""
    dtype, shape = at_least_float32(x.dtype), (1, -1, *[1] * (x.dim() - 2))
    return tuple(None if values is None else values.to(dtype).view(shape) for values in per_channel)


def over_batch(per_map: Tensor) -> Tensor:
    """The sum over samples `(C,)` of what there is one of per channel of a sample, `(N, C, 1, ...)`."""
    return per_map.flatten(1).sum(0)


def map_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of each sample, `(N, C, 1, ...)`, by two passes in float32 or better."""
    pixels = tuple(range(2, x.dim()))
    means, variances = [], []
    for (part,) in parts(x):
        wide = part.to(at_least_float32(x.dtype))
        means.append(wide.mean(pixels, keepdim=True))
        deviations = wide - means[-1]
        variances.append((deviations * deviations).mean(pixels, keepdim=True))
    return torch.cat(means), torch.cat(variances)


def window_sum(x: Tensor, count: int, dim: int) -> Tensor:
    """The sums of `count` neighbours along a dimension, `count - 1` fewer than there are values.

    By doubling: at most 2 log2(count) additions, and, unlike differences of cumulative sums, none that cancel.
    """
    if count == 1:
        return x
    half = count // 2
    sums = window_sum(x, half, dim)
    length = sums.shape[dim] - half
    sums = sums.narrow(dim, 0, length) + sums.narrow(dim, half, length)
    return sums if count % 2 == 0 else sums.narrow(dim, 0, length - 1) + x.narrow(dim, count - 1, length - 1)


def _is_mapped(grad: Tensor) -> bool:
    """Whether a backward pass runs under vmap, which cannot write into plain tensors; torch has no public question."""
    mapped: bool = torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(grad)  # noqa: SLF001
    return mapped


def _all(ctx: Any, tensors: tuple[Tensor, ...]) -> list[Any]:
    """The inputs in their order: these tensors, and what is none."""
    rest = iter(tensors)
    return [next(rest) if other is None else other[0] for other in ctx.others]
