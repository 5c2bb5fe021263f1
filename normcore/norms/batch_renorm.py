"""Batch renormalization (Ioffe 2017, arXiv:1702.03275)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from normcore.norms.claims import Claims
from normcore.norms.gathering import Moments, mean_and_var
from normcore.norms.norm import at_least_float32, check_channels
from normcore.norms.running import RunningNorm, check_batch, per_channel, root


class BatchRenorm(RunningNorm):
    """Batch norm, corrected towards the running statistics that evaluation will use.

        y = gamma ((x - mean) / sigma r + d) + beta                       sigma = sqrt(var) + eps, var biased
        r = clip(sigma / running_std, 1 / R, R)                           no gradient passes through r and d
        d = clip((mean - running_mean) / running_std, -D, D)

    mean and sigma are the batch's, over samples and pixels; in evaluation y = gamma (x - running_mean) / running_std +
    beta. Where r and d stay within their bounds, training gives the very output of evaluation, so batches may be small
    or of like samples; at r = 1 and d = 0 it is batch norm. After each training pass the running statistics, which
    hold sigma and not its square, move: `running = (1 - momentum) running + momentum new`.

    The bounds follow the count of training passes t, `num_batches_tracked`: R = 1 and D = 0 up to `warmup_steps`, from
    where they rise linearly, R to `r_max` at `r_steps` and D to `d_max` at `d_steps`. The paper, which trains ImageNet,
    takes 5,000, 40,000 and 25,000; the defaults are a fiftieth of that, with a momentum five times the paper's 0.01, so
    that the statistics have left their start behind when the bounds open. A training shorter than `warmup_steps` would
    be one with batch norm, and is refused as a job.

    Conventions are those of the implementations in use: eps is added to the standard deviation, the paper adds it to
    the variance. Gamma and beta are learned, and the count lives in a buffer, so a resumed training goes on with its
    bounds.

    Args:
        num_features: C, the channels.
        eps: Added to the standard deviation.
        momentum: Weight of the newest batch in the running statistics.
        r_max: Where R ends.
        d_max: Where D ends.
        warmup_steps: Training passes of batch norm.
        r_steps: When R has reached r_max.
        d_steps: When D has reached d_max.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> norm, x = BatchRenorm(3, warmup_steps=0, r_steps=0, d_steps=0, r_max=1e6, d_max=1e6), torch.randn(8, 3)
        >>> expected = norm.eval()(x)
        >>> torch.allclose(norm.train()(x), expected, atol=1e-5)
        True
    """

    remembers = True
    spread: ClassVar[str] = "running_std"

    momentum: float
    running_std: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-3,
        momentum: float = 0.05,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 100,
        r_steps: int = 800,
        d_steps: int = 500,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps, self.r_steps, self.d_steps = warmup_steps, r_steps, d_steps
        is_batch_norm = r_max == 1 and d_max == 0
        # Past the warm-up an input of another scale or mean meets the same running statistics, and r and d are held
        # still by the backward pass.
        self.claims = Claims(
            statistics="batch",
            scale_invariant=is_batch_norm,
            shift_invariant="channel" if is_batch_norm else "none",
            odd=is_batch_norm,
            gradient="exact" if is_batch_norm else "approximate",
            theorem_4_1=is_batch_norm,
            eps="outside",
        )

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, a batch of one sample; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if not self.training:
            return self.normalize(x, self.running_mean, self.running_std)
        check_batch(x, "batch renormalization")
        values = x.to(at_least_float32(x.dtype))
        var, mean = torch.var_mean(values, dim=(0, *range(2, x.dim())), correction=0)
        sigma = root(var) + self.eps
        r, d = self._correction(mean, sigma)
        y = (values - per_channel(mean, x)) * per_channel(r / sigma, x) + per_channel(d, x)
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, x) + per_channel(self.bias, x)
        return y.to(x.dtype)

    @torch.no_grad()
    def _correction(self, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The corrections r and d, by the running statistics before this batch, which then follow it."""
        kept = self.running_mean.dtype
        mean, sigma = mean.detach().to(kept), sigma.detach().to(kept)
        past_warmup = (self.num_batches_tracked - self.warmup_steps).to(kept)
        r_bound = 1 + (self.r_max - 1) * _risen(past_warmup, self.r_steps - self.warmup_steps)
        d_bound = self.d_max * _risen(past_warmup, self.d_steps - self.warmup_steps)
        r = (sigma / self.running_std).clamp(1 / r_bound, r_bound)
        d = ((mean - self.running_mean) / self.running_std).clamp(-d_bound, d_bound)
        if torch.compiler.is_compiling():
            # It keeps sums for the backward pass; what is cheaper it works out anew there, when the buffers have moved.
            r, d = (torch.stack((value, torch.zeros_like(value))).sum(0) for value in (r, d))
        self.running_mean.lerp_(mean, self.momentum)
        self.running_std.lerp_(sigma, self.momentum)
        self.num_batches_tracked.add_(1)
        return r, d

    def reset_statistics(self) -> None:
        """Put the running statistics back to 0 and 1; the count of batches, by which the bounds go, stays."""
        with torch.no_grad():
            self.running_mean.zero_()
            self.running_std.fill_(1)

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:  # noqa: ARG002 (sigma is biased)
        """See `normcore.norms.gathering.Gathers`."""
        mean, var = mean_and_var(moments, unbiased=False)
        return {"running_mean": mean, "running_std": var.sqrt() + self.eps}

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, warmup_steps={self.warmup_steps}, "
            f"r_steps={self.r_steps}, d_steps={self.d_steps}"
        )


def _risen(past: Tensor, rise: int) -> Tensor:
    """How far a bound has risen, from 0 to 1: `past` of `rise` steps."""
    return (past / rise).clamp(0, 1) if rise > 0 else (past >= rise).to(past.dtype)
