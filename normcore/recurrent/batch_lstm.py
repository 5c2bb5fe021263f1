"""BN-LSTM (Cooijmans, Ballas, Laurent, Gülçehre & Courville 2017, arXiv:1603.09025)."""

from __future__ import annotations

import torch

from normcore.norms.batch import Estimator
from normcore.recurrent.cell import Cell, Init
from normcore.recurrent.time_batch_norm import TimeBatchNorm


class BatchLstmCell(Cell):
    """An LSTM's cell with batch norm of both products and of the cell on its way to the output.

        i, f, g, o = BN(W_h h; gamma_h, 0) + BN(W_x x; gamma_x, 0) + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(BN(c'; gamma_c, beta_c))

    (Equations 6 to 8 of the paper.) gamma and beta are shared over time, the statistics are each time step's own, see
    `TimeBatchNorm`. With running statistics of mean 0 and variance 1 - eps and gammas of 1 it is, in evaluation, the
    plain `LstmCell`.

    Where all inputs of the first time steps are equal over the batch (the black upper rows of MNIST, pixel by pixel),
    so are all states that start equal: their variance is zero, the norms divide by sqrt(eps) at each of these time
    steps, and gradients explode. Start such sequences from `normcore.recurrent.noisy_start`.

    Args:
        input_size: D, values of an input.
        hidden_size: H, values of h and of c.
        max_length: Time steps that have statistics of their own; the longest sequence of the training.
        eps: Added to the variances, inside the roots.
        momentum: Weight of the newest batch in the running statistics of `ema`.
        estimator: Which estimate of the statistics evaluation uses: ema, paper or population.
        gamma: Initial value of all gammas.
        init: How weights are drawn, orthogonal or identity, see `Cell.draw`.
        seed: Of the initial weights.
        device: Where parameters and buffers live.
        dtype: Of the weights and the bias; gammas, betas and statistics are float32 or better.

    Example:
        >>> cell = BatchLstmCell(3, 5, max_length=10)
        >>> h, c = cell(torch.randn(2, 3), (torch.zeros(2, 5), torch.zeros(2, 5)), time=0)
        >>> cell.norm_x.num_batches_tracked.tolist()
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        max_length: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        estimator: Estimator = "ema",
        gamma: float = 0.1,
        init: Init = "orthogonal",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        def norm(num_features: int, *, shift: bool) -> TimeBatchNorm:
            return TimeBatchNorm(
                num_features,
                max_length=max_length,
                eps=eps,
                momentum=momentum,
                estimator=estimator,
                gamma=gamma,
                shift=shift,
                device=device,
                dtype=dtype,
            )

        super().__init__(
            input_size,
            hidden_size,
            norm_h=norm(4 * hidden_size, shift=False),
            norm_x=norm(4 * hidden_size, shift=False),
            norm_c=norm(hidden_size, shift=True),
            init=init,
            seed=seed,
            device=device,
            dtype=dtype,
        )
