"""A layer on trial: copies of it, inputs for it, and how far one output looks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normcore.norms.claims import Claims

Parameters = dict[str, Tensor]
Function = Callable[[Tensor, Parameters], Tensor]

LARGE, VAST = 1e3, 1e8
"""Scales of inputs at which eps hardly counts, and not at all."""


@dataclass
class Trial:
    """What the checks share. They see copies only: the layer itself is never called, moved or changed."""

    layer: nn.Module
    """The layer that is tried."""
    claims: Claims | None
    """What it claims, if anything."""
    shape: tuple[int, ...]
    """Of its inputs, `(N, C, *)`."""
    device: torch.device
    """Where it lives."""
    backend: str
    """What compiles it."""

    def copy(self, dtype: torch.dtype = torch.float64, *, training: bool = True) -> nn.Module:
        """A copy of its own in that dtype, its `weight` at one and its `bias` at zero where it has parameters so named.

        Outside training it is a layer that has seen three batches, so that running statistics are not those of birth.
        """
        layer = copy.deepcopy(self.layer).to(dtype).train()
        with torch.no_grad():
            for name, value in (("weight", 1.0), ("bias", 0.0)):
                parameter = getattr(layer, name, None)
                if isinstance(parameter, nn.Parameter):
                    parameter.fill_(value)
            if not training:
                for seed in range(101, 104):
                    layer(self.draw(seed, dtype=dtype) + 1)
                layer.eval()
        return layer

    def draw(self, seed: int = 0, *, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
        """Normal numbers of the layer's shape, the same for a seed on every device."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return (scale * drawn).to(self.device, dtype)

    @property
    def per_channel(self) -> tuple[int, ...]:
        """A shape that a value per channel broadcasts from."""
        return (1, self.shape[1], *(1 for _ in self.shape[2:]))

    @cached_property
    def reach(self) -> Reach:
        """What moves a value of the output in training."""
        return reach(self.copy(), self.draw())

    @cached_property
    def remembers(self) -> bool:
        """Whether what it has seen in training moves an output, of training or of evaluation."""
        young, x = self.copy(), self.draw()
        old = copy.deepcopy(young)
        with torch.no_grad():
            for seed in range(101, 104):
                old(self.draw(seed, scale=3.0) + 1)
            return any(
                largest(output_of(young.train(training), x) - output_of(old.train(training), x)) > 0
                for training in (True, False)
            )

    @cached_property
    def reach_in_evaluation(self) -> Reach:
        """The same in evaluation."""
        return reach(self.copy(training=False), self.draw())


@dataclass(frozen=True, slots=True)
class Reach:
    """Which other values of the input move a value of the output."""

    samples: bool
    """Any of another sample."""
    channels: bool
    """Any of another channel of the sample."""
    pixels: bool
    """Any of another pixel of the sample."""

    @property
    def statistics(self) -> str:
        """In the words of the claims."""
        return "batch" if self.samples else "sample" if self.channels or self.pixels else "none"


def reach(layer: nn.Module, x: Tensor) -> Reach:
    """Find it by moving everything else of one kind and looking at a single output.

    With both signs: a threshold after the norm lets one of them through.
    """

    def moves(others: Tensor) -> bool:
        with torch.no_grad():
            moved = torch.where(others, x.square() + x + 1, x)
            pairs = [(output_of(layer, sign * x), output_of(layer, sign * moved)) for sign in (1, -1)]
        return any(not torch.allclose(here[first], there[first], rtol=1e-9, atol=1e-12) for here, there in pairs)

    first = (0,) * x.dim()
    sample, channel, pixel = (torch.zeros_like(x, dtype=torch.bool) for _ in range(3))
    sample[0], channel[:, 0], pixel.view(*x.shape[:2], -1)[:, :, 0] = True, True, True
    return Reach(samples=moves(~sample), channels=moves(sample & ~channel), pixels=moves(sample & ~pixel))


def output_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer gives, without its state moving: a copy is asked."""
    output: Tensor = copy.deepcopy(layer)(x)
    return output


def odd_part(layer: nn.Module, x: Tensor) -> Tensor:
    """(f(x) - f(-x)) / 2: what is left of a norm when a gate or a threshold that follows it is taken out."""
    with torch.no_grad():
        return (output_of(layer, x) - output_of(layer, -x)) / 2


def pure(layer: nn.Module) -> Function:
    """The layer as a function of its input and its parameters; buffers move in copies that are thrown away."""
    buffers = dict(layer.named_buffers())

    def function(x: Tensor, parameters: Parameters) -> Tensor:
        kept = {name: buffer.clone() for name, buffer in buffers.items()}
        output: Tensor = functional_call(layer, (parameters, kept), (x,))
        return output

    return function


def learned(layer: nn.Module) -> Parameters:
    """Its parameters, cut off from it, that ask for gradients."""
    return {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters() if p.requires_grad}


def largest(difference: Tensor) -> float:
    """The largest absolute value; infinity where one is not a number."""
    return float(difference.detach().double().abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max())
