"""Filter response norm (Singh & Krishnan 2020, arXiv:1911.09737)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, along_channels, over_batch, parts, workspace
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal

EPS_ON_ONE_PIXEL = 1e-4
"""Where the learned addition to eps starts (section 3.2 of the paper)."""


class FilterResponseNorm(Norm):
    """Each channel of each sample by the root of its mean square over the pixels, then a learned threshold.

        y = max(gamma x / sqrt(mean(x^2) + eps + |eps_l|) + beta, tau)

    No mean is subtracted and no other sample is looked at: the same in training and evaluation, whatever the batch.
    gamma, beta, tau (0 at first: a relu) and with `learned_eps` eps_l (1e-4 at first) are learned per channel. With
    `tlu` the layer is its own non-linearity; without it there is no maximum. For channels of mean zero, and
    without `tlu` and `learned_eps`, it is instance norm.

    On maps of one pixel x / sqrt(x^2 + eps) is close to the sign of x, and no gradient comes through; the paper learns
    eps there, and so does `learned_eps`. The statistics are in float32 or better: in float16 the square of 300 is
    infinite, and that of 1e-4 zero.

    Costs one reduction and one product over the map; on a CPU the passes are written by hand.

    Args:
        num_features: C, the channels.
        eps: Added to the mean square, inside the root.
        learned_eps: Learn an addition to eps per channel.
        tlu: End in the maximum with tau, the thresholded linear unit.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Example:
        >>> y = FilterResponseNorm(4, tlu=False)(5 + torch.randn(3, 4, 8, 8))
        >>> bool((y.square().mean((2, 3)) - 1).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-6,
        learned_eps: bool = False,
        tlu: bool = True,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.learned_eps, self.tlu, self.affine = (
            num_features,
            eps,
            learned_eps,
            tlu,
            affine,
        )
        self.activates = tlu
        self.claims = Claims(statistics="sample", odd=not tlu, variance="none")
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.tau = nn.Parameter(torch.zeros(num_features, device=device, dtype=kept)) if tlu else None
        self.eps_l = (
            nn.Parameter(torch.full((num_features,), EPS_ON_ONE_PIXEL, device=device, dtype=kept))
            if learned_eps
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: A map is a single pixel and eps is fixed; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if pixels_of(x) == 1 and not self.learned_eps:
            raise Refusal(
                "one-pixel-map",
                "filter response norm with a fixed eps needs more than one pixel in a map, got 1, of which it leaves "
                "the sign and no gradient; set learned_eps to true, or take layer norm",
            )
        maps = x if x.dim() > 2 else x.unsqueeze(2)
        return _FilterResponse.of(maps, self.weight, self.bias, self.tau, self.eps_l, self.eps).view_as(x)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, eps={self.eps}, learned_eps={self.learned_eps}, tlu={self.tlu}, affine={self.affine}"
        )


class _FilterResponse(ClosedForm):
    """Of x `(N, C, pixels...)` with at least one pixel dimension, of tensors per channel or none, and of eps."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, weight, bias, tau, eps_l, eps = inputs
        wide: Tensor = x.to(at_least_float32(x.dtype))
        weight, bias, tau, eps_l = along_channels(x, weight, bias, tau, eps_l)
        y = wide * _inverse_root(wide, eps_l, eps)
        if weight is not None:
            y = y * weight + bias
        if tau is not None:
            # Not maximum, which halves the gradient where both are equal; and this way around NaN stays NaN.
            y = torch.where(y <= tau, tau, y)
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, weight, bias, tau, eps_l, eps = inputs
        weight, bias, tau, eps_l = along_channels(x, weight, bias, tau, eps_l)
        y = torch.empty_like(x)
        for part, out in parts(x, y):
            wide = part.to(at_least_float32(x.dtype))
            scale = _inverse_root(wide, eps_l, eps)
            z = torch.mul(wide, scale if weight is None else scale * weight, out=workspace(out, scale.dtype))
            if bias is not None:
                z.add_(bias)
            out.copy_(z if tau is None else torch.maximum(z, tau, out=z))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dx = gamma s u - gamma s^3 mean(u x) x`: s the inverse root, u the gradient where y > tau, else 0."""
        x, weight, bias, tau, eps_l, eps = inputs
        weight, bias, tau, eps_l = along_channels(x, weight, bias, tau, eps_l)
        dx, pixels = torch.empty_like(x), tuple(range(2, x.dim()))
        one_pixel = (..., *[slice(1)] * len(pixels))
        per_map = [torch.empty_like(x[one_pixel], dtype=at_least_float32(x.dtype)) for _ in range(4)]
        for part, g, out, *maps in parts(x, grad, dx, *per_map):
            scale, sum_g, sum_u, sum_ux = maps
            wide, u = part.to(scale.dtype), g.to(scale.dtype)
            scale.copy_(_inverse_root(wide, eps_l, eps))
            full = scale if weight is None else scale * weight
            if tau is not None:
                torch.sum(u, pixels, keepdim=True, out=sum_g)
                z = wide * full if bias is None else (wide * full).add_(bias)
                # The mask in numbers: products with bool are several times slower.
                u = torch.gt(z, tau, out=z).mul_(u)
            torch.sum(u, pixels, keepdim=True, out=sum_u)
            z = torch.mul(u, wide, out=workspace(out, scale.dtype))
            torch.sum(z, pixels, keepdim=True, out=sum_ux)
            torch.mul(wide, scale.square() * sum_ux / -pixels_of(x), out=z)
            out.copy_(z.add_(u).mul_(full))
        scale, sum_g, sum_u, sum_ux = per_map
        d_weight = d_bias = d_tau = d_eps_l = None
        if weight is not None:
            d_weight, d_bias = over_batch(scale * sum_ux), over_batch(sum_u)
        if tau is not None:
            d_tau = over_batch(sum_g - sum_u)
        if eps_l is not None:
            d_eps_l = over_batch(scale**3 * sum_ux * eps_l.sign() * (-0.5 if weight is None else -weight / 2))
        return dx, d_weight, d_bias, d_tau, d_eps_l, None


def _inverse_root(x: Tensor, eps_l: Tensor | None, eps: float) -> Tensor:
    mean_square = (x * x).mean(tuple(range(2, x.dim())), keepdim=True)
    return torch.rsqrt(mean_square + (eps if eps_l is None else eps + eps_l.abs()))
