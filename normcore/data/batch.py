"""What a model is given at a step, and what it should answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples and their labels.

    Example:
        >>> import torch
        >>> len(Batch(torch.zeros(4, 3, 8, 8), torch.arange(4)))
        4
    """

    inputs: Tensor
    """Images `(N, C, H, W)`, sequences `(N, L, D)`, tokens `(N, L)` in int64, or vectors `(N, D)`."""
    labels: Tensor
    """Classes `(N,)` in int64, or the targets `(N, D)` of a regression."""
    mask: Tensor | None = None
    """`(N, L)` in bool, True where a token is real; none where nothing is padded."""

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, dtype: torch.dtype) -> Batch:
        """The same samples with inputs and targets in a dtype; token ids and classes stay."""
        inputs, labels = (part.to(dtype) if part.is_floating_point() else part for part in (self.inputs, self.labels))
        return Batch(inputs, labels, self.mask)

    def through(self, model: Callable[..., Tensor]) -> Tensor:
        """The outputs of a model for these samples, `(N, num_outputs)`; it is given the mask where there is one."""
        return model(self.inputs) if self.mask is None else model(self.inputs, mask=self.mask)
