import base64
import json

import pytest

from worker.book import AlreadyEnded, BadCursor, Desired, Event, IdempotencyConflict, NoSuchJob, State


def types(book, job_id):
    return [event.type for event in book.events(job_id)]


def test_an_ordered_job_waits_with_its_spec_its_name_and_its_first_event(book, spec):
    before = book.ping()
    ordered = spec(labels={"course": "6.867"}, seed=2**63 - 1)
    submission = book.submit(ordered, priority=3)
    job = submission.job
    assert submission.created
    assert (job.state, job.desired, job.priority) == (State.QUEUED, Desired.RUN, 3)
    assert (job.spec, job.name, job.num_steps, job.labels) == (ordered, ordered.name, 100, {"course": "6.867"})
    assert before - 0.01 <= job.created_at <= book.ping() + 0.01
    assert book.job(job.id) == job
    assert [(event.seq, event.type, event.state) for event in book.events(job.id)] == [(1, "submitted", State.QUEUED)]


def test_a_job_that_is_not_there_is_none(book):
    assert book.job("01a1fc11-0f3f-74b1-bca9-a1b99c90d8fd") is None
    assert (
        book.events("nothing")
        == book.metrics("nothing")
        == book.checkpoints("nothing")
        == book.attempts("nothing")
        == []
    )


def test_the_same_key_a_hundred_times_in_parallel_orders_one_job(book, spec, in_parallel):
    submissions = in_parallel(lambda _: book.submit(spec(), idempotency_key="key"), range(100))
    assert len({submission.job.id for submission in submissions}) == 1
    assert sum(submission.created for submission in submissions) == 1
    assert len(book.jobs().items) == 1
    assert types(book, submissions[0].job.id) == ["submitted"]


def test_a_key_finds_its_job_also_after_it_ended(book, spec, start):
    job = book.submit(spec(), idempotency_key="key").job
    book.wish(job.id, Desired.CANCEL)
    again = book.submit(spec(), idempotency_key="key")
    assert (again.created, again.job.id, again.job.state) == (False, job.id, State.CANCELLED)


def test_the_order_of_labels_does_not_make_another_spec(book, spec):
    first = book.submit(spec(labels={"a": "1", "b": "2"}), idempotency_key="key")
    assert book.submit(spec(labels={"b": "2", "a": "1"}), idempotency_key="key").job.id == first.job.id


def test_a_key_with_another_spec_is_a_conflict_and_stores_nothing(book, spec):
    job = book.submit(spec(), idempotency_key="key").job
    with pytest.raises(IdempotencyConflict, match=f"one spec, got 'key' with another spec than that of job {job.id}"):
        book.submit(spec(seed=1), idempotency_key="key")
    assert [job.id for job in book.jobs().items] == [job.id]


def test_jobs_without_a_key_are_all_different(book, spec):
    assert book.submit(spec()).job.id != book.submit(spec()).job.id


@pytest.mark.parametrize("length", [0, 256])
def test_a_key_has_a_length_that_can_be_kept(book, spec, length):
    with pytest.raises(ValueError, match=f"1 to 255 characters, got {length}"):
        book.submit(spec(), idempotency_key="k" * length)


def test_pages_show_every_job_once_newest_first_while_others_are_added(book, spec):
    ordered = [book.submit(spec(seed=seed)).job.id for seed in range(11)]
    shown, cursor = [], None
    for _ in range(4):
        page = book.jobs(limit=3, cursor=cursor)
        shown += [job.id for job in page.items]
        cursor = page.next
        book.submit(spec())  # lands before the first page
    assert shown == ordered[::-1]
    assert cursor is None


def test_pages_do_not_lose_jobs_that_were_ordered_at_the_same_instant(book, spec, set_columns):
    ids = [book.submit(spec()).job.id for _ in range(7)]
    for job_id in ids:
        set_columns(book, job_id, created_at=1234.5678901)
    shown, cursor = [], None
    while not shown or cursor:
        page = book.jobs(limit=2, cursor=cursor)
        shown += [job.id for job in page.items]
        cursor = page.next
    assert sorted(shown) == sorted(ids)
    assert len(shown) == 7


