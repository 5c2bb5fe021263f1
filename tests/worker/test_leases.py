import math

import pytest

from worker.book import Desired, Event, MetricPoint, Progress, Reason, State
from worker.tables import metadata


def contents(book):
    """Everything in the database but the workers' presence."""
    with book.database.read() as connection:
        return {
            name: connection.execute(table.select().order_by(*table.primary_key)).all()
            for name, table in metadata.tables.items()
            if name != "workers"
        }


def lose(book, claim):
    """End an attempt as its supervisor does when the trainer has died."""
    assert book.finish(claim.token, Event.LOST, Reason("trainer-lost", "the trainer was killed by signal 9"))


def test_a_claim_gives_everything_that_an_attempt_needs(book, spec, start):
    before = book.ping()
    claim = start(book, worker="gpu-1", seed=5)
    job = book.job(claim.job_id)
    assert (claim.attempt, claim.spec, claim.checkpoints, claim.mlflow_run_id) == (1, spec(seed=5), (), None)
    assert (job.state, job.attempt) == (State.RUNNING, 1)
    assert before - 0.01 <= job.started_at <= book.ping() + 0.01
    (attempt,) = book.attempts(claim.job_id)
    assert (attempt.n, attempt.worker, attempt.resumed_from, attempt.ended_at) == (1, "gpu-1", 0, None)
    assert book.events(claim.job_id)[-1].data == {"worker": "gpu-1", "attempt": 1}


def test_of_many_claims_at_once_one_wins(book, spec, in_parallel):
    job = book.submit(spec()).job
    book.worker_seen("w", "cpu")
    (dispatch,) = book.dispatch()
    claims = in_parallel(lambda n: book.claim(job.id, dispatch.dispatch_seq, f"w{n}"), range(16))
    won = [claim for claim in claims if claim is not None]
    assert len(won) == 1
    assert book.job(job.id).attempt == len(book.attempts(job.id)) == 1
    assert book.renew(won[0].token) is not None


def test_a_message_that_is_late_or_early_or_wrong_claims_nothing(book, spec, set_columns):
    job = book.submit(spec()).job
    assert book.claim(job.id, 0, "w") is None, "it is not dispatched yet"
    book.worker_seen("w", "cpu")
    (first,) = book.dispatch()
    assert book.withdraw(job.id, first.dispatch_seq)
    assert book.claim(job.id, first.dispatch_seq, "w") is None, "the dispatch was taken back"
    (second,) = book.dispatch()
    assert second.dispatch_seq == first.dispatch_seq + 1
    before = contents(book)
    assert book.claim(job.id, first.dispatch_seq, "w") is None
    assert book.claim(job.id, second.dispatch_seq + 1, "w") is None
    assert book.claim("nothing", second.dispatch_seq, "w") is None
    assert contents(book) == before
    set_columns(book, job.id, desired="pause")  # which no wish does to a dispatched job
    assert book.claim(job.id, second.dispatch_seq, "w") is None
    set_columns(book, job.id, desired="run")
    assert book.claim(job.id, second.dispatch_seq, "w") is not None
    assert book.claim(job.id, second.dispatch_seq, "w") is None, "it was delivered twice"


def test_a_renewal_moves_the_end_of_the_lease_and_brings_the_progress(make_book, start):
    book = make_book(lease_ttl_s=100)
    claim = start(book)
    lease = book.renew(claim.token, Progress(step=42, epoch=1.5, steps_per_s=99.5))
    assert lease.desired is Desired.RUN
    assert lease.expires_at == pytest.approx(book.ping() + 100, abs=5)
    assert book.renew(claim.token).expires_at >= lease.expires_at
    job = book.job(claim.job_id)
    assert (job.progress_step, job.epoch, job.steps_per_s) == (42, 1.5, 99.5), "and a bare renewal leaves it"
    assert len(book.events(job.id)) == 3, "progress is no event"


