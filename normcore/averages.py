"""An average of a model along its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normcore.norms.norm import at_least_float32
from normcore.probes.footprints import no_footprints
from normcore.statistics.layers import running_statistics


class Averages:
    """The exponential moving average of a model's weights over its updates, with those of its running statistics.

    After t updates it is sum_s decay^(t-s) w_s / sum_s decay^(t-s): the initial weights, which were never updated, have
    no part in it, as in Adam's moments. The running statistics of norms are averaged with the same weights, since those
    of the newest weights describe other activations; other buffers (counters, vectors of spectral norm) are the
    model's. Kept in float32 or better, and an update that is not made does not count.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averages = Averages(model, 0.5)
        >>> for value in (1.0, 4.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     averages.advance(unless=torch.zeros(()))
        >>> with averages.in_place(model):
        ...     print(model.weight.item(), 'is (0.5 * 1 + 1 * 4) / 1.5')
        3.0 is (0.5 * 1 + 1 * 4) / 1.5
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._followed: dict[str, Tensor] = dict(model.named_parameters())
        for path, module in model.named_modules():
            self._followed |= {f"{path}.{name}": value for name, value in running_statistics(module).items()}
        self._values = [
            value.detach().to(at_least_float32(value.dtype), copy=True) for value in self._followed.values()
        ]
        device = self._values[0].device
        self._left = torch.ones((), dtype=torch.float64, device=device)
        """decay^t: how much of the initial weights a plain average would still hold."""

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of what they are of, and `left`; the tensors themselves."""
        return dict(zip(self._followed, self._values, strict=True)) | {"left": self._left}

    @torch.no_grad()
    def begin(self) -> None:
        """Let the averages be what the model is."""
        torch._foreach_copy_(self._values, list(self._followed.values()))

    @torch.no_grad()
    def advance(self, *, unless: Tensor) -> None:
        """Take in the model after an update, or not, where `unless` holds 1 and no update was made."""
        made = 1 - unless.double()
        self._left.mul_(1 - made * (1 - self._decay))
        weight = made * (1 - self._decay) / (1 - self._left).clamp_min(1 - self._decay)
        differences = [value.to(average.dtype) - average for value, average in self._pairs()]
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(self._values, differences)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """A scope in which the model is its average; then it is what it was."""
        with no_footprints(model):
            with torch.no_grad():
                torch._foreach_copy_(list(self._followed.values()), self._values)
            yield

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._followed.values(), self._values, strict=True)
