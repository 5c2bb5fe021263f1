"""Layer norm over channels (Ba, Kiros & Hinton 2016, arXiv:1607.06450), as transformers and ConvNeXt use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, along_channels, over_batch, parts
from normcore.norms.masked import check_mask, zero_where_masked
from normcore.norms.norm import Norm, at_least_float32, check_channels, scale_and_shift
from normcore.refusal import Refusal


class LayerNormChannels(Norm):
    """Each pixel, or token, of each sample by its mean and variance over the channels.

        y = gamma (x - mean) / sqrt(var + eps) + beta

    var is biased; gamma and beta are per channel, and all that is learned. The same in training and evaluation,
    whatever the batch and the other pixels. It is `torch.nn.LayerNorm(C)` with the channels moved last, and timm's
    `LayerNorm2d`. It is not group norm with one group: that one, `normcore.norms.layer`, takes one mean and variance
    over channels and pixels. Without pixels, on `(N, C)`, both are the same. For channels of mean zero it is
    `normcore.norms.rms`.

    Costs what `torch.nn.LayerNorm` does where the channels of a pixel lie next to each other in memory; elsewhere it
    works in the order of the memory and copies nothing.

    With a mask padding comes out as zero; what a token becomes depends on no other.

    Args:
        num_features: C, the channels.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Example:
        >>> y = LayerNormChannels(4)(torch.randn(3, 4, 8, 8))
        >>> bool(y.mean(1).abs().max() < 1e-5)
        True
    """

    claims = Claims(statistics="sample", per_pixel=True, shift_invariant="sample")

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-6,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized input, `(N, C, *)`; with a mask, `(N, *)` and True where a token is real, zero elsewhere.

        Raises:
            Refusal: There is a single channel, whose values would become zero whatever they are; C is not
                `num_features`; or the mask is not a mask of the input.
        """
        check_channels(x, self.num_features)
        if self.num_features == 1:
            raise Refusal(
                "one-value-layer",
                "layer norm over channels needs more than one channel, got 1; "
                "take more channels, or layer or instance norm, which look at several pixels",
            )
        if mask is None:
            return _normalize(x, self.weight, self.bias, self.eps)
        check_mask(x, mask)
        y = _normalize(zero_where_masked(x, mask), self.weight, self.bias, self.eps)
        return zero_where_masked(y, mask)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


def _normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    last = x.movedim(1, -1)
    if not last.is_contiguous():
        maps = x if x.dim() > 2 else x.unsqueeze(2)
        return _OverChannels.of(maps, weight, bias, eps).view_as(x)
    if x.is_cpu and weight is not None:
        # This kernel takes half inputs with float32 parameters, and then keeps float32 statistics.
        y = torch.layer_norm(last, last.shape[-1:], weight, bias, eps)
    else:
        y = torch.layer_norm(last.to(at_least_float32(x.dtype)), last.shape[-1:], weight, bias, eps).to(x.dtype)
    return y.movedim(-1, 1)


class _OverChannels(ClosedForm):
    """Of x `(N, C, pixels...)` with at least one pixel dimension, gamma and beta `(C,)` or none, and eps.

    The order of x in memory is kept, whatever it is.
    """

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, weight, bias, eps = inputs
        centred, rstd = _centre(x.to(at_least_float32(x.dtype)), eps)
        y = centred * rstd
        if weight is not None:
            weight, bias = along_channels(x, weight, bias)
            y = y * weight + bias
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, weight, bias, eps = inputs
        weight, bias = along_channels(x, weight, bias)
        y = torch.empty_like(x)
        for part, out in parts(x, y):
            z, rstd = _centre(part.to(at_least_float32(x.dtype)), eps)
            z.mul_(rstd)
            out.copy_(z if weight is None else z.mul_(weight).add_(bias))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dx = rstd (u - mean(u) - xhat mean(u xhat))`, where u = gamma g and the means are over channels."""
        x, weight, _, eps = inputs
        (gamma,) = along_channels(x, weight)
        dx = torch.empty_like(x)
        one_pixel = (..., *[slice(1)] * (x.dim() - 2))
        d_weight, d_bias = (torch.empty_like(x[one_pixel], dtype=at_least_float32(x.dtype)) for _ in range(2))
        pixels = tuple(range(2, x.dim()))
        for part, g, out, of_weight, of_bias in parts(x, grad, dx, d_weight, d_bias):
            z, rstd = _centre(part.to(d_weight.dtype), eps)
            z.mul_(rstd)
            u = g.to(z.dtype)
            uz = u * z
            if weight is not None:
                torch.sum(uz, pixels, keepdim=True, out=of_weight)
                torch.sum(u, pixels, keepdim=True, out=of_bias)
                u, uz = u * gamma, uz.mul_(gamma)
            z.mul_(uz.mean(1, keepdim=True))
            torch.sub(u, z, out=z).sub_(u.mean(1, keepdim=True))
            out.copy_(z.mul_(rstd))
        if weight is None:
            return dx, None, None, None
        return dx, over_batch(d_weight), over_batch(d_bias), None


def _centre(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(1, keepdim=True)
    return centred, torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