def ways_to_lose_a_lease():
    def to_the_reconciliation(book, claim, set_columns):
        set_columns(book, claim.job_id, lease_expires_at=0)
        assert book.reconcile().requeued == (claim.job_id,)

    def to_the_next_attempt(book, claim, set_columns):
        to_the_reconciliation(book, claim, set_columns)
        (dispatch,) = book.dispatch()
        assert book.claim(dispatch.job_id, dispatch.dispatch_seq, "w") is not None

    def by_finishing(book, claim, _):
        assert book.finish(claim.token, Event.SUCCEEDED)

    def by_giving_back(book, claim, _):
        assert book.release(claim.token)

    def to_a_cancel(book, claim, set_columns):
        book.wish(claim.job_id, Desired.CANCEL)
        set_columns(book, claim.job_id, lease_expires_at=0)
        assert book.reconcile().stopped == (claim.job_id,)

    return [to_the_reconciliation, to_the_next_attempt, by_finishing, by_giving_back, to_a_cancel]


@pytest.mark.parametrize("way", ways_to_lose_a_lease())
def test_a_token_that_is_fenced_writes_nothing(book, start, set_columns, way):
    claim = start(book)
    book.commit_checkpoint(claim.token, step=1, path="/1", sha256="a", size=1)
    way(book, claim, set_columns)
    before = contents(book)
    token = claim.token
    assert book.renew(token, Progress(99)) is None
    assert book.add_metrics(token, [MetricPoint("train/loss", 99, 0.5)]) is False
    assert book.commit_checkpoint(token, step=99, path="/99", sha256="b", size=1) is False
    assert book.retire_checkpoints(token, keep=0) == ()
    assert book.resumed(token, 99) is False
    for event in (Event.SUCCEEDED, Event.DIVERGED, Event.FAILED, Event.CANCELLED, Event.PAUSED, Event.LOST):
        assert book.finish(token, event, Reason("late", "too late"), Progress(99)) is False
    assert book.release(token) is False
    assert contents(book) == before


def test_a_made_up_token_writes_nothing(book, start):
    start(book)
    before = contents(book)
    for token in ("", "nothing", "%", "null"):
        assert book.renew(token) is None
        assert book.finish(token, Event.SUCCEEDED) is False
    assert contents(book) == before


def test_a_lease_that_ran_out_unnoticed_can_still_be_renewed(book, start, set_columns):
    """Nobody else has the job yet, so nothing would be gained by throwing the attempt away."""
    claim = start(book)
    set_columns(book, claim.job_id, lease_expires_at=0)
    assert book.renew(claim.token) is not None
    assert not book.reconcile()


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (Event.SUCCEEDED, State.SUCCEEDED),
        (Event.DIVERGED, State.DIVERGED),
        (Event.FAILED, State.FAILED),
        (Event.CANCELLED, State.CANCELLED),
    ],
)
def test_an_end_is_written_once_with_its_reason_and_its_last_step(book, start, event, state):
    claim = start(book)
    reason = Reason("diverged", "the loss was inf at step 12")
    assert book.finish(claim.token, event, reason, Progress(12, 0.5, 3.0))
    job = book.job(claim.job_id)
    assert (job.state, job.reason, job.progress_step) == (state, reason, 12)
    assert (job.reason_code, job.reason_detail) == ("diverged", "the loss was inf at step 12")
    assert job.finished_at >= job.started_at
    (attempt,) = book.attempts(job.id)
    assert (attempt.outcome, attempt.reason, attempt.last_step) == (event.value, reason, 12)
    assert attempt.ended_at is not None
    assert [one.type for one in book.events(job.id)] == ["submitted", "dispatched", "claimed", event.value]


def test_of_many_ends_at_once_one_is_written(book, start, in_parallel):
    claim = start(book)
    ends = [Event.SUCCEEDED, Event.FAILED, Event.DIVERGED, Event.LOST] * 4
    written = in_parallel(lambda event: book.finish(claim.token, event), ends)
    assert sum(written) == 1
    assert len(book.events(claim.job_id)) == 4
    assert book.attempts(claim.job_id)[0].outcome == ends[written.index(True)].value


@pytest.mark.parametrize("event", [Event.DISPATCHED, Event.CLAIMED, Event.RESUMED, Event.UNCLAIMED, Event.EXHAUSTED])
def test_an_attempt_cannot_end_in_what_is_no_end(book, start, event):
    claim = start(book)
    with pytest.raises(ValueError, match=f"an attempt ends in one of .*, got '{event}'; report what happened"):
        book.finish(claim.token, event)
    assert book.job(claim.job_id).state is State.RUNNING


