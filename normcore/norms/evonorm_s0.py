"""EvoNorm-S0 (Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, along_channels, map_moments, over_batch, parts, workspace
from normcore.norms.group import divide_groups
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class EvoNormS0(Norm):
    """Norm and activation in one: a swish with a learned slope, by the standard deviation of a group of channels.

        y = gamma x sigmoid(v x) / sqrt(var + eps) + beta

    var is the biased variance of the channels and pixels of a group, as in group norm, but no mean is subtracted. v (at
    first 1), gamma and beta are learned per channel. The same in training and evaluation, whatever the batch. The layer
    is its own non-linearity: with v far above one it is the relu of x divided by group norm's divisor, with v at zero
    half of that quotient.

    Costs two reductions, a sigmoid and three products over the map; on a CPU the passes are written by hand.

    Args:
        num_features: C, the channels.
        num_groups: Groups of channels; must divide C.
        divisibility: Where num_groups does not divide C: `error`, or `nearest` for the largest number of groups not
            above `num_groups` that does.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta; v is learned in any case.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Raises:
        Refusal: `num_groups` does not divide `num_features`, and divisibility is error.

    Example:
        >>> x = torch.randn(3, 4, 8, 8)
        >>> y = EvoNormS0(4, num_groups=1)(x)
        >>> expected = torch.nn.functional.silu(x) / x.std((1, 2, 3), correction=0, keepdim=True)
        >>> bool((y - expected).abs().max() < 1e-4)
        True
    """

    claims = Claims(statistics="sample", scale_invariant=False, odd=False)
    activates = True

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 32,
        divisibility: str = "error",
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.num_groups, self.divisibility = divide_groups(num_features, num_groups, divisibility), divisibility
        self.wished = "" if self.num_groups == num_groups else f" (nearest to {num_groups})"
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=kept))

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: A group holds a single value, which has no variance; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if self.num_groups == self.num_features and pixels_of(x) == 1:
            raise Refusal(
                "one-value-group",
                f"EvoNorm-S0 needs more than one value in a group, got {self.num_features} channels of one pixel in "
                f"num_groups {self.num_groups}; take fewer groups",
            )
        maps = x if x.dim() > 2 else x.unsqueeze(2)
        return _EvoNormS0.of(maps, self.v, self.weight, self.bias, self.num_groups, self.eps).view_as(x)

    def extra_repr(self) -> str:
        """The channels and the knobs; and the groups that were wished for, where they do not divide."""
        return (
            f"{self.num_features}, num_groups={self.num_groups}{self.wished}, divisibility={self.divisibility}, "
            f"eps={self.eps}, affine={self.affine}"
        )


class _EvoNormS0(ClosedForm):
    """Of x `(N, C, pixels...)`, of v, weight and bias per channel, of the number of groups and of eps."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, v, weight, bias, num_groups, eps = inputs
        wide: Tensor = x.to(at_least_float32(x.dtype))
        v, weight, bias = along_channels(x, v, weight, bias)
        y = wide * torch.sigmoid(wide * v) * torch.rsqrt(_group_moments(x, num_groups)[1] + eps)
        if weight is not None:
            y = y * weight + bias
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, v, weight, bias, num_groups, eps = inputs
        v, weight, bias = along_channels(x, v, weight, bias)
        scale = torch.rsqrt(_group_moments(x, num_groups)[1] + eps)
        scale = scale if weight is None else scale * weight
        y = torch.empty_like(x)
        for part, out, factor in parts(x, y, scale):
            wide = part.to(factor.dtype)
            z = torch.mul(wide, v, out=workspace(out, factor.dtype)).sigmoid_().mul_(wide).mul_(factor)
            out.copy_(z if bias is None else z.add_(bias))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dx = gamma r g s (1 + v x (1 - s)) - r^3 (x - mean) sum(gamma g x s) / m`, s the sigmoid, r the root."""
        x, v, weight, bias, num_groups, eps = inputs
        v, weight, bias = along_channels(x, v, weight, bias)
        mean, var = _group_moments(x, num_groups)
        dx, pixels, root = torch.empty_like(x), tuple(range(2, x.dim())), torch.rsqrt(var + eps)
        sum_g, sum_gh, sum_v = (torch.empty_like(root) for _ in range(3))
        for part, g, out, *maps in parts(x, grad, dx, mean, root, sum_g, sum_gh, sum_v):
            m, r, of_g, of_gh, of_v = maps
            wide, g_wide = part.to(r.dtype), g.to(r.dtype)
            scale = r if weight is None else r * weight
            s = (wide * v).sigmoid_()
            h = wide * s
            gh = g_wide * h
            torch.sum(g_wide, pixels, keepdim=True, out=of_g)
            torch.sum(gh, pixels, keepdim=True, out=of_gh)
            # s (1 + v x (1 - s)) g = s g + v (1 - s) h g, and the derivative in v is (1 - s) h g x.
            direct = torch.mul(s, g_wide, out=workspace(out, r.dtype))
            rest = gh.sub_(s.mul_(gh))
            torch.sum(torch.mul(rest, wide, out=h), pixels, keepdim=True, out=of_v)
            direct.add_(rest.mul_(v)).mul_(scale)
            shared = of_gh if weight is None else of_gh * weight
            slope = _over_groups(shared, num_groups) * r**3 / -pixels_of(x)
            out.copy_(direct.add_(torch.mul(wide, slope, out=h)).sub_(slope * m))
        d_v = over_batch(sum_v * (root if weight is None else root * weight))
        d_weight, d_bias = (None, None) if weight is None else (over_batch(sum_gh * root), over_batch(sum_g))
        return dx, d_v, d_weight, d_bias, None, None


def _group_moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of its group for each channel of each sample, `(N, C, 1, ...)`, by two passes."""
    means, variances = map_moments(x)
    mean = _over_groups(means, num_groups)
    return mean, _over_groups(variances + (means - mean).square(), num_groups)


def _over_groups(per_map: Tensor, num_groups: int) -> Tensor:
    """The mean over its group for each channel."""
    grouped = per_map.view(per_map.shape[0], num_groups, per_map.shape[1] // num_groups)
    return grouped.mean(2, keepdim=True).expand_as(grouped).reshape(per_map.shape)
