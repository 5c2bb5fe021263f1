"""A job's states, the events that move it, and who wins when an event meets a wish. Torch-free and SQL-free.

```
queued -> dispatched -> running -> succeeded | diverged | failed | cancelled        and paused, beside the way
```
Cancel, pause and kill are wishes (`Desired`) beside the state, not states.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    """Waits for a free worker."""
    DISPATCHED = "dispatched"
    """A message is on its way to a worker; none has claimed the job yet."""
    RUNNING = "running"
    """One worker holds the lease, under one token."""
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    DIVERGED = "diverged"
    """The loss left the finite numbers: a result, not an error."""
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.DIVERGED, State.FAILED, State.CANCELLED})
"""States that a job never leaves."""


class Desired(StrEnum):
    """What a person wishes for a job. Cancel and kill are never taken back; kill gives no time to stop."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"
    KILL = "kill"


class Event(StrEnum):
    """What moves a job from one state to another."""

    DISPATCHED = "dispatched"
    UNCLAIMED = "unclaimed"
    """No worker claimed the dispatch in time: it is made again."""
    CLAIMED = "claimed"
    RELEASED = "released"
    """The worker gave the job back in good order (drain): nothing is charged."""
    LOST = "lost"
    """The worker or its trainer died or fell silent: one infrastructure retry is charged."""
    EXHAUSTED = "exhausted"
    """Lost once more than the infrastructure retries allow."""
    PAUSED = "paused"
    RESUMED = "resumed"
    SUCCEEDED = "succeeded"
    DIVERGED = "diverged"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Rule:
    """The states an event is legal in, and the one it leads to."""

    sources: frozenset[State]
    target: State


def _rule(target: State, *sources: State) -> Rule:
    return Rule(frozenset(sources), target)


RULES: dict[Event, Rule] = {
    Event.DISPATCHED: _rule(State.DISPATCHED, State.QUEUED),
    Event.UNCLAIMED: _rule(State.QUEUED, State.DISPATCHED),
    Event.CLAIMED: _rule(State.RUNNING, State.DISPATCHED),
    Event.RELEASED: _rule(State.QUEUED, State.RUNNING),
    Event.LOST: _rule(State.QUEUED, State.RUNNING),
    Event.EXHAUSTED: _rule(State.FAILED, State.RUNNING),
    Event.PAUSED: _rule(State.PAUSED, State.QUEUED, State.DISPATCHED, State.RUNNING),
    Event.RESUMED: _rule(State.QUEUED, State.PAUSED),
    Event.SUCCEEDED: _rule(State.SUCCEEDED, State.RUNNING),
    Event.DIVERGED: _rule(State.DIVERGED, State.RUNNING),
    Event.FAILED: _rule(State.FAILED, State.RUNNING),
    Event.CANCELLED: _rule(State.CANCELLED, State.QUEUED, State.DISPATCHED, State.RUNNING, State.PAUSED),
}
"""The whole transition table: what is not in it does not happen."""

ENDINGS = frozenset(
    {Event.SUCCEEDED, Event.DIVERGED, Event.FAILED, Event.CANCELLED, Event.PAUSED, Event.RELEASED, Event.LOST}
)
"""What a worker may report at the end of an attempt."""

MLFLOW_STATUS: dict[State, str] = {
    State.QUEUED: "SCHEDULED",
    State.DISPATCHED: "SCHEDULED",
    State.PAUSED: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.SUCCEEDED: "FINISHED",
    State.DIVERGED: "FINISHED",
    State.FAILED: "FAILED",
    State.CANCELLED: "KILLED",
}
"""The status of the MLflow run that mirrors a job."""


def next_state(state: State, event: Event) -> State | None:
    """The state an event leads to, or None where it is not legal.

    Example:
        >>> next_state(State.DISPATCHED, Event.CLAIMED)
        <State.RUNNING: 'running'>
        >>> next_state(State.SUCCEEDED, Event.CANCELLED) is None
        True
    """
    rule = RULES[event]
    return rule.target if state in rule.sources else None


def settle(event: Event, desired: Desired, *, retries_left: bool) -> Event:
    """What the end of an attempt means, given what the person wishes by then and what is left of the retries.

    A result that was reached stands, whatever was wished meanwhile: a success beats a cancel that came too late. An
    attempt that ended without a result follows the wish, so that a cancelled job is not tried again.

    Example:
        >>> settle(Event.LOST, Desired.RUN, retries_left=True)
        <Event.LOST: 'lost'>
        >>> settle(Event.LOST, Desired.CANCEL, retries_left=True)
        <Event.CANCELLED: 'cancelled'>
        >>> settle(Event.SUCCEEDED, Desired.CANCEL, retries_left=True)
        <Event.SUCCEEDED: 'succeeded'>
    """
    if event not in {Event.LOST, Event.RELEASED, Event.PAUSED}:
        return event
    if desired in {Desired.CANCEL, Desired.KILL}:
        return Event.CANCELLED
    if desired is Desired.PAUSE:
        return Event.PAUSED
    if event is Event.LOST:
        return Event.LOST if retries_left else Event.EXHAUSTED
    return Event.RELEASED