def test_a_job_given_back_is_queued_again_and_nothing_is_charged(book, start, claim_again):
    claim = start(book)
    book.commit_checkpoint(claim.token, step=10, path="/10", sha256="a", size=1)
    assert book.release(claim.token, Reason("drain", "the worker shuts down"))
    job = book.job(claim.job_id)
    assert (job.state, job.infra_retries, job.reason) == (State.QUEUED, 0, None)
    again = claim_again(book, claim.job_id)
    assert again.token != claim.token
    assert (again.attempt, again.checkpoints[0].step) == (2, 10)
    assert [attempt.outcome for attempt in book.attempts(job.id)] == ["released", None]


def test_a_lost_attempt_is_tried_again_at_once_then_later_and_then_no_more(make_book, start, claim_again, set_columns):
    book = make_book(max_infra_retries=2)
    claim = start(book)
    lose(book, claim)
    assert book.job(claim.job_id).infra_retries == 1
    claim = claim_again(book, claim.job_id)
    lose(book, claim)
    assert book.dispatch() == [], "the second try waits a while"
    set_columns(book, claim.job_id, not_before=0)
    claim = claim_again(book, claim.job_id)
    assert claim.attempt == 3
    lose(book, claim)
    job = book.job(claim.job_id)
    assert (job.state, job.infra_retries, job.reason_code) == (State.FAILED, 3, "max-infra-retries")
    assert job.reason_detail == (
        "an attempt may be lost 2 times, got 3; the last time: the trainer was killed by signal 9; "
        "look into the worker's log and order the job again"
    )
    assert [attempt.outcome for attempt in book.attempts(job.id)] == ["lost", "lost", "exhausted"]
    assert [event.type for event in book.events(job.id)][-1] == "exhausted"


def test_without_retries_the_first_loss_is_the_end(make_book, start):
    book = make_book(max_infra_retries=0)
    claim = start(book)
    lose(book, claim)
    assert book.job(claim.job_id).state is State.FAILED


@pytest.mark.parametrize("event", [Event.LOST, Event.RELEASED, Event.PAUSED])
def test_an_attempt_that_ends_without_a_result_after_a_cancel_is_cancelled(book, start, event):
    claim = start(book)
    book.wish(claim.job_id, Desired.CANCEL)
    assert book.finish(claim.token, event, Reason("signal", "killed"))
    job = book.job(claim.job_id)
    assert (job.state, job.reason, job.infra_retries) == (State.CANCELLED, None, 0)


def test_a_point_stays_as_it_was_first_added(book, start):
    claim = start(book)
    points = [MetricPoint("train/loss", step, 1 / step) for step in range(1, 6)]
    assert book.add_metrics(claim.token, points)
    assert book.add_metrics(
        claim.token, [*points, MetricPoint("train/loss", 3, 9.0), MetricPoint("train/loss", 6, 0.1)]
    )
    assert book.metrics(claim.job_id) == [*points, MetricPoint("train/loss", 6, 0.1)]
    assert book.add_metrics(claim.token, [])


def test_curves_are_told_apart_and_read_on_after_a_step(book, start):
    claim, other = start(book, worker="a"), start(book, worker="b")
    for key in ("train/loss", "test/accuracy"):
        book.add_metrics(claim.token, [MetricPoint(key, step, float(step)) for step in (3, 1, 2)])
    book.add_metrics(other.token, [MetricPoint("time/step_ms", 1, 1.0)])
    assert book.metric_keys(claim.job_id) == ["test/accuracy", "train/loss"]
    assert [(point.key, point.step) for point in book.metrics(claim.job_id)] == [
        *[("test/accuracy", step) for step in (1, 2, 3)],
        *[("train/loss", step) for step in (1, 2, 3)],
    ]
    assert [point.step for point in book.metrics(claim.job_id, "train/loss", after_step=1)] == [2, 3]
    assert [point.step for point in book.metrics(claim.job_id, "train/loss", limit=2)] == [1, 2]
    assert book.job(claim.job_id).last_metrics == {"train/loss": 2.0, "test/accuracy": 2.0}, "the newest sent"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_told_and_not_kept(book, start, value):
    claim = start(book)
    book.add_metrics(claim.token, [MetricPoint("train/loss", 1, value)])
    assert book.metrics(claim.job_id) == [MetricPoint("train/loss_nonfinite", 1, 1.0)]
    assert book.job(claim.job_id).last_metrics == {"train/loss_nonfinite": 1.0}


