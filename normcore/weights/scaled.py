"""Scaled weight standardization (Brock et al. 2021, arXiv:2101.08692), the weights of nets without norms."""

from __future__ import annotations

import math
from itertools import chain, repeat

import torch
from torch import Tensor, nn

from normcore.norms.norm import at_least_float32
from normcore.weights.weight import Reparametrization, check_fan_in, inputs_of, per_unit, reparametrize

GAINS: dict[type[nn.Module], float] = {
    nn.ReLU: math.sqrt(2 * math.pi / (math.pi - 1)),
    nn.Sigmoid: 4.801313372039964,
    nn.Tanh: 1.5925374197228321,
}
"""1 / std(f(z)) for z from N(0, 1), by activation f.

That of relu is the paper's closed form, 1.71286; the 1.71396 of its published code is an estimate from samples. The
other two are integrals, worked out with 200 nodes of Gauss and Hermite.
"""


class ScaledStandardization(Reparametrization):
    """Each output unit's weights centred, and scaled so that the map keeps the variance of what an activation gives it.

        w = gamma g (v - mean(v)) / sqrt(max(n var(v), eps))

    var is biased, n the weights of a unit. g is learned, one per unit, and starts at one; gamma is the gain of the
    activation before the map, which is to undo what that does to a standard normal's variance, and one without. At the
    start each unit of w has mean zero and the norm gamma, whatever v: `standardized` divided by sqrt(n) and multiplied
    by gamma. As there, grad_v is orthogonal to v and sums to zero. What residual blocks add up still grows from block
    to block: nets made for these weights (NF-ResNets) scale their branches besides.

    Args:
        weight: That it will stand on.
        gamma: The activation's gain.
        eps: Floor of n var(v).

    Example:
        >>> weight = torch.randn(4, 8, 3, 3)
        >>> w = ScaledStandardization(weight, gamma=2.0)(weight)
        >>> w.detach().square().sum((1, 2, 3)).sqrt().round(decimals=4)
        tensor([2., 2., 2., 2.])
    """

    def __init__(self, weight: Tensor, *, gamma: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        self.gamma, self.eps = gamma, eps
        kept = at_least_float32(weight.dtype)
        self.gain = nn.Parameter(torch.ones(weight.shape[0], device=weight.device, dtype=kept))

    def reparametrize(self, weight: Tensor) -> Tensor:
        """The scaled weight, `(out, in, *)`.

        Raises:
            Refusal: A unit has a single weight, which would be zero whatever it is.
        """
        check_fan_in(weight, "scaled weight standardization")
        dims = inputs_of(weight)
        variance = weight.var(dims, correction=0, keepdim=True)
        scale = (variance * weight[0].numel()).clamp(min=self.eps).rsqrt()
        return (weight - weight.mean(dims, keepdim=True)) * (scale * per_unit(self.gain * self.gamma, weight))

    def extra_repr(self) -> str:
        """The activation's gain and the floor."""
        return f"gamma={self.gamma:.6g}, eps={self.eps}"


def apply(model: nn.Module, *, eps: float = 1e-4) -> None:
    """Scale the weights of every map of a model but its classifier.

    The first map is given images and has the gain one; the others have that of the activations the model holds, which
    is one where it holds none.

    Raises:
        Refusal: A map has a single weight in an output unit.
    """
    gammas = chain([1.0], repeat(max(GAINS.get(type(module), 1.0) for module in model.modules())))
    reparametrize(model, lambda weight: ScaledStandardization(weight, gamma=next(gammas), eps=eps))
