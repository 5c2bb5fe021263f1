"""The plain cell of an LSTM (Hochreiter & Schmidhuber 1997)."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.recurrent.cell import Cell, Init
from normcore.recurrent.time_norm import TimeNorm


class LstmCell(Cell):
    """An LSTM's cell without norms: the control arm of the others.

        i, f, g, o = W_h h + W_x x + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    `torch.nn.LSTMCell`, whose two biases are one here: b = bias_ih + bias_hh.

    Args:
        input_size: D, values of an input.
        hidden_size: H, values of h and of c.
        init: How weights are drawn, orthogonal or identity, see `Cell.draw`.
        seed: Of the initial weights.
        device: Where the parameters live.
        dtype: Of the parameters.

    Example:
        >>> cell = LstmCell(3, 5)
        >>> h, c = cell(torch.randn(2, 3), (torch.zeros(2, 5), torch.zeros(2, 5)))
        >>> h.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        init: Init = "orthogonal",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            norm_h=NoTimeNorm(),
            norm_x=NoTimeNorm(),
            norm_c=NoTimeNorm(),
            init=init,
            seed=seed,
            device=device,
            dtype=dtype,
        )


class NoTimeNorm(TimeNorm):
    """No normalization: the identity."""

    def forward(self, x: Tensor, *, time: int = 0, real: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The values as they are."""
        return x
