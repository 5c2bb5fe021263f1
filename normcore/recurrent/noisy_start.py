"""A start that differs from sample to sample (Cooijmans et al. 2017, arXiv:1603.09025, section 5.1)."""

from __future__ import annotations

import torch

from normcore.recurrent.cell import State
from normcore.seeds import generator


def noisy_start(
    batch_size: int,
    hidden_size: int,
    *,
    seed: int,
    step: int,
    std: float = 0.1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> State:
    """The state before the first time step with h ~ N(0, std^2) and c = 0, for the training of a BN-LSTM.

    Where all inputs of the first time steps are equal over the batch, batch norm would divide by a variance of zero;
    noise in h keeps the samples apart until their inputs do. The paper's experiments have std 0.1. As in
    `normcore.noise`, a step's noise has a stream of its own, `(seed, "start", step)`: the global generators are left
    alone, and a step that is replayed draws the same. Recompute the running statistics under it as well.

    Args:
        batch_size: N.
        hidden_size: H.
        seed: The job's seed.
        step: Optimizer updates done so far.
        std: Standard deviation of each value of h.
        device: Where the state lives; on another kind of device the same stream draws other numbers.
        dtype: Of the state; all draw the same numbers, in float32.

    Example:
        >>> h, c = noisy_start(4, 5, seed=0, step=7)
        >>> bool((h == noisy_start(4, 5, seed=0, step=7)[0]).all())
        True
        >>> bool((h == noisy_start(4, 5, seed=0, step=8)[0]).any())
        False
    """
    # There is no generator on the meta device, where nothing is drawn.
    draws = None if torch.device(device).type == "meta" else generator(device, seed, "start", step)
    h = torch.empty(batch_size, hidden_size, device=device, dtype=torch.float32).normal_(0, std, generator=draws)
    h = h.to(dtype or torch.get_default_dtype())
    return h, torch.zeros_like(h)
