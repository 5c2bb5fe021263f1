"""The probes that look at one step of a training: what each is given, and what becomes of what it sees."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from normcore.curves import Curves
from normcore.learner import Learner
from normcore.probes.footprints import no_footprints
from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Probe, Watching
from normcore.records import Reading, Remark
from normcore.spec import JobSpec

OTHER_COLUMNS = {"step", "kind", "layers", "scalars", "facts"}
"""What else stands in the file of a probe's readings, see `normcore.probes.archive.pack`."""


@dataclass(slots=True, eq=False)
class Instrument:
    """A probe of a training, and what it has cost."""

    spec: Any
    probe: Probe
    spent_s: float = 0.0
    last_s: float | None = None
    failed: bool = False
    first: Reading | None = None
    """Its first reading, which the others must be like."""


@dataclass(slots=True)
class Sitting:
    """The probes that look at one step.

    Attributes:
        seen: What they saw, and which of them failed.
    """

    spec: JobSpec
    learner: Learner
    curves: Curves
    make_ready: Callable[[], None]
    step: int
    due: list[Instrument]
    seen: list[Reading | Remark]
    others: Mapping[str, Mapping[str, Tensor]]
    _remembered: list[Tensor] = field(init=False)
    _before: list[Tensor] = field(default_factory=list)
    _gradient: tuple[Tensor | None, ...] = ()

    def __post_init__(self) -> None:
        """Keep what the forward pass of the step will change."""
        for each in self.due:
            each.last_s = 0.0
        with self.curves.paused():
            self._remembered = self.learner.remembered()

    def before_update(self, lr: float) -> None:
        """Ask those that see a step between its backward pass and its update."""
        model = self.learner.model
        with self.curves.paused():
            self._make_ready(*self._that_see("step"), *self._that_see("update"))
            gradient = tuple(parameter.grad for parameter in model.parameters())
            for each in self._that_see("step"):
                with self._timed([each]), no_footprints(model) as origin:
                    self._read(each, self._moment(lr, tuple(origin), gradient=gradient))
            if update := self._that_see("update"):
                # Clipping changes gradients in place, and some norms' buffers move with the update.
                with self._timed(update):
                    self._gradient = tuple(None if grad is None else grad.clone() for grad in gradient)
                    self._before = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]

    def after_update(self, lr: float) -> None:
        """Ask those that see the update, and at the last step those that see the end."""
        model = self.learner.model
        with self.curves.paused():
            for each in self._that_see("update"):
                with self._timed([each]), no_footprints(model) as updated:
                    with torch.no_grad():
                        torch._foreach_copy_([*model.parameters(), *model.buffers()], self._before)
                    before = tuple(self._before[: len(updated)])
                    self._read(each, self._moment(lr, before, gradient=self._gradient, updated=tuple(updated)))
            self._before, self._gradient = [], ()
            for each in self._that_see("end"):
                if isinstance(each.probe, Watching):
                    with self._timed([each]), self._attempt(each):
                        each.probe.watch(self.step, model)
            ending = self._that_see("end") if self.step == self.spec.num_steps else []
            if ending and not self.learner.diverged() and self.learner.finite():
                self._make_ready(*ending)
                for each in ending:
                    with self._timed([each]), no_footprints(model) as last:
                        self._read(each, self._moment(lr, tuple(last)))

    def _that_see(self, what: str) -> list[Instrument]:
        return [each for each in self.due if each.probe.sees == what and not each.failed]

    def _make_ready(self, *asked: Instrument) -> None:
        # Frozen statistics too are those of evaluation: else readings would hang on when the last one was.
        if evaluating := [each for each in asked if each.probe.evaluates or _freezes(each)]:
            with self._timed(evaluating):
                self.make_ready()

    def _moment(
        self,
        lr: float,
        origin: tuple[Tensor, ...],
        *,
        gradient: tuple[Tensor | None, ...] = (),
        updated: tuple[Tensor, ...] = (),
    ) -> Moment:
        learner, step, remembered = self.learner, self.step, self._remembered

        def plain(ahead: int = 0, dtype: torch.dtype | None = None, noise_ahead: int = 0) -> Replay:
            return learner.plain_replay(step + ahead, remembered, dtype, noise_ahead)

        replay = learner.replay(step, remembered)
        parameters = (origin, gradient, updated)
        rest = (self.spec.seed, learner.ranks, learner.anew)
        return Moment(step, lr, learner.model, replay, plain, *parameters, *rest, self.others)

    def _read(self, each: Instrument, moment: Moment) -> None:
        seen: list[Reading] = []
        with self._attempt(each):
            seen.append(checked(each.probe.read(moment), each))
        if not each.failed:
            each.first = each.first or seen[0]
            self.seen += seen

    @contextmanager
    def _attempt(self, each: Instrument) -> Iterator[None]:
        """A scope whose errors become a remark: whatever a probe raises, the training goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            each.failed = True
            self.seen.append(failure(each, self.step, error))
        # On all devices or on none: what it asks for next needs all of them.
        elsewhere = int(self.learner.ranks.total(torch.tensor(int(each.failed))))
        if elsewhere and not each.failed:
            each.failed = True
            self.seen.append(failure(each, self.step, RuntimeError("an error on another device")))

    @contextmanager
    def _timed(self, those: list[Instrument]) -> Iterator[None]:
        """A scope whose time is that of these, each an equal part."""
        began = self.curves.now()
        yield
        took = (self.curves.now() - began) / len(those)
        for each in those:
            each.spent_s += took
            each.last_s = (each.last_s or 0.0) + took


def _freezes(each: Instrument) -> bool:
    return getattr(each.spec, "bn_mode", "batch") == "frozen"


def checked(reading: Reading, each: Instrument) -> Reading:
    """A reading that can be kept beside those before it, without scalars that are not finite.

    Raises:
        ValueError: It is of another probe, has arrays, layers or facts unlike those before, or has names that its file
            cannot tell apart.
    """
    kind, arrays = each.probe.kind, {name: tuple(map(float, values)) for name, values in reading.arrays.items()}
    if reading.probe != kind:
        raise ValueError(f"a reading must be of the probe that took it, got one of {reading.probe} from {kind}")
    if twice := sorted(arrays.keys() & (reading.scalars.keys() | OTHER_COLUMNS)):
        raise ValueError(
            f"an array must have a name of its own, got {twice[0]}, which is a scalar or a column of "
            f"the file of readings; rename it"
        )
    scalars = {name: float(value) for name, value in reading.scalars.items() if isfinite(value)}
    reading = replace(reading, scalars=scalars, arrays=arrays)
    if each.first is not None and (ours := _form(reading)) != (theirs := _form(each.first)):
        unlike = next(name for name in ours if ours[name] != theirs[name])
        raise ValueError(
            f"all readings of a training must have the same {unlike}, got {theirs[unlike]} at step {each.first.step} "
            f"and {ours[unlike]} at step {reading.step}"
        )
    return reading


def _form(reading: Reading) -> dict[str, Any]:
    """What all readings of a probe in a training share."""
    lengths = {name: len(values) for name, values in reading.arrays.items()}
    return {"lengths of arrays": lengths, "layers": tuple(reading.layers), "facts": dict(reading.facts)}


def failure(each: Instrument, step: int, error: Exception, what: str = "failed and is asked no more") -> Remark:
    """What a reader is told of a probe that raised."""
    # Without NUL, which Postgres keeps in no text.
    said = " ".join(str(error).replace("\0", " ").split())[:300]
    place = "".join(f" ({frame.name}, line {frame.lineno})" for frame in traceback.extract_tb(error.__traceback__)[-1:])
    return Remark(step, f"probe-{each.probe.kind}-failed", f"the probe {what}: {type(error).__name__}: {said}{place}")
