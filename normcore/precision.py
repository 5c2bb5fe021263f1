"""What a training computes in, and what keeps half precision from losing small gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtypes of a training.

    Example:
        >>> PRECISIONS["bfloat16"].parameters, PRECISIONS["bfloat16"].compute
        (torch.float32, torch.bfloat16)
    """

    parameters: torch.dtype
    """Of parameters and inputs."""
    compute: torch.dtype
    """Of matrix products and convolutions; where it is not that of the parameters, under autocast."""
    tf32: bool = False
    """Whether a GPU may round the factors of float32 products to 10 bits."""

    @property
    def autocasts(self) -> bool:
        """Whether weights are cast for the products."""
        return self.compute is not self.parameters

    def scope(self, device: torch.device) -> AbstractContextManager[object]:
        """Where forward passes run; it may be entered again and again."""
        return torch.autocast(device.type, self.compute) if self.autocasts else nullcontext()

    def scaler(self, device: torch.device) -> LossScaler | None:
        """What keeps gradients within the exponents of float16, the only dtype whose exponents are too few."""
        return LossScaler(device) if self.compute is torch.float16 else None


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32),
    "tf32": Precision(torch.float32, torch.float32, tf32=True),
    "bfloat16": Precision(torch.float32, torch.bfloat16),
    "float16": Precision(torch.float32, torch.float16),
    "float64": Precision(torch.float64, torch.float64),
}
"""By the spec's name."""


class LossScaler:
    """Multiplies a loss before its backward pass, and divides the gradients after it (Micikevicius et al. 2018, 3.2).

    Float16 holds nothing below 6e-8, where many gradients lie. The scale starts at 2^16; it is halved when a gradient
    overflows, whose update is not made, and doubled after 2000 updates that were. The rule and the kernels are those of
    `torch.amp.GradScaler`; but the scale stays on the device, so no step waits for it, and gradients are divided as
    soon as they are there, so that whoever looks at them sees those of the loss.

    Example:
        >>> scaler = LossScaler(torch.device("cpu"))
        >>> scaler.advance(torch.ones(()), unless=torch.zeros(()))
        >>> scaler.scale.item(), scaler.skipped.item()
        (32768.0, 1.0)
    """

    FIRST, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(self.FIRST, device=device)
        self.skipped = torch.zeros((), device=device)
        """Updates that were not made because a gradient overflowed."""
        self._tracker = torch.zeros((), dtype=torch.int32, device=device)

    def state(self) -> dict[str, Tensor]:
        """What changes, the tensors themselves."""
        return {"loss_scale": self.scale, "skipped_steps": self.skipped, "growth_tracker": self._tracker}

    @torch.no_grad()
    def advance(self, overflown: Tensor, *, unless: Tensor) -> None:
        """Move the scale after a step.

        Args:
            overflown: 1 where a gradient was not finite, else 0.
            unless: 1 where the training has diverged: its steps are no matter of the scale. Else 0.
        """
        self.skipped.add_(overflown * (1 - unless))
        torch._amp_update_scale_(self.scale, self._tracker, overflown, self.GROWTH, self.BACKOFF, self.INTERVAL)
