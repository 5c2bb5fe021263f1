"""Batch norm by lp norms (Santurkar, Tsipras, Ilyas & Madry 2018, arXiv:1805.11604, section 3.3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from normcore.norms.claims import Claims
from normcore.norms.gathering import Moments
from normcore.norms.norm import at_least_float32, check_channels, pixels_of
from normcore.norms.running import RunningNorm, check_batch, root


class LpNorm(RunningNorm):
    """Each channel less its mean, by the lp norm that it had before its mean was subtracted.

        y = gamma (x - mean) / (norm + eps) + beta,        norm = (mean |x|^p)^(1/p),   max |x| for p = inf

    Mean and norm are taken over the batch and the pixels in training, and are running ones in evaluation:
    `running = (1 - momentum) running + momentum new`, of the norm itself. It controls the first moment of what comes
    out and no other, and was made to show that a net trains as well without: where the mean is large against the
    spread, the output is small.

    With p = 2 it is batch norm's output times sigma / sqrt(sigma^2 + mean^2): batch norm itself for channels of mean
    zero. The norms of a channel rise with p, so its outputs fall. The paper says "the average of their lp-norm"; the
    average is here within the norm, over the values of a channel.

    Args:
        num_features: C, the channels.
        p: "1", "2" or "inf".
        eps: Added to the norm.
        momentum: Weight of the newest batch in the running statistics.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> LpNorm(1, p="1")(torch.tensor([[2.0], [4.0]])).flatten()
        tensor([-0.3333,  0.3333], grad_fn=<ViewBackward0>)
    """

    claims = Claims(statistics="batch", eps="outside", variance="none")
    spread: ClassVar[str] = "running_norm"

    momentum: float
    running_norm: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        p: Literal["1", "2", "inf"] = "1",
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine, device=device, dtype=dtype)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, a batch of one sample; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if not self.training:
            return self.normalize(x, self.running_mean, self.running_norm + self.eps)
        check_batch(x, "lp norm")
        mean, power = self._means(x)
        norm = self._norm(power)
        with torch.no_grad():
            kept = self.running_mean.dtype
            self.running_mean.lerp_(mean.detach().to(kept), self.momentum)
            self.running_norm.lerp_(norm.detach().to(kept), self.momentum)
            self.num_batches_tracked.add_(1)
        return self.normalize(x, mean, norm + self.eps)

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:  # noqa: ARG002 (`forward` takes none)
        """The means of x and of |x|^p; with p = inf the maximum of |x|, which is averaged over batches."""
        count = torch.full((), x.shape[0] * pixels_of(x), dtype=torch.float64, device=x.device)
        mean, power = self._means(x)
        return Moments(count, {"mean": mean.double(), "power": power.double()})

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:  # noqa: ARG002 (no variance)
        """See `normcore.norms.gathering.Gathers`."""
        return {"running_mean": moments.means["mean"], "running_norm": self._norm(moments.means["power"])}

    def _means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means per channel of x and of |x|^p, or the maximum of |x|, in float32 or better."""
        values, dims = x.to(at_least_float32(x.dtype)), (0, *range(2, x.dim()))
        if self.p == "inf":
            return values.mean(dims), values.abs().amax(dims)
        return values.mean(dims), (values.abs() if self.p == "1" else values.square()).mean(dims)

    def _norm(self, power: Tensor) -> Tensor:
        return root(power) if self.p == "2" else power

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return f"{super().extra_repr()}, p={self.p}"