@pytest.mark.parametrize("value", [5e-324, 1.7976931348623157e308, 0.1, 1 / 3, -2.5, 0.0])
def test_a_value_comes_back_with_the_same_bits(book, start, value):
    claim = start(book)
    book.add_metrics(claim.token, [MetricPoint("x", 1, value)])
    (point,) = book.metrics(claim.job_id)
    assert point.value == book.job(claim.job_id).last_metrics["x"] == value


def test_many_points_at_once_are_one_write(book, start):
    claim = start(book)
    points = [MetricPoint(f"curve/{key}", step, key * step) for key in range(10) for step in range(500)]
    assert book.add_metrics(claim.token, points)
    assert len(book.metrics(claim.job_id)) == 5000


def test_checkpoints_are_handed_to_the_next_attempt_newest_first(book, start, claim_again):
    claim = start(book)
    for step in (10, 20, 30):
        assert book.commit_checkpoint(claim.token, step=step, path=f"/{step}", sha256=f"{step}", size=step)
    lose(book, claim)
    again = claim_again(book, claim.job_id)
    assert [(row.step, row.path, row.sha256, row.bytes, row.attempt) for row in again.checkpoints] == [
        (step, f"/{step}", f"{step}", step, 1) for step in (30, 20, 10)
    ]
    assert book.attempts(claim.job_id)[1].resumed_from is None, "nobody has looked yet whether they are whole"
    assert book.resumed(again.token, 20, ["/30 is torn"])
    assert book.attempts(claim.job_id)[1].resumed_from == 20
    event = book.events(claim.job_id)[-1]
    assert (event.type, event.data) == ("resumed_from", {"step": 20, "passed_over": ["/30 is torn"]})
    assert book.job(claim.job_id).progress_step == 20
    assert [event.type for event in book.events(claim.job_id)].count("checkpoint") == 3


def test_a_checkpoint_that_is_written_again_replaces_the_old_one(book, start, claim_again):
    claim = start(book)
    book.commit_checkpoint(claim.token, step=10, path="/a", sha256="a", size=1)
    lose(book, claim)
    again = claim_again(book, claim.job_id)
    book.commit_checkpoint(again.token, step=10, path="/b", sha256="b", size=2, kind="last")
    (row,) = book.checkpoints(claim.job_id)
    assert (row.path, row.sha256, row.bytes, row.attempt, row.kind) == ("/b", "b", 2, 2, "last")


def test_checkpoints_given_up_on_disk_may_be_resumed_from_all_the_same_for_mlflow_has_them(book, start, claim_again):
    claim = start(book)
    for step in (10, 20, 30):
        book.commit_checkpoint(claim.token, step=step, path=f"/{step}", sha256=f"{step}", size=step)
    assert [row.path for row in book.retire_checkpoints(claim.token, keep=2)] == ["/10"]
    assert book.retire_checkpoints(claim.token, keep=2) == ()
    assert [(row.step, row.path) for row in book.checkpoints(claim.job_id)] == [(10, None), (20, "/20"), (30, "/30")]
    lose(book, claim)
    kept = claim_again(book, claim.job_id).checkpoints
    assert [(row.step, row.path) for row in kept] == [(30, "/30"), (20, "/20"), (10, None)]


def test_a_checkpoint_that_an_attempt_passed_over_is_passed_over_for_good(book, start, claim_again):
    claim = start(book)
    for step in (10, 20, 30):
        commit(book, claim, step)
    lose(book, claim)
    again = claim_again(book, claim.job_id)
    assert book.resumed(again.token, 10, ["neither here nor there", "neither here nor there"])
    commit(book, again, 20)
    assert book.release(again.token)
    third = claim_again(book, claim.job_id)
    assert [(row.step, row.attempt) for row in third.checkpoints] == [(20, 2), (10, 1)]


def commit(book, claim, step, **facts):
    assert book.commit_checkpoint(claim.token, step=step, path=f"/{step}", sha256="a", size=1, **facts)


def on_disk(book, claim):
    return [row.step for row in book.checkpoints(claim.job_id) if row.path is not None]


