"""The probes of a training: when each is due, and what it has seen so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

from torch import Tensor

from normcore.curves import Curves
from normcore.learner import Learner
from normcore.menu.occasions import BudgetSpec, EpochsSpec, LogSpacedSpec, is_log_spaced
from normcore.probes.probe import Watching
from normcore.records import Figure, Metrics, Point, Reading, Record, Remark
from normcore.sitting import Instrument, Sitting, failure
from normcore.snapshot import Past
from normcore.spec import JobSpec


class Instruments:
    """The probes of a training.

    Whatever a probe does, the training goes on: an error becomes a `Remark`, and that probe is asked no more, also not
    after a resume. On several devices every rank asks the same probes at the same steps, since their backward passes
    need all of them.

    Args:
        spec: The job.
        learner: Which computes it.
        curves: Whose clock they stop, and whose time a budget is a fraction of.
        make_ready: Prepares what evaluation would use, for the probes that look at it.
        others: Last weights of other jobs, for the probes that name them.

    Attributes:
        readings: All so far, by step.
    """

    def __init__(
        self,
        spec: JobSpec,
        learner: Learner,
        curves: Curves,
        make_ready: Callable[[], None],
        others: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._spec, self._learner, self._curves, self._make_ready = spec, learner, curves, make_ready
        self._others = {} if others is None else others
        self._all = [Instrument(each, each.part()(**each.knobs())) for each in spec.probes]
        self._budgeted = any(isinstance(getattr(each, "every", None), BudgetSpec) for each in spec.probes)
        self._sitting: Sitting | None = None
        self._unsaid: list[Remark] = []
        self._step = self._steps = 0
        self.readings: list[Reading] = []

    def attend(self, step: int) -> None:
        """Begin a step, before its forward pass."""
        self._step = step
        due = [each for each in self._all if not each.failed and self._is_due(each, step)]
        if self._budgeted:
            # The clock of the first rank decides for all.
            said = self._learner.ranks.agree(*(each in due for each in self._all))
            due = [each for each, is_due in zip(self._all, said, strict=True) if is_due]
        unsaid, self._unsaid = self._unsaid, []
        parts = (self._spec, self._learner, self._curves, self._make_ready, step)
        self._sitting = Sitting(*parts, due, [*unsaid], self._others) if due or unsaid else None
        self._steps += 1

    def before_update(self, lr: float) -> None:
        """Between the backward pass of the step and its update."""
        if self._sitting is not None:
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
        if each.probe.sees == "end" and step == self._spec.num_steps:
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
                next_s = self._stated_s(each, trained_s) if each.last_s is None else each.last_s
                return each.spent_s + next_s <= fraction * trained_s
            case _:
                return False

    def _stated_s(self, each: Instrument, trained_s: float) -> float:
        """What a first reading will take, by the cost that the probe states and the time of the steps so far."""
        if self._steps == 0:
            return inf
        try:
            # A probe that reads at the end only watches until then.
            return 0.0 if each.probe.sees == "end" else each.probe.cost(self._learner.model) * trained_s / self._steps
        except Exception as error:  # noqa: BLE001 - whatever a probe raises, the training goes on
            self._give_up(each, error)
            return inf

    def figures(self) -> Iterator[Figure | Remark]:
        """A drawing of the readings of each probe that has any."""
        yield from self._unsaid
        for each in self._all:
            if mine := [reading for reading in self.readings if reading.probe == each.probe.kind]:
                try:
                    drawing = Figure(each.probe.kind, each.spec.drawing()({"": mine}))
                except Exception as error:  # noqa: BLE001 - a drawing is no reason to lose a training
                    # It is said once of a probe that it failed.
                    if not each.failed:
                        yield failure(each, mine[-1].step, error, "could not draw its figure")
                else:
                    yield drawing

    def past(self) -> Past:
        """What a snapshot must hold of them; of probes that watch the tensors themselves, by `<kind>.<name>`."""
        watched: dict[str, Tensor] = {}
        for each in self._all:
            if isinstance(each.probe, Watching) and not each.failed:
                try:
                    watched |= {f"{each.probe.kind}.{name}": value for name, value in each.probe.state().items()}
                except Exception as error:  # noqa: BLE001 - whatever a probe raises, the training goes on
                    self._give_up(each, error)
        failed = tuple(each.probe.kind for each in self._all if each.failed)
        return Past(self.readings, watched=watched, failed=failed)

    def restore(self, past: Past) -> None:
        """Go on from what a snapshot holds."""
        self.readings = still_true(past.readings, self._spec)
        for each in self._all:
            each.first = next((reading for reading in self.readings if reading.probe == each.probe.kind), None)
            each.failed = each.probe.kind in past.failed
            if isinstance(each.probe, Watching) and not each.failed:
                prefix = f"{each.probe.kind}."
                mine = {
                    name.removeprefix(prefix): value for name, value in past.watched.items() if name.startswith(prefix)
                }
                try:
                    each.probe.restore(mine)
                except Exception as error:  # noqa: BLE001 - whatever a probe raises, the training goes on
                    self._give_up(each, error)

    def _give_up(self, each: Instrument, error: Exception) -> None:
        """Ask a probe no more, and say so at the next step."""
        each.failed = True
        self._unsaid.append(failure(each, self._step, error))


def still_true(readings: Iterable[Reading], spec: JobSpec) -> list[Reading]:
    """Readings without those of the end of a training that now is to be longer: there will be another end."""
    ending = {probe.kind for probe in spec.probes if probe.part().sees == "end"}
    return [reading for reading in readings if reading.probe not in ending or reading.step == spec.num_steps]
