"""What every norm inside a recurrence owes: it is told the time step, and which samples are still real then."""

from __future__ import annotations

from torch import Tensor, nn


class TimeNorm(nn.Module):
    """A norm of the values of consecutive time steps: `(N, T, C)` to `(N, T, C)`, float32 or better for half inputs."""

    num_features: int
    """C, the values of a sample at a time step."""

    def forward(self, x: Tensor, *, time: int, real: Tensor | None) -> Tensor:
        """The normalized values.

        Args:
            x: `(N, T, C)`.
            time: The time step of `x[:, 0]`; the first of a sequence is 0.
            real: `(N, T)`, False where a sample is padding; None where all are real.
        """
        raise NotImplementedError