def test_the_best_and_the_last_are_never_given_up(book, start):
    claim = start(book)
    for step in (10, 20, 30, 40):
        commit(book, claim, step, kind="best" if step == 20 else "periodic", best=step == 20)
    book.retire_checkpoints(claim.token, keep=1)
    assert on_disk(book, claim) == [20, 40]
    commit(book, claim, 50, kind="last", best=True)
    book.retire_checkpoints(claim.token, keep=2)
    assert on_disk(book, claim) == [40, 50], "a better one came"


def test_of_an_ended_job_only_the_newest_and_the_best_stay(book, start):
    claim = start(book)
    for step in (10, 20, 30, 40):
        commit(book, claim, step, best=step == 10)
    assert book.retire_ended(claim.job_id) == ()
    book.finish(claim.token, Event.CANCELLED)
    assert [row.path for row in book.retire_ended(claim.job_id)] == ["/30", "/20"]
    assert on_disk(book, claim) == [10, 40]


def test_what_is_later_than_where_an_attempt_goes_on_is_no_checkpoint_any_more(book, start, claim_again):
    claim = start(book)
    for step in (10, 20, 30):
        commit(book, claim, step, kind="best", best=True)
    lose(book, claim)
    again = claim_again(book, claim.job_id)
    book.resumed(again.token, 20, ["/30 is torn"])
    assert on_disk(book, claim) == [10, 20]
    assert [row.step for row in book.checkpoints(claim.job_id) if row.best] == [10, 20]


def test_the_first_mlflow_run_that_is_named_stays_also_after_the_end(book, start):
    claim = start(book)
    book.finish(claim.token, Event.SUCCEEDED)
    assert book.set_mlflow_run(claim.job_id, run_id="run-1", experiment_id="7") == "run-1"
    assert book.set_mlflow_run(claim.job_id, run_id="run-2", experiment_id="8") == "run-1"
    job = book.job(claim.job_id)
    assert (job.mlflow_run_id, job.mlflow_experiment_id) == ("run-1", "7")


def test_the_next_attempt_is_told_of_the_mlflow_run(book, start, claim_again):
    claim = start(book)
    book.set_mlflow_run(claim.job_id, run_id="run-1", experiment_id="7")
    lose(book, claim)
    assert claim_again(book, claim.job_id).mlflow_run_id == "run-1"


def test_what_an_attempt_may_send_ends_where_the_next_one_went_on(book, start, claim_again):
    first = start(book)
    job_id = first.job_id
    assert book.last_sendable_step(job_id, 1) is None, "it is the newest, and runs"
    for step in (10, 20):
        book.commit_checkpoint(first.token, step=step, path=f"/{step}", sha256="a", size=1)
    lose(book, first)
    assert book.last_sendable_step(job_id, 1) == 20, "the next one will go on from there, as far as one knows"
    second = claim_again(book, job_id)
    assert book.last_sendable_step(job_id, 1) == 20
    book.resumed(second.token, 10)  # the newer checkpoint was broken
    assert book.last_sendable_step(job_id, 1) == 10
    assert book.last_sendable_step(job_id, 2) is None
    book.release(second.token)
    third = claim_again(book, job_id)
    book.resumed(third.token, 0)
    assert [book.last_sendable_step(job_id, n) for n in (1, 2, 3)] == [0, 0, None]
    book.finish(third.token, Event.SUCCEEDED)
    assert book.last_sendable_step(job_id, 3) is None


def test_an_attempt_lost_before_its_first_checkpoint_may_send_nothing(book, start):
    claim = start(book)
    lose(book, claim)
    assert book.last_sendable_step(claim.job_id, 1) == 0


@pytest.mark.parametrize("event", [Event.SUCCEEDED, Event.DIVERGED, Event.FAILED, Event.CANCELLED])
def test_an_attempt_that_ended_the_job_may_send_everything(book, start, event):
    claim = start(book)
    book.finish(claim.token, event)
    assert book.last_sendable_step(claim.job_id, 1) is None


def test_an_attempt_that_exhausted_the_retries_may_send_everything(make_book, start):
    book = make_book(max_infra_retries=0)
    claim = start(book)
    lose(book, claim)
    assert book.last_sendable_step(claim.job_id, 1) is None
