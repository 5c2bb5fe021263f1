"""One step of an LSTM, with a place for a norm wherever the papers put one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.norms.norm import at_least_float32
from normcore.recurrent.time_norm import TimeNorm
from normcore.seeds import generator

State = tuple[Tensor, Tensor]
"""h and c, `(N, hidden_size)` each."""
Init = Literal["orthogonal", "identity"]


class Cell(nn.Module):
    """An LSTM's cell (Hochreiter & Schmidhuber 1997) with three norms; its kinds differ only in what the norms are.

        i, f, g, o = norm_h(W_h h) + norm_x(W_x x) + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(norm_c(c'))

    The way from c to c' goes through no norm, so that gradients pass along it. Computed in float32 or better behind the
    two products; h and c keep the dtype they come in.

    Args:
        input_size: D, values of an input.
        hidden_size: H, values of h and of c.
        norm_h: Of W_h h, 4 H values.
        norm_x: Of W_x x, 4 H values.
        norm_c: Of c, H values.
        init: How weights are drawn, see `draw`.
        seed: Of the initial weights.
        device: Where the parameters live.
        dtype: Of the weights and the bias.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        norm_h: TimeNorm,
        norm_x: TimeNorm,
        norm_c: TimeNorm,
        init: Init = "orthogonal",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size, device=device, dtype=dtype))
        self.norm_h, self.norm_x, self.norm_c = norm_h, norm_x, norm_c
        self.draw(init, seed)

    def forward(self, x: Tensor, state: State, *, time: int = 0, real: Tensor | None = None) -> State:
        """The state after one time step.

        Args:
            x: The input, `(N, D)`.
            state: The state before.
            time: Which time step it is; the first of a sequence is 0.
            real: `(N,)`, False where a sample is padding and must not enter the statistics of others; its own state
                moves on like any other. None where all are real.
        """
        terms = self.inputs(x.unsqueeze(1), time=time, real=None if real is None else real.unsqueeze(1))
        return self.advance(terms.squeeze(1), state, time=time, real=real)

    def inputs(self, x: Tensor, *, time: int, real: Tensor | None) -> Tensor:
        """What the inputs `(N, T, D)` of consecutive time steps put into the gates, in one product: `(N, T, 4 H)`."""
        normed: Tensor = self.norm_x(functional.linear(x, self.weight_ih), time=time, real=real)
        return normed + self.bias

    def advance(self, term: Tensor, state: State, *, time: int, real: Tensor | None) -> State:
        """The state after a time step whose input puts `term`, `(N, 4 H)`, into the gates."""
        h, c = state
        at = {"time": time, "real": None if real is None else real.unsqueeze(1)}
        gates = self.norm_h(functional.linear(h, self.weight_hh).unsqueeze(1), **at).squeeze(1) + term
        i, f, g, o = gates.to(at_least_float32(gates.dtype)).chunk(4, dim=1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new_h = torch.sigmoid(o) * torch.tanh(self.norm_c(new_c.unsqueeze(1), **at).squeeze(1))
        return new_h.to(h.dtype), new_c.to(c.dtype)

    @torch.no_grad()
    def draw(self, init: Init, seed: int, path: str = "") -> None:
        """Draw the weights; the bias becomes 1 for the forget gate, so that a cell remembers at first, and else 0.

        - `orthogonal`: W_x and W_h have orthonormal columns (or rows, where they have fewer rows);
        - `identity`: the block of W_h that makes g is the identity, and the three of the gates are orthogonal together.

        These are the initialisations of Cooijmans et al. 2017 (section 5, and their code, which says which block is the
        identity). Each weight has a stream of its own, `(seed, "init", name)`, drawn on the CPU in float32, as in
        `normcore.models.initialize`; the global generators are left alone.

        Args:
            init: orthogonal or identity.
            seed: Of the streams.
            path: The cell's module path in its model, for the names.
        """
        # On the meta device there is nothing to set.
        if self.weight_hh.is_meta:
            return
        size = self.hidden_size
        self.weight_ih.copy_(self._orthogonal(4 * size, self.input_size, seed, f"{path}.weight_ih"))
        if init == "orthogonal":
            self.weight_hh.copy_(self._orthogonal(4 * size, size, seed, f"{path}.weight_hh"))
        else:
            i, f, o = self._orthogonal(3 * size, size, seed, f"{path}.weight_hh").chunk(3)
            self.weight_hh.copy_(torch.cat([i, f, torch.eye(size), o]))
        self.bias.zero_()
        self.bias[size : 2 * size] = 1

    @staticmethod
    def _orthogonal(rows: int, columns: int, seed: int, name: str) -> Tensor:
        weight = torch.empty(rows, columns, dtype=torch.float32)
        nn.init.orthogonal_(weight, generator=generator("cpu", seed, "init", name))
        return weight

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.input_size}, {self.hidden_size}"
