"""Local response norm (Krizhevsky, Sutskever & Hinton 2012, Advances in Neural Information Processing Systems 25)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.claims import Claims
from normcore.norms.closed_form import ClosedForm, parts, window_sum
from normcore.norms.norm import Norm, at_least_float32, check_channels


class LocalResponseNorm(Norm):
    """Each value by the squares of its neighbour channels at the same pixel.

        y[c] = x[c] / (k + a sum of x[j]^2 over the size channels j around c)^beta

    where a is alpha in the paper (section 3.3, `convention="alexnet"`) and alpha / size, the weight of a mean, in torch
    (`convention="torch"`): size 5 with alpha 1e-4 there is alpha 5e-4 here. Neighbours beyond the first and the last
    channel count as zeros. An even size reaches one channel further back than ahead, as in torch (the paper's sum would
    hold one channel more). Nothing is learned, and training and evaluation are the same. k is no eps: small values pass
    but for a constant factor, so scale matters, and shift as well. With alpha 1 / C, beta 0.5, k at an eps and a size
    of 2 C it is the root mean square norm of each pixel over its channels.

    Costs at most 2 log2(size) additions a value, and roots in the place of a power where beta is 0.75.

    Args:
        num_features: C, the channels.
        size: n, the channels of a neighbourhood.
        alpha: Weight of the neighbourhood.
        beta: Exponent of the denominator.
        k: Constant in the denominator.
        convention: Whether alpha weighs the sum (alexnet) or the mean (torch).
        device: Unused: there are no parameters.
        dtype: Unused likewise.

    Example:
        >>> x = torch.randn(2, 8, 4, 4)
        >>> y = LocalResponseNorm(8, size=3, alpha=0.1, convention="torch", k=1.0)(x)
        >>> bool((y - torch.nn.LocalResponseNorm(3, alpha=0.1)(x)).abs().max() < 1e-6)
        True
    """

    claims = Claims(statistics="sample", per_pixel=True, scale_invariant=False, eps="none", variance="none")

    def __init__(
        self,
        num_features: int,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        convention: Literal["alexnet", "torch"] = "alexnet",
        device: torch.device | str | None = None,  # noqa: ARG002 (every norm can be built the same way)
        dtype: torch.dtype | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.num_features, self.size, self.alpha, self.beta, self.k = num_features, size, alpha, beta, k
        self.convention = convention

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`; raises `Refusal` where C is not `num_features`."""
        check_channels(x, self.num_features)
        weight = self.alpha if self.convention == "alexnet" else self.alpha / self.size
        # No neighbourhood is larger than all channels to both sides.
        before, after = (min(reach, self.num_features - 1) for reach in (self.size // 2, (self.size - 1) // 2))
        return _LocalResponse.of(x, before, after, weight, self.beta, self.k)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, "
            f"convention={self.convention!r}"
        )


class _LocalResponse(ClosedForm):
    """Of x `(N, C, *)`, of how many channels a neighbourhood reaches back and ahead, of its weight, of beta and k."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        x, before, after, weight, beta, k = inputs
        wide: Tensor = x.to(at_least_float32(x.dtype))
        squares = functional.pad(wide * wide, (*[0, 0] * (x.dim() - 2), before, after))
        y: Tensor = wide * (k + weight * window_sum(squares, before + 1 + after, dim=1)) ** -beta
        return y.to(x.dtype)

    @staticmethod
    def quick(*inputs: Any) -> Tensor:
        x, before, after, weight, beta, k = inputs
        y = torch.empty_like(x)
        for part, out in parts(x, y):
            wide = part.to(at_least_float32(x.dtype))
            out.copy_(_inverse_power(_denominators(wide, before, after, weight, k), beta).mul_(wide))
        return y

    @staticmethod
    def quick_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        """`dx = g / d^beta - 2 weight beta x sum(g x / d^(beta + 1))`, the sum over the values in whose d x stands."""
        x, before, after, weight, beta, k = inputs
        dx = torch.empty_like(x)
        for part, g, out in parts(x, grad, dx):
            wide = part.to(at_least_float32(x.dtype))
            d = _denominators(wide, before, after, weight, k)
            direct = _inverse_power(d, beta).mul_(g)
            room, inside = _room(wide, after, before)
            torch.mul(direct, wide, out=inside).div_(d)
            out.copy_(direct.addcmul_(wide, _sums(room, inside), value=-2 * weight * beta))
        return dx, None, None, None, None, None


def _denominators(x: Tensor, before: int, after: int, weight: float, k: float) -> Tensor:
    room, inside = _room(x, before, after)
    torch.mul(x, x, out=inside)
    return torch.add(torch.tensor(k, dtype=x.dtype), _sums(room, inside), alpha=weight)


def _room(x: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """A tensor in x's layout with zeros for channels before and after, and the part of it that is as large as x."""
    count, channels, *pixels = x.shape
    if x.stride(1) == 1:
        room = x.new_empty(count, *pixels, before + channels + after).movedim(-1, 1)
    else:
        room = x.new_empty(count, before + channels + after, *pixels)
    room.narrow(1, 0, before).zero_()
    room.narrow(1, before + channels, after).zero_()
    return room, room.narrow(1, before, channels)


def _sums(room: Tensor, inside: Tensor) -> Tensor:
    """The sums over the neighbourhoods. Memory is taken as one long line whose neighbours are a constant step apart;
    sums that reach from one sample or pixel into the next are computed along, and left out.
    """
    step = room.stride(1)
    line = room.as_strided((room.numel() // step, step), (step, 1))
    sums = window_sum(line, 1 + room.shape[1] - inside.shape[1], dim=0)
    return sums.as_strided(inside.shape, room.stride())


def _inverse_power(d: Tensor, beta: float) -> Tensor:
    """`1 / d^beta`; a root of a root takes a fifth of the time of a power."""
    if beta == 0.75:
        root = d.rsqrt()
        return root.mul_(root.sqrt())
    return d.pow(-beta)
