"""Weight norm (Salimans & Kingma 2016, arXiv:1602.07868)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normcore.norms.norm import at_least_float32
from normcore.weights.weight import Reparametrization, inputs_of, maps, per_unit, reparametrize


class WeightNorm(Reparametrization):
    """Length and direction of each output unit's weights, learned apart.

        w = g v / ||v||

    g, one per unit, starts at ||v||, so that the layer starts as it was. w does not see the scale of v, so grad_v is
    orthogonal to v, and v grows as it is trained. Spectral norm divides by the largest singular value of all units'
    weights together, and learns no length.

    Args:
        weight: That it will stand on.
        data_dependent_init: Whether `initialize_from_data` is to choose g and the layer's bias.

    Example:
        >>> weight = torch.randn(4, 8)
        >>> bool(torch.allclose(WeightNorm(weight)(weight), weight))
        True
    """

    def __init__(self, weight: Tensor, *, data_dependent_init: bool = False) -> None:
        super().__init__()
        self.data_dependent_init = data_dependent_init
        values = weight.detach().to(at_least_float32(weight.dtype))
        self.gain = nn.Parameter(torch.linalg.vector_norm(values, dim=inputs_of(weight)))

    def reparametrize(self, weight: Tensor) -> Tensor:
        """The weight with its unit's length g, `(out, in, *)`."""
        lengths: Tensor = torch.linalg.vector_norm(weight, dim=inputs_of(weight), keepdim=True)
        return weight * (per_unit(self.gain, weight) / lengths)

    def extra_repr(self) -> str:
        """The knob."""
        return f"data_dependent_init={self.data_dependent_init}"


def apply(model: nn.Module, *, data_dependent_init: bool = False) -> None:
    """Give the weights of every map of a model but its classifier length and direction."""
    reparametrize(model, lambda weight: WeightNorm(weight, data_dependent_init=data_dependent_init))


def wants_data(model: nn.Module) -> bool:
    """Whether there are layers that `initialize_from_data` is to start."""
    return any(isinstance(module, WeightNorm) and module.data_dependent_init for module in model.modules())


def initialize_from_data(model: nn.Module, run: Callable[[], object]) -> None:
    """Choose lengths and biases so that each unit's output has mean zero and variance one on a batch (section 3).

    With t = v x / ||v|| on the inputs x that a layer is given once the layers before it have been chosen, mu and sigma
    its mean and (biased) standard deviation over batch and pixels, g = 1 / sigma and b = -mu / sigma. A unit whose t is
    constant keeps what it had. Buffers, such as running statistics, are left as they were.

    Args:
        model: Changed in place.
        run: Runs the model's forward pass on the batch.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad(), _starting(model):
        run()
        for buffer, value in buffers:
            buffer.copy_(value)


@contextmanager
def _starting(model: nn.Module) -> Iterator[None]:
    """A scope in which a forward pass sets g and b of each layer just before the layer is used."""
    layers = [layer for layer in maps(model).values() if parametrize.is_parametrized(layer, "weight")]
    handles = [layer.register_forward_pre_hook(_start) for layer in layers if wants_data(layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _start(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    (method,) = (module for module in layer.modules() if isinstance(module, WeightNorm))
    before, bias = method.gain.clone(), layer.bias
    method.gain.fill_(1.0)
    t: Tensor = layer.forward(*inputs)
    # A linear map gives its units last, whatever lies between; a convolution gives them before the pixels.
    t = t.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    if isinstance(bias, Tensor):
        t = t - bias.unsqueeze(1)
    t = t.to(at_least_float32(t.dtype))
    mean, std = t.mean(1), t.std(1, correction=0)
    varies = std > torch.finfo(t.dtype).eps * mean.abs()
    method.gain.copy_(torch.where(varies, 1 / std, before))
    if isinstance(bias, Tensor):
        bias.copy_(torch.where(varies, -mean / std, bias))
