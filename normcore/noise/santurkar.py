"""The noise of Santurkar, Tsipras, Ilyas & Madry 2018 (arXiv:1805.11604), Algorithm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.noise.noise import Noise


class SanturkarNoise(Noise):
    """Non-stationary noise after a norm: covariate shift put back on purpose.

    At each step t every channel j draws a mean and a scale, and every value i of that channel its own around them:

        mu_j ~ U(-mean_range, mean_range)        sigma_j ~ U(1, scale_max)
        m_ij ~ U(mu_j - mean_jitter, mu_j + mean_jitter)        s_ij ~ N(sigma_j, scale_jitter^2)
        y_ij = s_ij x_ij + m_ij

    The values are all samples and pixels of a channel. On the output of batch norm, with mean 0 and variance v, channel
    j so has mean mu_j and variance (sigma_j^2 + scale_jitter^2) v + mean_jitter^2 / 3, and from step to step its mean
    moves by 2/3 mean_range on average. Off in evaluation, as the paper reports training accuracy only. The paper does
    not say whether the jitter of the scale is a standard deviation or a variance; here it is a standard deviation.

    Costs two random numbers per value and one multiply-add; the backward pass keeps s. All precisions see the same
    noise, drawn in float32; half inputs are disturbed in float32 and rounded once.

    Args:
        num_features: C, the channels.
        mean_range: n_mu of the paper, in units of the input.
        scale_max: n_sigma of the paper, at least 1.
        mean_jitter: r_mu of the paper.
        scale_jitter: r_sigma of the paper.

    Example:
        >>> from normcore.noise.noise import start_step
        >>> noise, x = SanturkarNoise(3), torch.zeros(1000, 3)
        >>> start_step(noise, seed=0, step=0)
        >>> bool(noise(x).abs().max() <= 0.5 + 0.1)
        True
        >>> bool((noise.eval()(x) == x).all())
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        mean_range: float = 0.5,
        scale_max: float = 1.25,
        mean_jitter: float = 0.1,
        scale_jitter: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.mean_range, self.scale_max = mean_range, scale_max
        self.mean_jitter, self.scale_jitter = mean_jitter, scale_jitter

    def forward(self, x: Tensor) -> Tensor:
        """The disturbed input, `(N, C, *)`.

        Raises:
            RuntimeError: In training, before any `start_step`.
        """
        if not self.training:
            return x
        if self.step_seed is None:
            raise RuntimeError(
                "noise in training must know its step, got none; "
                "call normcore.noise.noise.start_step(model, seed, step) before the forward pass"
            )
        # There is no generator on the meta device, where shapes are worked out and nothing is drawn.
        draws = None if x.is_meta else torch.Generator(x.device).manual_seed(self.step_seed)
        per_channel = (1, self.num_features) + (1,) * (x.dim() - 2)
        mean = torch.empty(per_channel, device=x.device, dtype=torch.float32)
        mean.uniform_(-self.mean_range, self.mean_range, generator=draws)
        scale = torch.empty_like(mean).uniform_(1, self.scale_max, generator=draws)
        shifts = _buffer_like(x)
        shifts.uniform_(-self.mean_jitter, self.mean_jitter, generator=draws)
        scales = _buffer_like(x)
        scales.normal_(0, self.scale_jitter, generator=draws)
        if x.dim() > 2 and not x.is_contiguous():
            shifts, scales = shifts.movedim(-1, 1), scales.movedim(-1, 1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.addcmul(shifts.add_(mean).to(dtype), scales.add_(scale).to(dtype), x.to(dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, mean_range={self.mean_range}, scale_max={self.scale_max}, "
            f"mean_jitter={self.mean_jitter}, scale_jitter={self.scale_jitter}"
        )


def _buffer_like(x: Tensor) -> Tensor:
    # Normal numbers are several times slower to draw into anything but contiguous memory, so a channels_last input gets
    # its noise in the order of its memory, (N, *, C).
    contiguous = x.dim() == 2 or x.is_contiguous()
    shape = x.shape if contiguous else (x.shape[0], *x.shape[2:], x.shape[1])
    return torch.empty(shape, device=x.device, dtype=torch.float32)
