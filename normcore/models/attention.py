"""Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normcore.attention.masked_softmax import masked_softmax
from normcore.models.initialize import Linear
from normcore.norms.norm import at_least_float32
from normcore.refusal import Refusal


class SelfAttention(nn.Module):
    """Each token becomes a mean of all tokens' values, weighed by how its query meets their keys; in several heads.

        q, k, v = x W_qkv + b_qkv                       of each head, width / heads numbers each
        y = softmax(q k^T / sqrt(width / heads)) v      over the real tokens
        out = concat(y) W_out + b_out

    `torch.nn.MultiheadAttention(width, heads, batch_first=True)` of x with itself. A token that is padding weighs
    exactly nothing; where a sample has no real token at all, y is zero.

    The products are written out, and not left to torch's fused kernels: those have no second derivative, which probes
    ask for, and their backward pass on a GPU adds up in an order of its own. Costs `4 N L^2 width` operations beside
    the maps', and keeps the `N heads L^2` weights for the backward pass.

    Args:
        width: Of a token.
        heads: Must divide the width.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: The heads do not divide the width.

    Example:
        >>> attention = SelfAttention(8, 2)
        >>> _ = [nn.init.ones_(parameter) for parameter in attention.parameters()]
        >>> attention(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self, width: int, heads: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if width % heads:
            fitting = max(number for number in range(1, heads) if width % number == 0)
            raise Refusal(
                "heads-do-not-divide",
                f"heads must divide width, got heads {heads} and width {width}; take a divisor of {width}, such as "
                f"{fitting}",
            )
        self.heads = heads
        self.qkv = Linear(width, 3 * width, device=device, dtype=dtype)
        self.out = Linear(width, width, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The tokens `(N, L, width)` that tokens `(N, L, width)` become.

        Args:
            x: The tokens.
            mask: `(N, L)`, True where a token is real; all are when not given.
        """
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * (1 / math.sqrt(q.shape[3]))) @ k.mT
        if mask is None:
            weights = torch.softmax(scores, -1, dtype=at_least_float32(scores.dtype)).to(scores.dtype)
        else:
            weights = masked_softmax(scores, mask[:, None, None])
        out: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return out

    def extra_repr(self) -> str:
        """The heads."""
        return f"heads={self.heads}"
