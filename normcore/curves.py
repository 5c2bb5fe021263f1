"""From what every step leaves on the device to the points of the training curves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from normcore.memory import peak_mib
from normcore.objective import hits
from normcore.ranks import ALONE, Ranks
from normcore.records import Point

MOST_STEPS = 256
"""Steps after which a window is full: bounds the memory that waiting outputs take."""

LONGEST_S = 0.25
"""Seconds after which a window is full: how far behind the training its curves may be."""


@dataclass(frozen=True, slots=True)
class Window:
    """The points of the steps since the last flush, up to the first whose loss is not finite."""

    step: int
    """The last step with a finite loss."""
    points: tuple[Point, ...]
    bad_loss: float | None
    """The loss of the step after, where it is not finite."""


class Curves:
    """Keeps the losses and outputs of a window of steps as tensors, and reads them in one go.

    Reading a value from a GPU waits until it has done everything before; once per step this keeps the device idle. So a
    step only puts tensors into lists (about a microsecond), and a flush, every 256 steps or 0.25 s, stacks them.

    Points of a step k are `train/loss` and, of a classification, `train/accuracy`, of the batch of update k before that
    update, and `train/lr`, which it used; at every `record_every`-th step. Points of a flush are `time/step_ms`, the
    mean time of a step without probes, evaluation and whoever reads the records, `memory/peak_mib`, and with probes
    `probe/overhead_fraction`, their time over that of the steps, since the training began or was resumed.

    Args:
        record_every: Steps between two points.
        device: Where the training computes.
        classifies: Whether there is an accuracy.
        ranks: Whose outputs an accuracy counts; all flush at the same steps.
    """

    def __init__(
        self, record_every: int, device: torch.device, *, classifies: bool = True, ranks: Ranks = ALONE
    ) -> None:
        self._ranks = ranks
        self._record_every, self._device, self._classifies = record_every, device, classifies
        self._losses: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._recorded: list[tuple[int, float]] = []
        self._flushed_s = self._paused_s = 0.0
        self.resume_clock()

    def remember(self, step: int, lr: float, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Keep what step number `step` computed; the tensors must not change any more."""
        self._losses.append(loss.detach())
        if step % self._record_every == 0:
            self._recorded.append((step, lr))
            if self._classifies:
                self._outputs.append(outputs.detach())
                self._labels.append(labels)

    def resume_clock(self) -> None:
        """Time counts for the steps from here on, after something else has used it."""
        self._since = perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A scope of probes, whose time does not count as that of a step."""
        # On a GPU steps are queued: those before the scope shall not be counted as its time.
        began = self.now()
        yield
        took = self.now() - began
        self._since += took
        self._paused_s += took

    def now(self) -> float:
        """Seconds on some clock, when the device has done everything so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()

    @property
    def trained_s(self) -> float:
        """Seconds that steps have taken, without the scopes in which the clock was paused."""
        return self._flushed_s + perf_counter() - self._since

    @property
    def full(self) -> bool:
        """Whether it is time to flush."""
        return len(self._losses) >= MOST_STEPS or perf_counter() - self._since >= LONGEST_S

    def flush(self, step: int) -> Window:
        """The points of all steps since the last flush, of which `step` is the newest."""
        losses: list[float] = torch.stack(self._losses).tolist()
        took = perf_counter() - self._since
        self._flushed_s += took
        step_ms = 1000 * took / len(losses)
        first = step - len(losses) + 1
        bad = next((index for index, loss in enumerate(losses) if not isfinite(loss)), None)
        points: list[Point] = []
        for (recorded, lr), accuracy in zip(self._recorded, self._accuracies(), strict=True):
            if bad is None or recorded < first + bad:
                points.append(Point("train/loss", recorded, losses[recorded - first]))
                if accuracy is not None:
                    points.append(Point("train/accuracy", recorded, accuracy))
                points.append(Point("train/lr", recorded, lr))
        if bad is None:
            points.append(Point("time/step_ms", step, step_ms))
            points.append(Point("memory/peak_mib", step, peak_mib(self._device)))
            if self._paused_s > 0 and self._flushed_s > 0:
                points.append(Point("probe/overhead_fraction", step, self._paused_s / self._flushed_s))
        for kept in (self._losses, self._outputs, self._labels, self._recorded):
            kept.clear()
        return Window(step if bad is None else first + bad - 1, tuple(points), None if bad is None else losses[bad])

    def _accuracies(self) -> list[float] | list[None]:
        if not self._outputs:
            return [None] * len(self._recorded)
        labels = torch.stack(self._labels)
        correct: list[int] = self._ranks.total(hits(torch.stack(self._outputs), labels).sum(1)).tolist()
        return [count / (labels.shape[1] * self._ranks.count) for count in correct]
