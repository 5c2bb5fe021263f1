"""The loop over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.recurrent.cell import Cell, State
from normcore.refusal import Refusal


class Lstm(nn.Module):
    """A cell along sequences `(N, T, D)`, whatever its norms; sequences of a batch may end at different times.

    Behind its end a sample is padding: its state stays what it was, its outputs are zero, what stands in its input, NaN
    too, has no influence and no gradient, and it enters no other sample's statistics. With the plain `LstmCell` it is
    `torch.nn.LSTM(batch_first=True)` over packed sequences.

    Costs one product for all inputs and T products for the states; the backward pass keeps the gates of every time
    step.

    Args:
        cell: What happens at a time step.

    Example:
        >>> from normcore.recurrent.layer_lstm import LayerLstmCell
        >>> lstm = Lstm(LayerLstmCell(3, 5))
        >>> outputs, (h, c) = lstm(torch.randn(2, 7, 3), lengths=torch.tensor([7, 4]))
        >>> outputs.shape
        torch.Size([2, 7, 5])
        >>> bool((outputs[1, 3] == h[1]).all() and (outputs[1, 4:] == 0).all())
        True
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """The outputs h at every time step, `(N, T, H)`, and each sample's state at its end.

        Args:
            x: The inputs, `(N, T, D)`.
            lengths: Real time steps of each sample, `(N,)`, integers; all of T when not given.
            state: The state before the first time step; zeros when not given.

        Raises:
            Refusal: `x` or `lengths` has another shape, or `lengths` are no integers.
        """
        self._check(x, lengths)
        real = None if lengths is None else torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
        if real is not None:
            x = torch.where(real.unsqueeze(2), x, torch.zeros_like(x))
        state = state or (x.new_zeros(len(x), self.cell.hidden_size), x.new_zeros(len(x), self.cell.hidden_size))
        terms = self.cell.inputs(x, time=0, real=real)
        outputs = []
        for time, term in enumerate(terms.unbind(1)):
            now = None if real is None else real[:, time]
            moved = self.cell.advance(term, state, time=time, real=now)
            if now is None:
                state = moved
                outputs.append(state[0])
            else:
                state = _where(now, moved, state)
                outputs.append(torch.where(now.unsqueeze(1), state[0], torch.zeros_like(state[0])))
        return torch.stack(outputs, 1), state

    def _check(self, x: Tensor, lengths: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[2] != self.cell.input_size or x.shape[1] < 1:
            raise Refusal(
                "sequence-differs",
                f"the input must be of shape (N, T, input_size {self.cell.input_size}) with at least one time step, "
                f"got {tuple(x.shape)}; put the batch first and the features last",
            )
        if lengths is not None and (
            lengths.shape != x.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool
        ):
            raise Refusal(
                "lengths-differ",
                f"lengths must be {x.shape[0]} integers, one for each sample, got shape {tuple(lengths.shape)} and "
                f"{lengths.dtype}; count the real time steps of each sample",
            )


def _where(real: Tensor, moved: State, stayed: State) -> State:
    real = real.unsqueeze(1)
    return torch.where(real, moved[0], stayed[0]), torch.where(real, moved[1], stayed[1])
