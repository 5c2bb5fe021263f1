"""Divisive normalization (Ren, Liao, Urtasun, Sinz & Zemel 2017, arXiv:1611.04520)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, along_channels, over_batch, parts, window_sum, workspace
from normcore.norms.norm import Norm, at_least_float32, check_channels, pixels_of, scale_and_shift
from normcore.refusal import Refusal


class DivisiveNorm(Norm):
    """Each value by the mean and the deviation of all channels in windows around its pixel, with a learned smoothing.

        v = x - mean(x over all channels of the mean window)
        y = gamma v / sqrt(sigma^2 + mean(v^2 over all channels of the variance window)) + beta

    Windows are squares of pixels around the value's own (intervals of sequences, cubes of volumes); at borders there
    are fewer pixels, and means are over those that are there. sigma is learned, one per layer, gamma and beta one per
    channel. The same in training and evaluation, whatever the batch. With windows that cover the map from every
    pixel it is layer norm with eps = sigma^2; with windows of one pixel, and of vectors, it is layer norm over the
    channels of each pixel. The paper's penalty on |v| belongs to the loss, and is none here.

    Means over windows are of one map, the mean of all channels, by doubling: their cost hardly grows with the window.
    On a CPU the passes are written by hand.

    Args:
        num_features: C, the channels.
        mean_window: Side in pixels of the window whose mean is subtracted; odd.
        variance_window: Side in pixels of the window whose mean square divides; odd.
        sigma: Initial value of sigma.
        affine: Learn gamma and beta.
        device: Where the parameters live.
        dtype: Of the parameters, float32 or better.

    Raises:
        Refusal: A window's side is even.

    Example:
        >>> x = torch.randn(2, 4, 8, 8)
        >>> y = DivisiveNorm(4, mean_window=15, variance_window=15, sigma=1e-3)(x)
        >>> bool((y - torch.nn.functional.layer_norm(x, (4, 8, 8))).abs().max() < 1e-4)
        True
    """

    claims = Claims(statistics="sample", scale_invariant=False, shift_invariant="sample", variance="none")

    def __init__(
        self,
        num_features: int,
        *,
        mean_window: int = 5,
        variance_window: int = 5,
        sigma: float = 1.0,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, side in (("mean_window", mean_window), ("variance_window", variance_window)):
            if side % 2 == 0:
                raise Refusal(
                    "even-window",
                    f"{name} must be odd, so that a pixel stands in the middle of its window, got {side}; take "
                    f"{side - 1} or {side + 1}",
                )
        self.num_features, self.mean_window, self.variance_window = num_features, mean_window, variance_window
        self.initial_sigma, self.affine = sigma, affine
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.sigma = nn.Parameter(torch.full((1,), sigma, device=device, dtype=kept))

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: The mean is of the value alone, which would become zero whatever it is; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if self.num_features == 1 and (self.mean_window == 1 or pixels_of(x) == 1):
            raise Refusal(
                "one-value-layer",
                f"divisive norm needs more than one value in the window of its mean, got 1 channel, a mean_window of "
                f"{self.mean_window} and a map of {pixels_of(x)} pixels; take more channels",
            )
        maps = x if x.dim() > 2 else x.unsqueeze(2)
        windows = (self.mean_window, self.variance_window)
        return _Divisive.of(maps, self.weight, self.bias, self.sigma, *windows).view_as(x)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, mean_window={self.mean_window}, variance_window={self.variance_window}, "
            f"sigma={self.initial_sigma}, affine={self.affine}"
        )


class _Divisive(ClosedForm):
    """Of x `(N, C, pixels...)`, of weight and bias per channel, of sigma and of the sides of both windows."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, weight, bias, sigma, mean_window, variance_window = inputs
        wide: Tensor = x.to(at_least_float32(x.dtype))
        weight, bias = along_channels(x, weight, bias)
        v = wide - window_mean(wide.mean(1, keepdim=True), mean_window)
        y = v * _inverse_root(v * v, sigma, variance_window)
        if weight is not None:
            y = y * weight + bias
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, weight, bias, sigma, mean_window, variance_window = inputs
        weight, bias = along_channels(x, weight, bias)
        y = torch.empty_like(x)
        for part, out in parts(x, y):
            wide = part.to(at_least_float32(x.dtype))
            local = window_mean(wide.mean(1, keepdim=True), mean_window)
            v = torch.sub(wide, local, out=workspace(out, wide.dtype))
            v.mul_(_inverse_root(v * v, sigma, variance_window))
            out.copy_(v if weight is None else v.mul_(weight).add_(bias))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dv = gamma g r + v h` and `dx = dv - the mean over channels of A' dv`, r the inverse root.

        A is the mean over windows, A' its transpose, and h = -B'(r^3 sum(gamma g v)) / C with B that of the variance.
        """
        x, weight, bias, sigma, mean_window, variance_window = inputs
        weight, bias = along_channels(x, weight, bias)
        kept, channels, pixels = at_least_float32(x.dtype), x.shape[1], tuple(range(2, x.dim()))
        dx, d_sigma = torch.empty_like(x), torch.zeros_like(sigma)
        sum_g, sum_gy = (x.new_empty((*x.shape[:2], *[1] * len(pixels)), dtype=kept) for _ in range(2))
        for part, g, out, of_g, of_gy in parts(x, grad, dx, sum_g, sum_gy):
            wide, u = part.to(kept), g.to(kept)
            v = wide - window_mean(wide.mean(1, keepdim=True), mean_window)
            uv = v * v
            root = _inverse_root(uv, sigma, variance_window)
            torch.mul(u, v, out=uv)
            if weight is not None:
                torch.sum(u, pixels, keepdim=True, out=of_g)
                torch.sum(uv * root, pixels, keepdim=True, out=of_gy)
                uv.mul_(weight)
                u = u * weight
            slope = root**3 * uv.sum(1, keepdim=True)
            d_sigma -= sigma * slope.sum()
            dv = torch.mul(u, root, out=uv).add_(v.mul_(_transposed_mean(slope, variance_window) / -channels))
            out.copy_(dv.sub_(_transposed_mean(dv.mean(1, keepdim=True), mean_window)))
        d_weight, d_bias = (None, None) if weight is None else (over_batch(sum_gy), over_batch(sum_g))
        return dx, d_weight, d_bias, d_sigma, None, None


def _inverse_root(squares: Tensor, sigma: Tensor, window: int) -> Tensor:
    local = window_mean(squares.mean(1, keepdim=True), window)
    return torch.rsqrt(sigma.to(local.dtype).square() + local)


def window_mean(maps: Tensor, window: int) -> Tensor:
    """The mean of the pixels of each pixel's window that are there, in `(N, 1, *)`.

    Example:
        >>> window_mean(torch.tensor([[[3.0, 5.0, 10.0]]]), 3)
        tensor([[[4.0000, 6.0000, 7.5000]]])
    """
    return _sums(maps, window) / _sums(torch.ones_like(maps[:1]), window)


def _transposed_mean(maps: Tensor, window: int) -> Tensor:
    """What `window_mean` gives back: each pixel's value in equal shares to those it is the mean of."""
    return _sums(maps / _sums(torch.ones_like(maps[:1]), window), window)


def _sums(maps: Tensor, window: int) -> Tensor:
    """Windows are products of intervals: their sums are taken dimension by dimension."""
    for dim in range(2, maps.dim()):
        reach = min(window // 2, maps.shape[dim] - 1)
        padding = (*[0, 0] * (maps.dim() - 1 - dim), reach, reach)
        maps = window_sum(functional.pad(maps, padding), 2 * reach + 1, dim)
    return maps
