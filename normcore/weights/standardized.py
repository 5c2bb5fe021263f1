"""Weight standardization (Qiao et al. 2019, arXiv:1903.10520)."""

from __future__ import annotations

from torch import Tensor, nn

from normcore.weights.weight import Reparametrization, check_fan_in, inputs_of, reparametrize

EPS = {"qiao": 1e-5, "timm": 1e-6}
"""What keeps a constant weight from dividing by zero, by convention."""


class WeightStandardization(Reparametrization):
    """Each output unit's weights by their own mean and standard deviation; nothing is learned besides.

        qiao: w = (v - mean(v)) / (std(v) + 1e-5)           std unbiased, divided by n - 1
        timm: w = (v - mean(v)) / sqrt(var(v) + 1e-6)       var biased, divided by n

    with n = in / groups x pixels of the kernel, the weights of a unit. The two differ by sqrt((n-1)/n), 0.7 % at n = 72
    and 6 % at the n = 9 of a depthwise 3x3 convolution. The function is what instance norm is to maps: it does not see
    scale and shift of v, so grad_v is orthogonal to v and sums to zero, and v grows as it is trained. w has unit
    variance, not unit norm: it multiplies the scale of its input by some sqrt(n), so a norm is to follow; `scaled` is
    made for nets without.

    Args:
        convention: qiao, as its authors' code; or timm, as that library's `StdConv2d`.

    Example:
        >>> import torch
        >>> w = WeightStandardization("timm")(torch.randn(4, 8, 3, 3))
        >>> bool(w.mean((1, 2, 3)).abs().max() < 1e-5), bool((w.var((1, 2, 3), correction=0) - 1).abs().max() < 1e-3)
        (True, True)
    """

    def __init__(self, convention: str = "qiao") -> None:
        super().__init__()
        self.convention = convention

    def reparametrize(self, weight: Tensor) -> Tensor:
        """The standardized weight, `(out, in, *)`.

        Raises:
            Refusal: A unit has a single weight: the unbiased standard deviation would be NaN, the weight zero.
        """
        check_fan_in(weight, "weight standardization")
        dims, eps = inputs_of(weight), EPS[self.convention]
        centred = weight - weight.mean(dims, keepdim=True)
        if self.convention == "qiao":
            return centred / (weight.std(dims, correction=1, keepdim=True) + eps)
        return centred * (weight.var(dims, correction=0, keepdim=True) + eps).rsqrt()

    def extra_repr(self) -> str:
        """The convention."""
        return f"convention={self.convention}"


def apply(model: nn.Module, *, convention: str = "qiao") -> None:
    """Standardize the weights of every map of a model but its classifier.

    Raises:
        Refusal: A map has a single weight in an output unit.
    """
    reparametrize(model, lambda _: WeightStandardization(convention))
