"""LN-LSTM (Ba, Kiros & Hinton 2016, arXiv:1607.06450, supplementary material)."""

from __future__ import annotations

import torch

from normcore.recurrent.cell import Cell, Init
from normcore.recurrent.time_layer_norm import TimeLayerNorm


class LayerLstmCell(Cell):
    """An LSTM's cell with layer norm of both products and of the cell on its way to the output.

        i, f, g, o = LN(W_h h; gamma_h, 0) + LN(W_x x; gamma_x, 0) + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(LN(c'; gamma_c, beta_c))

    The statistics of a product are over all four gates together. The paper has a beta for each of the products as
    well, which only add to b; they are left out here, as in `BatchLstmCell`. gamma starts at 1, beta at 0. The same at
    every time step, in training and in evaluation, whatever the batch.

    Args:
        input_size: D, values of an input.
        hidden_size: H, values of h and of c, at least 2.
        eps: Added to the variances, inside the roots.
        init: How weights are drawn, orthogonal or identity, see `Cell.draw`.
        seed: Of the initial weights.
        device: Where the parameters live.
        dtype: Of the weights and the bias; gammas and betas are float32 or better.

    Raises:
        Refusal: `hidden_size` is 1, and the norm of c would be zero whatever it is.

    Example:
        >>> cell = LayerLstmCell(3, 5)
        >>> state = torch.randn(2, 5), torch.randn(2, 5)
        >>> x = torch.randn(2, 3)
        >>> bool((cell(1000 * x, state)[0] - cell(x, state)[0]).abs().max() < 1e-3)
        True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        eps: float = 1e-5,
        init: Init = "orthogonal",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            norm_h=TimeLayerNorm(4 * hidden_size, eps=eps, shift=False, device=device, dtype=dtype),
            norm_x=TimeLayerNorm(4 * hidden_size, eps=eps, shift=False, device=device, dtype=dtype),
            norm_c=TimeLayerNorm(hidden_size, eps=eps, device=device, dtype=dtype),
            init=init,
            seed=seed,
            device=device,
            dtype=dtype,
        )