def test_a_full_last_page_has_no_next(book, spec):
    for _ in range(4):
        book.submit(spec())
    assert book.jobs(limit=4).next is None
    assert book.jobs(limit=2, cursor=book.jobs(limit=2).next).next is None


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "née",
        "AAAA",
        *(base64.urlsafe_b64encode(json.dumps(c).encode()).decode() for c in ([1], 5, {}, [1, 2], [1, "\0"])),
    ],
)
def test_a_cursor_that_no_page_gave_is_refused(book, cursor):
    with pytest.raises(BadCursor, match=r"a cursor must come from a page's `next`, got .*; start without one"):
        book.jobs(cursor=cursor)


def test_jobs_are_found_by_state_and_by_all_of_their_labels(book, spec):
    plain = book.submit(spec()).job.id
    one = book.submit(spec(labels={"a": "1", 'odd "key" $': "x"})).job.id
    both = book.submit(spec(labels={"a": "1", "b": "2"})).job.id
    book.wish(plain, Desired.PAUSE)

    def found(**filters):
        return [job.id for job in book.jobs(**filters).items]

    assert found(labels={"a": "1"}) == [both, one]
    assert found(labels={"a": "1", "b": "2"}) == [both]
    assert found(labels={'odd "key" $': "x"}) == [one]
    assert found(labels={"a": "2"}) == found(labels={"a": "1\0"}) == found(labels={"\0": "1"}) == []
    assert found(states=[State.PAUSED]) == [plain]
    assert found(states=[State.PAUSED, State.QUEUED], labels={"a": "1"}) == [both, one]


def in_phase(book, phase, spec, start):
    """A job in each phase that a wish can meet."""
    if phase == "running":
        return start(book).job_id
    job_id = book.submit(spec()).job.id
    if phase == "dispatched":
        book.worker_seen("w", "cpu")
        book.dispatch()
    if phase == "paused":
        book.wish(job_id, Desired.PAUSE)
    if phase == "waits to be tried again":
        claim = start(book, seed=1)
        book.finish(claim.token, Event.LOST)
        job_id = claim.job_id
    return job_id


@pytest.mark.parametrize("desired", [Desired.CANCEL, Desired.KILL])
@pytest.mark.parametrize("phase", ["queued", "dispatched", "paused", "waits to be tried again"])
def test_a_job_that_does_not_run_is_cancelled_at_once(book, spec, start, phase, desired):
    job_id = in_phase(book, phase, spec, start)
    job = book.wish(job_id, desired)
    assert (job.state, job.desired) == (State.CANCELLED, desired)
    assert job.finished_at is not None
    assert types(book, job_id)[-1] == "cancelled"


def test_a_running_job_hears_of_a_cancel_when_its_lease_is_renewed(book, start):
    claim = start(book)
    assert book.renew(claim.token).desired is Desired.RUN
    job = book.wish(claim.job_id, Desired.CANCEL)
    assert (job.state, job.desired) == (State.RUNNING, Desired.CANCEL)
    assert book.renew(claim.token).desired is Desired.CANCEL
    assert book.wish(claim.job_id, Desired.KILL).desired is Desired.KILL
    assert book.renew(claim.token).desired is Desired.KILL
    assert book.finish(claim.token, Event.CANCELLED)
    assert book.job(claim.job_id).state is State.CANCELLED
    assert types(book, claim.job_id) == ["submitted", "dispatched", "claimed", "wish", "wish", "cancelled"]


def test_a_cancel_is_never_taken_back(book, start):
    claim = start(book)
    book.wish(claim.job_id, Desired.KILL)
    for desired in (Desired.RUN, Desired.PAUSE, Desired.CANCEL):
        assert book.wish(claim.job_id, desired).desired is Desired.KILL
    assert types(book, claim.job_id).count("wish") == 1


@pytest.mark.parametrize("phase", ["queued", "dispatched", "running", "paused"])
def test_a_wish_that_is_already_heard_changes_nothing(book, spec, start, phase):
    job_id = in_phase(book, phase, spec, start)
    job = book.job(job_id)
    before = types(book, job_id)
    assert book.wish(job_id, job.desired) == job
    assert types(book, job_id) == before


