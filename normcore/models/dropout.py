"""Dropout (Srivastava et al. 2014, JMLR 15) whose every step can be drawn again."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from normcore.noise.noise import Drawing

UNKNOWN = -1
"""No seed of a stream, which are not negative."""


class Dropout(Drawing):
    """Sets each value to zero with probability p in training, and makes up for it; the identity in evaluation.

        y_i = m_i x_i / (1 - p)        m_i ~ Bernoulli(1 - p)

    So E y = x and Var y = (Var x + p (E x)^2) / (1 - p): a batch norm behind it gathers a larger variance than
    evaluation gives it (Li et al. 2018, arXiv:1801.05134, "variance shift"), which is why `recompute_statistics`
    silences dropout as it silences noise. torch's dropout draws from the global generator; this one from its step's own
    seed (see `Drawing`), so a probe may replay a step, and a resumed training draws what an uninterrupted one would.

    Costs one random number per value and two multiplications; the backward pass keeps m in the dtype of x. All
    precisions drop the same values. They are drawn in the order of memory: the same net in another memory format drops
    others. Under torch.compile the drawing is one opaque operator, and no step compiles anew.

    Args:
        p: Probability of a zero, 0 <= p < 1.

    Example:
        >>> from normcore.noise.noise import start_step
        >>> dropout, x = Dropout(0.75), torch.ones(2, 6)
        >>> start_step(dropout, seed=0, step=0)
        >>> sorted(set(dropout(x).flatten().tolist()))
        [0.0, 4.0]
        >>> bool((dropout.eval()(x) == x).all())
        True
    """

    stream: ClassVar[str] = "dropout"

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        # A compiled graph takes a tensor as an argument, where a number would be part of it.
        self._seed = torch.full((), UNKNOWN, device="cpu", dtype=torch.int64)

    @property
    def step_seed(self) -> int | None:
        """Where this step's draws begin; set by `start_step`."""
        seed = int(self._seed)
        return None if seed == UNKNOWN else seed

    @step_seed.setter
    def step_seed(self, seed: int | None) -> None:
        self._seed.fill_(UNKNOWN if seed is None else seed)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, *)` in its shape and dtype.

        Raises:
            RuntimeError: In training, before any `start_step`.
        """
        if not self.training:
            return x
        kept: Tensor = (_kept_in_graph if torch.compiler.is_compiling() else _kept)(x.detach(), self.p, self._seed)
        # Zeros and ones are exact in every dtype, so half inputs are rounded once.
        return x * kept.to(x.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


def _kept(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Ones where a value is kept and zeros where not, in float32."""
    kept = _buffer_like(x)
    # On the meta device, where shapes are worked out, there is no generator and nothing is drawn.
    if not x.is_meta:
        if (start := int(seed)) == UNKNOWN:
            raise RuntimeError(
                "dropout in training must know its step, got none; "
                "call normcore.noise.noise.start_step(model, seed, step) before the forward pass"
            )
        kept.uniform_(generator=torch.Generator(x.device).manual_seed(start)).ge_(p)
    return kept if _is_in_order(x) else kept.movedim(-1, 1)


def _buffer_like(x: Tensor) -> Tensor:
    # Random numbers are slower to draw into anything but contiguous memory, so a channels_last input gets its own in
    # the order of its memory, (N, *, C).
    shape = x.shape if _is_in_order(x) else (x.shape[0], *x.shape[2:], x.shape[1])
    return torch.empty(shape, device=x.device, dtype=torch.float32)


def _is_in_order(x: Tensor) -> bool:
    return x.dim() == 2 or x.is_contiguous()


_kept_in_graph = torch.library.custom_op("normcore::kept", _kept, mutates_args=())


@_kept_in_graph.register_fake
def _(x: Tensor, p: float, seed: Tensor) -> Tensor:  # noqa: ARG001 (the operator's signature)
    kept = _buffer_like(x)
    return kept if _is_in_order(x) else kept.movedim(-1, 1)
