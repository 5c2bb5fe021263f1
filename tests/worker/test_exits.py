import signal

import pytest

from normcore.records import Diverged, Finished, Metrics, Stopped
from worker.exits import Exit, ending_of
from worker.states import Event
from worker.wire import Failed

FAILED = Failed("some-code", "what went wrong")


@pytest.mark.parametrize(
    ("code", "last", "event", "reason"),
    [
        (Exit.DONE, Finished(5), Event.SUCCEEDED, None),
        (Exit.DIVERGED, Diverged(5, float("inf"), "fc"), Event.DIVERGED, "diverged"),
        (Exit.STOPPED, Stopped(5), Event.RELEASED, None),
        (Exit.STOPPED, None, Event.RELEASED, None),
        (Exit.SPEC, FAILED, Event.FAILED, "some-code"),
        (Exit.EXCEPTION, FAILED, Event.FAILED, "some-code"),
        (Exit.OUT_OF_MEMORY, FAILED, Event.FAILED, "some-code"),
        (Exit.DEVICE, FAILED, Event.LOST, "some-code"),
        (Exit.IO, FAILED, Event.LOST, "some-code"),
        # Without a result an exit code means nothing, and a result means nothing to whoever was killed.
        (Exit.DONE, None, Event.LOST, "trainer-lost"),
        (Exit.DONE, Metrics(5, ()), Event.LOST, "trainer-lost"),
        (Exit.DIVERGED, None, Event.LOST, "trainer-lost"),
        (-signal.SIGKILL, Finished(5), Event.LOST, "trainer-lost"),
        (-signal.SIGSEGV, None, Event.LOST, "trainer-lost"),
        (1, None, Event.LOST, "trainer-lost"),
    ],
)
def test_how_a_trainer_ended(code, last, event, reason):
    ending = ending_of(code, last)
    assert (ending.event, ending.reason and ending.reason.code) == (event, reason)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(-signal.SIGKILL, "host-out-of-memory"), (-signal.SIGSEGV, "trainer-lost"), (1, "trainer-lost")],
)
def test_a_kill_by_the_kernel_is_told_from_other_deaths(code, reason):
    ending = ending_of(code, None, kernel_killed=True)
    assert (ending.event, ending.reason.code) == (Event.LOST, reason)


@pytest.mark.parametrize(
    ("code", "last", "says"),
    [
        (Exit.DIVERGED, Diverged(5, float("inf"), "fc"), "got inf at step 5 (first in fc); lower the lr or add a norm"),
        (Exit.DIVERGED, Diverged(5, float("nan"), None), "got nan at step 5; lower the lr"),
        (-signal.SIGSEGV, None, "a training must end by itself, got SIGSEGV; it is tried again"),
        (3, None, "got exit code 3 without a result"),
        (Exit.EXCEPTION, FAILED, "what went wrong"),
    ],
)
def test_the_reason_says_what_was_got_and_what_to_do(code, last, says):
    assert says in ending_of(code, last).reason.detail