@pytest.mark.parametrize("phase", ["queued", "dispatched"])
def test_a_waiting_job_is_paused_at_once_and_goes_on_when_asked(book, spec, start, phase):
    job_id = in_phase(book, phase, spec, start)
    assert book.wish(job_id, Desired.PAUSE).state is State.PAUSED
    assert book.dispatch() == []
    assert book.wish(job_id, Desired.RUN).state is State.QUEUED
    book.worker_seen("w", "cpu")
    assert [dispatch.job_id for dispatch in book.dispatch()] == [job_id]


def test_a_running_job_is_paused_by_its_worker_and_goes_on_from_its_checkpoint(book, start, claim_again):
    claim = start(book)
    book.wish(claim.job_id, Desired.PAUSE)
    assert book.renew(claim.token).desired is Desired.PAUSE
    book.commit_checkpoint(claim.token, step=7, path="/7", sha256="a", size=1)
    assert book.finish(claim.token, Event.PAUSED)
    assert book.job(claim.job_id).state is State.PAUSED
    book.wish(claim.job_id, Desired.RUN)
    again = claim_again(book, claim.job_id)
    assert (again.attempt, [row.step for row in again.checkpoints]) == (2, [7])
    assert book.job(claim.job_id).infra_retries == 0


def test_cancelling_what_is_cancelled_is_no_mistake(book, spec):
    job = book.submit(spec()).job
    cancelled = book.wish(job.id, Desired.CANCEL)
    assert book.wish(job.id, Desired.CANCEL) == book.wish(job.id, Desired.KILL) == cancelled


@pytest.mark.parametrize("event", [Event.SUCCEEDED, Event.DIVERGED, Event.FAILED])
@pytest.mark.parametrize("desired", Desired)
def test_a_wish_for_a_job_that_ended_is_refused_and_leaves_it_alone(book, start, event, desired):
    claim = start(book)
    book.finish(claim.token, event)
    ended = book.job(claim.job_id)
    with pytest.raises(
        AlreadyEnded, match=f"before the end, got '{desired}' for job {claim.job_id}, which is {event}"
    ) as caught:
        book.wish(claim.job_id, desired)
    assert caught.value.job == ended == book.job(claim.job_id)


def test_a_wish_for_no_job_is_refused(book):
    with pytest.raises(NoSuchJob, match="a wish needs a job, got id 'nothing'"):
        book.wish("nothing", Desired.CANCEL)


def test_a_cancel_and_a_success_at_once_have_one_winner(book, start, in_parallel):
    for attempt in range(8):
        claim = start(book, worker=f"w{attempt}", seed=attempt)

        def act(role, claim=claim):
            if role == "finish":
                return book.finish(claim.token, Event.SUCCEEDED)
            try:
                return book.wish(claim.job_id, Desired.CANCEL).desired
            except AlreadyEnded:
                return None

        finished, heard = in_parallel(act, ["finish", "cancel"])
        job = book.job(claim.job_id)
        assert finished, "the result was there, and stands"
        assert job.state is State.SUCCEEDED
        assert job.desired is (Desired.RUN if heard is None else Desired.CANCEL)
        ends = [event for event in book.events(job.id) if event.type in {"succeeded", "cancelled"}]
        assert [event.type for event in ends] == ["succeeded"]


def test_a_cancel_and_a_claim_at_once_never_leave_a_job_half_taken(book, spec, in_parallel):
    for attempt in range(8):
        job_id = book.submit(spec(seed=attempt)).job.id
        book.worker_seen(f"w{attempt}", "cpu")
        (dispatch,) = book.dispatch()

        def act(role, dispatch=dispatch, attempt=attempt):
            if role == "claim":
                return book.claim(dispatch.job_id, dispatch.dispatch_seq, f"w{attempt}")
            return book.wish(dispatch.job_id, Desired.CANCEL)

        claim, _ = in_parallel(act, ["claim", "cancel"])
        job = book.job(job_id)
        if claim is None:
            assert job.state is State.CANCELLED
            assert book.attempts(job_id) == []
        else:
            assert (job.state, book.renew(claim.token).desired) == (State.RUNNING, Desired.CANCEL)
            assert book.finish(claim.token, Event.CANCELLED)
