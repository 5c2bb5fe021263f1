"""The probes of a training: when each is due, what it is given, and what becomes of what it sees."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from normcore.curves import Curves
from normcore.learner import Learner
from normcore.menu.occasions import BudgetSpec, EpochsSpec, LogSpacedSpec, is_log_spaced
from normcore.probes.footprints import no_footprints
from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Probe, Watching
from normcore.records import Figure, Metrics, Point, Reading, Record, Remark
from normcore.spec import JobSpec


@dataclass(slots=True, eq=False)
class Instrument:
    """A probe of a training, and what it has cost."""

    spec: Any
    probe: Probe
    spent_s: float = 0.0
    last_s: float | None = None
    failed: bool = False


class Instruments:
    """The probes of a training.

    Whatever a probe does, the training goes on: an error becomes a `Remark`, and that probe is asked no more. On
    several devices every rank asks the same probes at the same steps, since their backward passes need all of them.

    Args:
        spec: The job.
        learner: Which computes it.
        curves: Whose clock they stop, and whose time a budget is a fraction of.
        make_ready: Prepares what evaluation would use, for the probes that look at it.

    Attributes:
        readings: All so far, by step.
    """

    def __init__(self, spec: JobSpec, learner: Learner, curves: Curves, make_ready: Callable[[], None]) -> None:
        self._spec, self._learner, self._curves, self._make_ready = spec, learner, curves, make_ready
        self._all = [Instrument(each, each.part()(**each.knobs())) for each in spec.probes]
        self._budgeted = any(isinstance(getattr(each, "every", None), BudgetSpec) for each in spec.probes)
        self._sitting: Sitting | None = None
        self.readings: list[Reading] = []

    def attend(self, step: int) -> None:
        """Begin a step, before its forward pass."""
        due = [each for each in self._all if not each.failed and self._is_due(each, step)]
        if self._budgeted:
            # The clock of the first rank decides for all.
            said = self._learner.ranks.agree(*(each in due for each in self._all))
            due = [each for each, is_due in zip(self._all, said, strict=True) if is_due]
        self._sitting = Sitting(self._spec, self._learner, self._curves, step, due) if due else None

    def before_update(self, lr: float) -> None:
        """Between the backward pass of the step and its update."""
        if self._sitting is not None:
            if self._sitting.evaluates:
                with self._curves.paused():
                    self._make_ready()
            self._sitting.before_update(lr)

    def after_update(self, lr: float) -> None:
        """After the update of the step."""
        if self._sitting is not None:
            self._sitting.after_update(lr)

    @property
    def seen(self) -> list[Reading | Remark]:
        """What they saw at this step, and which of them failed."""
        return [] if self._sitting is None else self._sitting.seen

    def keep(self) -> Iterator[Record]:
        """What they saw at this step becomes part of the training: records, with the points of the curves."""
        for record in self.seen:
            yield record
            if isinstance(record, Reading):
                self.readings.append(record)
                points = (Point(f"{record.probe}/{key}", record.step, value) for key, value in record.scalars.items())
                yield Metrics(record.step, tuple(points))

    def _is_due(self, each: Instrument, step: int) -> bool:
        last = step == self._spec.num_steps
        if each.probe.sees == "end" and last:
            return True
        match getattr(each.spec, "every", None):
            case int(every):
                return step % every == 0
            case EpochsSpec(every=every):
                return step % (every * self._spec.steps_per_epoch) == 0
            case LogSpacedSpec(per_decade=per_decade):
                return is_log_spaced(step, per_decade)
            case BudgetSpec(fraction=fraction):
                trained_s = self._curves.trained_s
                stated_s = each.probe.cost(self._learner.model) * trained_s / max(1, step - 1)
                next_s = stated_s if each.last_s is None else each.last_s
                return step > 1 and each.spent_s + next_s <= fraction * trained_s
            case _:
                return False

    def figures(self) -> Iterator[Figure | Remark]:
        """A drawing of the readings of each probe that has any."""
        for each in self._all:
            if mine := [reading for reading in self.readings if reading.probe == each.probe.kind]:
                try:
                    yield Figure(each.probe.kind, each.spec.drawing()({"": mine}))
                except Exception as error:  # noqa: BLE001 - a drawing is no reason to lose a training
                    yield _failure(each, mine[-1].step, error, "could not draw its figure")

    def state(self) -> dict[str, Tensor]:
        """What probes have watched, for a snapshot: the tensors themselves, by `<kind>.<name>`."""
        return {
            f"{each.probe.kind}.{name}": value
            for each in self._all
            if isinstance(each.probe, Watching)
            for name, value in each.probe.state().items()
        }

    def restore(self, state: Mapping[str, Tensor], readings: list[Reading]) -> None:
        """Go on from what a snapshot holds."""
        self.readings = readings
        for each in self._all:
            if isinstance(each.probe, Watching):
                prefix = f"{each.probe.kind}."
                mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
                each.probe.restore(mine)


@dataclass(slots=True)
class Sitting:
    """The probes that look at one step.

    Attributes:
        seen: What they saw, and which of them failed.
    """

    spec: JobSpec
    learner: Learner
    curves: Curves
    step: int
    due: list[Instrument]
    seen: list[Reading | Remark] = field(default_factory=list)
    _remembered: list[Tensor] = field(init=False)
    _before: list[Tensor] = field(default_factory=list)
    _gradient: tuple[Tensor | None, ...] = ()

    def __post_init__(self) -> None:
        """Keep what the forward pass of the step will change."""
        self._remembered = self.learner.remembered()

    @property
    def evaluates(self) -> bool:
        """Whether one of them looks at what evaluation would use."""
        return any(each.probe.evaluates for each in self.due)

    def before_update(self, lr: float) -> None:
        """Ask those that see a step between its backward pass and its update."""
        model = self.learner.model
        with self.curves.paused():
            gradient = tuple(parameter.grad for parameter in model.parameters())
            for each in self._that_see("step"):
                with no_footprints(model) as origin:
                    self._read(each, self._moment(lr, tuple(origin), gradient=gradient))
            if self._that_see("update"):
                # Clipping changes gradients in place, and some norms' buffers move with the update.
                self._gradient = tuple(None if grad is None else grad.clone() for grad in gradient)
                self._before = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]

    def after_update(self, lr: float) -> None:
        """Ask those that see the update, and at the last step those that see the end."""
        model = self.learner.model
        with self.curves.paused():
            for each in self._that_see("update"):
                with no_footprints(model) as updated:
                    with torch.no_grad():
                        torch._foreach_copy_([*model.parameters(), *model.buffers()], self._before)
                    before = tuple(self._before[: len(updated)])
                    self._read(each, self._moment(lr, before, gradient=self._gradient, updated=tuple(updated)))
            self._before, self._gradient = [], ()
            for each in self._that_see("end"):
                if isinstance(each.probe, Watching):
                    each.probe.watch(self.step, model)
                if self.step == self.spec.num_steps and not self.learner.diverged() and self.learner.finite():
                    with no_footprints(model) as last:
                        self._read(each, self._moment(lr, tuple(last)))

    def _that_see(self, what: str) -> list[Instrument]:
        return [each for each in self.due if each.probe.sees == what and not each.failed]

    def _moment(
        self,
        lr: float,
        origin: tuple[Tensor, ...],
        *,
        gradient: tuple[Tensor | None, ...] = (),
        updated: tuple[Tensor, ...] = (),
    ) -> Moment:
        learner, step, remembered = self.learner, self.step, self._remembered

        def plain(ahead: int = 0, dtype: torch.dtype | None = None) -> Replay:
            return learner.plain_replay(step + ahead, remembered, dtype)

        replay = learner.replay(step, remembered)
        parameters = (origin, gradient, updated)
        rest = (self.spec.seed, learner.ranks, learner.anew)
        return Moment(step, lr, learner.model, replay, plain, *parameters, *rest)

    def _read(self, each: Instrument, moment: Moment) -> None:
        began = self.curves.now()
        try:
            self.seen.append(each.probe.read(moment))
        except Exception as error:  # noqa: BLE001 - whatever a probe raises, the training goes on
            each.failed = True
            self.seen.append(_failure(each, self.step, error, "failed and is asked no more"))
        each.last_s = self.curves.now() - began
        each.spent_s += each.last_s


def _failure(each: Instrument, step: int, error: Exception, what: str) -> Remark:
    said = " ".join(str(error).split())[:300]
    place = "".join(f" ({frame.name}, line {frame.lineno})" for frame in traceback.extract_tb(error.__traceback__)[-1:])
    return Remark(step, f"probe-{each.probe.kind}-failed", f"the probe {what}: {type(error).__name__}: {said}{place}")
