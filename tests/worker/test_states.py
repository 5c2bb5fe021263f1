import itertools

import pytest

from worker.states import ENDINGS, MLFLOW_STATUS, RULES, TERMINAL, Desired, Event, State, next_state, settle

# The way of a job, drawn once more by hand: from each state, what may happen and where it leads.
DRAWN = {
    State.QUEUED: {"dispatched": "dispatched", "paused": "paused", "cancelled": "cancelled"},
    State.DISPATCHED: {"claimed": "running", "unclaimed": "queued", "paused": "paused", "cancelled": "cancelled"},
    State.RUNNING: {
        "succeeded": "succeeded",
        "diverged": "diverged",
        "failed": "failed",
        "exhausted": "failed",
        "cancelled": "cancelled",
        "paused": "paused",
        "released": "queued",
        "lost": "queued",
    },
    State.PAUSED: {"resumed": "queued", "cancelled": "cancelled"},
    State.SUCCEEDED: {},
    State.DIVERGED: {},
    State.FAILED: {},
    State.CANCELLED: {},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state_leads_where_it_is_drawn_or_nowhere(state, event):
    assert next_state(state, event) == DRAWN[state].get(event.value)


def test_the_terminal_states_are_those_without_a_way_out():
    assert {state for state, ways in DRAWN.items() if not ways} == TERMINAL


def test_every_state_can_be_reached_from_queued_and_every_other_one_can_end():
    reached, seen = {State.QUEUED}, set()
    while reached - seen:
        state = (reached - seen).pop()
        seen.add(state)
        reached |= {State(target) for target in DRAWN[state].values()}
    assert reached == set(State)
    assert all(next_state(state, Event.CANCELLED) is State.CANCELLED for state in set(State) - TERMINAL)


def test_whatever_a_worker_may_report_is_legal_while_running():
    assert all(next_state(State.RUNNING, event) is not None for event in ENDINGS)


@pytest.mark.parametrize("event", sorted({Event.SUCCEEDED, Event.DIVERGED, Event.FAILED, Event.CANCELLED}))
@pytest.mark.parametrize("desired", Desired)
def test_a_result_stands_whatever_is_wished(event, desired):
    assert settle(event, desired, retries_left=True) is event


@pytest.mark.parametrize("retries_left", [True, False])
@pytest.mark.parametrize("event", [Event.LOST, Event.RELEASED, Event.PAUSED])
@pytest.mark.parametrize(
    ("desired", "outcome"),
    [(Desired.CANCEL, Event.CANCELLED), (Desired.KILL, Event.CANCELLED), (Desired.PAUSE, Event.PAUSED)],
)
def test_an_attempt_without_a_result_follows_the_wish(event, desired, outcome, retries_left):
    assert settle(event, desired, retries_left=retries_left) is outcome


def test_an_attempt_without_a_result_goes_back_to_the_queue():
    assert settle(Event.LOST, Desired.RUN, retries_left=True) is Event.LOST
    assert settle(Event.LOST, Desired.RUN, retries_left=False) is Event.EXHAUSTED
    assert settle(Event.RELEASED, Desired.RUN, retries_left=False) is Event.RELEASED
    assert settle(Event.PAUSED, Desired.RUN, retries_left=False) is Event.RELEASED, "resumed before it had stopped"


@pytest.mark.parametrize(("event", "desired"), list(itertools.product(sorted(ENDINGS), Desired)))
@pytest.mark.parametrize("retries_left", [True, False])
def test_every_end_of_an_attempt_settles_into_something_legal(event, desired, retries_left):
    assert State.RUNNING in RULES[settle(event, desired, retries_left=retries_left)].sources


def test_mlflow_shows_every_state_and_only_its_own_words():
    assert set(MLFLOW_STATUS) == set(State)
    assert set(MLFLOW_STATUS.values()) == {"SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"}
    ended = {"FINISHED", "FAILED", "KILLED"}
    assert {state for state, status in MLFLOW_STATUS.items() if status in ended} == TERMINAL
