"""Power norm (Shen et al. 2020, arXiv:2003.07845)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.closed_form import along_channels, parts
from normcore.norms.gathering import Moments, channel_moments
from normcore.norms.masked import check_mask, zero_where_masked
from normcore.norms.norm import Norm, at_least_float32, check_channels, scale_and_shift
from normcore.norms.running import check_batch


class PowerNorm(Norm):
    """Each channel by the root of its mean square: a running one, in training too, with an approximate gradient.

        y = gamma x^ + beta,   x^ = x / sqrt(psi^2 + eps)

    In evaluation psi^2 is `running_square`. In training it is `running_square` as the batch before left it; then that
    moves towards the batch's mean square, psi_B^2 = mean(x^2) over batch and pixels:
    `running = (1 - momentum) running + momentum new` (the paper's alpha is 1 - momentum, in both passes). Since psi
    depends on all batches so far, the exact gradient is out of reach. The backward pass projects instead:

        dx = (gamma g - nu x^) / sqrt(psi^2 + eps)
        nu <- nu (1 - momentum mean(x^2^)) + momentum mean(gamma g x^),   x^2^ the square of x^

    (Algorithm 2 of the paper.) So a backward pass changes a buffer, `nu`, and a second one through the same graph does
    so again. The first `warmup_steps` training passes divide by the batch's own psi_B instead, while the running one is
    gathered; there mean(gamma g x^) stands for nu, and the gradient is exact. Such a pass with an input of mean zero is
    batch norm's. Without a warm-up `running_square` sets out from one, whatever the input. The authors warm up for
    10,000 passes of translation; a job that ends within its warm-up is refused.

    The authors' code differs: its backward pass divides by the batch's psi_B where the forward pass divided by the
    running one, and in the warm-up each batch moves the running mean square twice.

    Args:
        num_features: C, the channels.
        eps: Added to the mean square, inside the root.
        momentum: Weight of the newest batch in the running mean square and in nu.
        warmup_steps: Training passes that divide by the batch's own mean square.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Example:
        >>> y = PowerNorm(3)(5 + 2 * torch.randn(64, 3, 8, 8))
        >>> bool((y.square().mean((0, 2, 3)) - 1).abs().max() < 1e-4)
        True
    """

    remembers = True

    running_square: Tensor
    nu: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        warmup_steps: int = 200,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.warmup_steps, self.affine = warmup_steps, affine
        self.claims = Claims(
            statistics="batch" if warmup_steps else "running",
            scale_invariant=False,
            gradient="approximate",
            variance="none",
        )
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        self.register_buffer("running_square", torch.ones(num_features, device=device, dtype=kept))
        self.register_buffer("nu", torch.zeros(num_features, device=device, dtype=kept))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device, dtype=torch.long))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Args:
            x: `(N, C, *)`.
            mask: `(N, *)`, True where a token is real: mean squares are those of the real tokens, and the output is
                zero at the others. A batch without any real token gives zeros and moves nothing but the count of
                batches.

        Raises:
            Refusal: In training, a batch of one sample; C is not `num_features`; or the mask does not fit.
        """
        check_channels(x, self.num_features)
        if self.training:
            check_batch(x, "power norm")
        if mask is not None:
            check_mask(x, mask)
            return zero_where_masked(self._normalize(zero_where_masked(x, mask), mask.sum()), mask)
        return self._normalize(x, None)

    def reset_statistics(self) -> None:
        """Put the running mean square back to one and nu to zero, and begin the warm-up anew."""
        with torch.no_grad():
            self.running_square.fill_(1)
            self.nu.zero_()
            self.num_batches_tracked.zero_()

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """See `normcore.norms.gathering.Gathers`."""
        return channel_moments(x, mask)

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:  # noqa: ARG002
        """See `normcore.norms.gathering.Gathers`; a mean square has no bias."""
        return {"running_square": moments.means["square"]}

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, warmup_steps={self.warmup_steps}, "
            f"affine={self.affine}"
        )

    def _normalize(self, x: Tensor, real: Tensor | None) -> Tensor:
        """`real` is the number of values per channel that are not padding, where there is any; padding is zero."""
        kept = at_least_float32(x.dtype)
        running = self.running_square.to(kept)
        weight = torch.ones_like(running) if self.weight is None else self.weight.to(kept)
        bias = torch.zeros_like(running) if self.bias is None else self.bias.to(kept)
        if not self.training:
            return _scaled(x, running, weight, bias, self.eps)
        warm = self.num_batches_tracked < self.warmup_steps
        count = x.numel() // x.shape[1] if real is None else real.clamp(min=1).to(kept)
        batch = _products(x.detach(), x.detach())[0] / count
        square = torch.where(warm, batch, running)
        passes: type[ApproximateBackward] = ApproximateDerivatives
        if torch.compiler.is_compiling():
            # It keeps sums for the backward pass; a mere choice it makes anew there, when the buffer has moved.
            square = torch.stack((square, torch.zeros_like(square))).sum(0)
            # It cannot trace a function that has a forward mode.
            passes = ApproximateBackward
        y: Tensor = passes.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, square, batch, self.nu, warm, count, self.eps, self.momentum
        )
        with torch.no_grad():
            moved = batch if real is None else torch.where(real > 0, batch, running)
            self.running_square.lerp_(moved.to(self.running_square.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        return y


class ApproximateBackward(torch.autograd.Function):
    """`gamma x^ + beta`, with the paper's backward pass, which uses nu and moves it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, square: Tensor, *others: Any) -> Tensor:
        """Torch calls it. The others: psi_B^2, nu, whether it is the warm-up, m, eps, momentum."""
        return _scaled(x, square, weight, bias, others[-2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Torch calls it."""
        x, weight, _, square, batch, nu, warm, ctx.count, ctx.eps, ctx.momentum = inputs
        ctx.save_for_backward(x, weight, square, batch, warm)
        ctx.save_for_forward(x, weight, square, batch, warm)
        # Not among what is saved: each backward pass moves it.
        ctx.nu = nu

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Torch calls it, in grad mode where the gradient will be differentiated in turn."""
        x, weight, square, batch, warm = ctx.saved_tensors
        nu = ctx.nu.to(weight.dtype, copy=True)
        differentiable = torch.is_grad_enabled()
        if differentiable:
            # In the warm-up what is divided by is a function of x, too.
            square = torch.where(warm, _sum(x.to(weight.dtype).square()) / ctx.count, square)
            dots, sums = _sum(grad.to(weight.dtype) * x), _sum(grad.to(weight.dtype))
        else:
            dots, sums = _products(grad, x)
        inverse = (square + ctx.eps).rsqrt()
        projection = weight * dots * inverse / ctx.count
        factors = along_channels(x, weight * inverse, torch.where(warm, projection, nu) * inverse.square())
        of_x = _difference(grad, x, *factors) if differentiable else _difference_in_parts(grad, x, *factors)
        with torch.no_grad():
            moved = nu * (1 - ctx.momentum * batch * inverse.square()) + ctx.momentum * projection
            ctx.nu.copy_(moved)
        return of_x, dots * inverse, sums, *[None] * 7


class ApproximateDerivatives(ApproximateBackward):
    """The same with a forward mode, in which psi is a constant but for the warm-up."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """Torch calls it."""
        x, weight, square, _, warm = ctx.saved_tensors
        moved, turned, shifted = (
            torch.zeros_like(of) if tangent is None else tangent
            for tangent, of in zip(tangents[:3], (x, weight, weight), strict=True)
        )
        kept = weight.dtype
        slope = torch.where(warm, 2 * _sum(x.to(kept) * moved) / ctx.count, 0)
        inverse = (square + ctx.eps).rsqrt()
        scale, change = along_channels(x, weight * inverse, turned * inverse - 0.5 * weight * inverse**3 * slope)
        (shift,) = along_channels(x, shifted)
        along: Tensor = (moved * scale + x * change + shift).to(x.dtype)
        return along


def _scaled(x: Tensor, square: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`weight x / sqrt(square + eps) + bias` in one pass: batch norm in evaluation, with a mean of zero."""
    y = functional.batch_norm(_as_maps(x), torch.zeros_like(square), square, weight, bias, False, 0.0, eps)
    # Not a view: what a function of autograd returns as one, no relu in place may follow.
    return y if y.dim() == x.dim() else torch.ops.aten._unsafe_view(y, x.shape)  # noqa: SLF001


def _products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of a * b and of a per channel, `(C,)`, in one pass.

    It is the pass in which batch norm, given mean zero and variance one, finds the gradients of its gamma and beta.
    """
    ones = torch.ones(a.shape[1], device=a.device, dtype=at_least_float32(a.dtype))
    zeros = torch.zeros_like(ones)
    _, dots, sums = torch.ops.aten.native_batch_norm_backward(
        _as_maps(a), _as_maps(b), ones, zeros, ones, zeros, ones, True, 0.0, [False, True, True]
    )
    return dots, sums


def _as_maps(x: Tensor) -> Tensor:
    """Sequences as images one pixel high: only of those does torch know that channels may be last in memory.

    Of images one pixel wide, as they come of a view, it does not, and then reads a gradient in another order as if it
    were in the input's.
    """
    return x.unsqueeze(2) if x.dim() == 3 else x


def _sum(x: Tensor) -> Tensor:
    """Per channel."""
    return x.sum((0, *range(2, x.dim())))


def _difference(grad: Tensor, x: Tensor, of_grad: Tensor, of_x: Tensor) -> Tensor:
    return (grad * of_grad - x * of_x).to(x.dtype)


def _difference_in_parts(grad: Tensor, x: Tensor, of_grad: Tensor, of_x: Tensor) -> Tensor:
    """The same, part by part where that keeps what lies between in the cache."""
    difference = torch.empty_like(x)
    for into, grad_part, x_part in parts(difference, grad, x):
        into.copy_(_difference(grad_part, x_part, of_grad, of_x))
    return difference
