"""EvoNorm-B0 (Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, along_channels, map_moments, over_batch, parts, workspace
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.norms.running import check_batch


class EvoNormB0(Norm):
    """Norm and activation in one: x by the batch's standard deviation, or by a line in x where that is larger.

        y = gamma x / max(sqrt(var_batch + eps), v x + sqrt(var_map + eps)) + beta

    var_batch is the biased variance of a channel over batch and pixels, var_map that of one sample's map of it; no mean
    is subtracted. v (at first 1), gamma and beta are learned per channel. In evaluation var_batch is a running
    variance, which each batch of a training pass moves: `running = (1 - momentum) running + momentum new`, with the
    unbiased variance (divided by m - 1). The layer is its own non-linearity: for large x it comes close to gamma / v.
    With v at 0, of maps of one pixel and channels of mean zero, it is batch norm.

    Costs two reductions and some eight products over the map; on a CPU the passes are written by hand.

    Args:
        num_features: C, the channels.
        eps: Added to both variances, inside the roots.
        momentum: Weight of the newest batch in the running variance.
        affine: Learn gamma and beta; v is learned in any case.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> x = torch.randn(64, 4, 8, 8)
        >>> y = EvoNormB0(4)(x)
        >>> bool(y.max() < 1), bool(y.min() < -1)
        (True, True)
    """

    claims = Claims(statistics="batch", odd=False, running_variance="unbiased")
    activates = True

    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-3,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=kept))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=kept))

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, a batch of one sample; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        maps = x if x.dim() > 2 else x.unsqueeze(2)
        means, variances = map_moments(maps.detach())
        mean, var = None, self.running_var
        if self.training:
            check_batch(x, "EvoNorm-B0")
            mean, var = _batch_moments(means, variances)
            count = x.shape[0] * pixels_of(x)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        else:
            # A copy: the next batch moves the buffer, and the backward pass may come after it.
            var = self.running_var.clone()
        inputs = (maps, self.v, self.weight, self.bias, means, variances, mean, var, self.eps)
        return _EvoNormB0.of(*inputs).view_as(x)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class _EvoNormB0(ClosedForm):
    """Of x `(N, C, pixels...)`, of v, weight and bias per channel, of the moments of x's maps, of the batch's (the mean
    is none where the variance is a constant), and of eps.
    """

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, v, weight, bias, _, _, mean, var, eps = inputs
        wide: Tensor = x.to(at_least_float32(x.dtype))
        means, variances = map_moments(x)
        if mean is not None:
            var = _batch_moments(means, variances)[1]
        v, weight, bias, var = along_channels(x, v, weight, bias, var)
        of_batch, of_map = torch.sqrt(var + eps), wide * v + torch.sqrt(variances + eps)
        y = wide / torch.where(of_map > of_batch, of_map, of_batch)
        if weight is not None:
            y = y * weight + bias
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, v, weight, bias, _, variances, _, var, eps = inputs
        v, weight, bias, var = along_channels(x, v, weight, bias, var)
        y, of_batch = torch.empty_like(x), torch.sqrt(var + eps)
        for part, out, std in parts(x, y, torch.sqrt(variances + eps)):
            wide = part.to(std.dtype)
            z = torch.mul(wide, v, out=workspace(out, std.dtype)).add_(std)
            torch.div(wide, torch.maximum(z, of_batch, out=z), out=z)
            out.copy_(z if weight is None else z.mul_(weight).add_(bias))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dx / gamma = g / D - v u' - (x - mean_map) sum_map(u') / (m_map std_map) - (x - mean) sum(u'') / (m std)`.

        D is the divisor, and of u = g x / D^2 there are u' where D is the map's line, and u'' where it is the batch's.
        """
        x, v, weight, bias, means, variances, mean, var, eps = inputs
        v, weight, bias, mean, var = along_channels(x, v, weight, bias, mean, var)
        dx, pixels = torch.empty_like(x, dtype=means.dtype), tuple(range(2, x.dim()))
        of_batch, stds = torch.sqrt(var + eps), torch.sqrt(variances + eps)
        sum_g, sum_gy, sum_u, sum_ours, sum_v = (torch.empty_like(stds) for _ in range(5))
        for part, g, out, std, *sums in parts(x, grad, dx, stds, sum_g, sum_gy, sum_u, sum_ours, sum_v):
            wide, g_wide = part.to(std.dtype), g.to(std.dtype)
            of_map = (wide * v).add_(std)
            divisor = torch.maximum(of_map, of_batch)
            ours = torch.gt(of_map, of_batch, out=of_map)
            torch.div(g_wide, divisor, out=out)
            gy = out * wide
            torch.sum(g_wide, pixels, keepdim=True, out=sums[0])
            torch.sum(gy, pixels, keepdim=True, out=sums[1])
            u = gy.div_(divisor)
            torch.sum(u, pixels, keepdim=True, out=sums[2])
            ours.mul_(u)
            torch.sum(ours, pixels, keepdim=True, out=sums[3])
            torch.sum(torch.mul(ours, wide, out=u), pixels, keepdim=True, out=sums[4])
            out.sub_(ours.mul_(v))
        slope = sum_ours / stds / -pixels_of(x)
        level = slope * means
        if mean is not None:
            of_all = (sum_u - sum_ours).sum(0, keepdim=True) / of_batch / -(x.shape[0] * pixels_of(x))
            slope, level = slope + of_all, level + of_all * mean
        for part, out, of_slope, of_level in parts(x, dx, slope, level):
            out.add_(part * of_slope).sub_(of_level)
            if weight is not None:
                out.mul_(weight)
        d_v = -over_batch(sum_v if weight is None else sum_v * weight)
        d_weight, d_bias = (None, None) if weight is None else (over_batch(sum_gy), over_batch(sum_g))
        return dx.to(x.dtype), d_v, d_weight, d_bias, None, None, None, None, None


def _batch_moments(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel `(C,)` from those of its maps: the law of total variance."""
    mean = over_batch(means) / means.shape[0]
    between = (means.flatten(1) - mean).square()
    return mean, (variances.flatten(1) + between).mean(0)
