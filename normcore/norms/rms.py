"""Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, along_channels, over_batch, parts
from normcore.norms.norm import Norm, at_least_float32, check_channels
from normcore.refusal import Refusal


class RmsNorm(Norm):
    """Each pixel, or token, of each sample by the root of its mean square over the channels.

        y = gamma x / sqrt(mean(x^2) + eps)

    gamma is per channel, and all that is learned: no mean is subtracted and no shift added. The same in training and
    evaluation, whatever the batch and the other pixels. Where the mean over channels is zero it is
    `normcore.norms.layer_channels` without beta. It is `torch.nn.RMSNorm(C, eps=eps)` with the channels moved last; but
    torch's own default for eps is a machine epsilon, 1.2e-7 in float32 and 2.2e-16 in float64, and here eps is the same
    number for every dtype.

    Costs two reductions' reading and a product; on a CPU the passes are written by hand.

    Args:
        num_features: C, the channels.
        eps: Added to the mean square, inside the root.
        affine: Learn gamma.
        device: Where gamma lives.
        dtype: Of gamma, float32 or better.

    Example:
        >>> y = RmsNorm(4)(5 + torch.randn(3, 4, 8, 8))
        >>> bool((y.square().mean(1) - 1).abs().max() < 1e-5)
        True
    """

    claims = Claims(statistics="sample", per_pixel=True, variance="none")

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
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=kept)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: There is a single channel, of whose values only the sign would be left; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if self.num_features == 1:
            raise Refusal(
                "one-value-layer",
                "rms norm needs more than one channel, got 1, of whose values it leaves the sign; take more channels",
            )
        maps = x if x.dim() > 2 else x.unsqueeze(2)
        return _RmsNorm.of(maps, self.weight, self.eps).view_as(x)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class _RmsNorm(ClosedForm):
    """Of x `(N, C, pixels...)` with at least one pixel dimension, gamma `(C,)` or none, and eps; in the order of x."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, weight, eps = inputs
        wide: Tensor = x.to(at_least_float32(x.dtype))
        y = wide * _inverse_root(wide * wide, eps)
        if weight is not None:
            y = y * along_channels(x, weight)[0]
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, weight, eps = inputs
        (gamma,) = along_channels(x, weight)
        y = torch.empty_like(x)
        for part, out in parts(x, y):
            wide = part.to(at_least_float32(x.dtype))
            z = torch.mul(wide, wide, out=out if out.dtype == wide.dtype else None)
            torch.mul(wide, _inverse_root(z, eps), out=z)
            if gamma is not None:
                z.mul_(gamma)
            if z is not out:
                out.copy_(z)
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dx = rstd (u - xhat mean(u xhat))`, where u = gamma g and the mean is over channels."""
        x, weight, eps = inputs
        (gamma,) = along_channels(x, weight)
        dx = torch.empty_like(x)
        one_pixel = (..., *[slice(1)] * (x.dim() - 2))
        d_weight = torch.empty_like(x[one_pixel], dtype=at_least_float32(x.dtype))
        pixels = tuple(range(2, x.dim()))
        for part, g, out, of_weight in parts(x, grad, dx, d_weight):
            wide, u = part.to(d_weight.dtype), g.to(d_weight.dtype)
            z = wide * wide
            rstd = _inverse_root(z, eps)
            torch.mul(wide, rstd, out=z)
            uz = u * z
            if gamma is not None:
                torch.sum(uz, pixels, keepdim=True, out=of_weight)
                u, uz = u * gamma, uz.mul_(gamma)
            z.mul_(uz.mean(1, keepdim=True))
            out.copy_(torch.sub(u, z, out=z).mul_(rstd))
        return dx, None if weight is None else over_batch(d_weight), None


def _inverse_root(squares: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(squares.mean(1, keepdim=True) + eps)
