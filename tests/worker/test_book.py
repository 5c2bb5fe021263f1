"""The whole book at once: people, schedulers, workers and accidents in any order, and what must hold after each."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from normcore.spec import JobSpec
from worker import migrate
from worker.book import (
    TERMINAL,
    AlreadyEnded,
    Book,
    Desired,
    Event,
    MetricPoint,
    Progress,
    Reason,
    State,
)
from worker.settings import Settings
from worker.states import ENDINGS, RULES
from worker.tables import jobs, workers

SPEC = JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits"}})
NAMES = ("a", "b", "c")
MAX_INFRA_RETRIES = 2


def test_a_book_takes_its_limits_from_the_settings(tmp_path):
    chosen = Settings(state_dir=tmp_path, lease_ttl_s=7, dispatch_timeout_s=8, max_infra_retries=0)
    migrate.upgrade(chosen.database)
    book = Book.open(chosen)
    book.submit(SPEC)
    book.worker_seen("w", "cpu")
    (dispatch,) = book.dispatch()
    claim = book.claim(dispatch.job_id, dispatch.dispatch_seq, "w")
    assert book.renew(claim.token).expires_at - book.ping() == pytest.approx(7, abs=5)
    book.finish(claim.token, Event.LOST)
    assert book.job(claim.job_id).state is State.FAILED
    book.close()


class Laboratory(RuleBasedStateMachine):
    """What may happen around one book. A token is kept after its attempt ended: workers do come back from the dead."""

    template: Path
    job_ids = Bundle("job_ids")
    messages = Bundle("messages")
    claims = Bundle("claims")

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="normcore-"))
        shutil.copy(self.template, self.folder / "book.db")
        self.book = Book(f"sqlite:///{self.folder / 'book.db'}", max_infra_retries=MAX_INFRA_RETRIES)
        self.ended = {}
        self.cancelled = set()
        self.claimed = set()

    def teardown(self):
        self.book.close()
        shutil.rmtree(self.folder)

    @initialize()
    def workers_appear(self):
        for name in NAMES:
            self.book.worker_seen(name, "cpu")

    @rule(target=job_ids, priority=st.integers(-1, 1), key=st.sampled_from([None, None, "key"]))
    def somebody_orders(self, priority, key):
        return self.book.submit(SPEC, idempotency_key=key, priority=priority).job.id

    @rule(job_id=job_ids, desired=st.sampled_from(Desired))
    def somebody_wishes(self, job_id, desired):
        if self.book.job(job_id).state in TERMINAL - {State.CANCELLED}:
            with pytest.raises(AlreadyEnded):
                self.book.wish(job_id, desired)
        elif desired in {Desired.CANCEL, Desired.KILL}:
            self.cancelled.add(job_id)
            assert self.book.wish(job_id, desired).state in {State.RUNNING, State.CANCELLED}
        elif self.book.job(job_id).state is not State.CANCELLED:
            self.book.wish(job_id, desired)

    @rule(target=messages, copies=st.integers(0, 2))
    def the_scheduler_dispatches(self, copies):
        """With 0 copies it dies before it rings; with 2 the message is delivered twice."""
        dispatched = self.book.dispatch()
        return multiple(*(dispatched * copies))

    @rule(message=messages)
    def the_scheduler_takes_back(self, message):
        self.book.withdraw(message.job_id, message.dispatch_seq)

    @rule()
    def the_scheduler_reconciles(self):
        self.book.reconcile()

    @rule(target=claims, message=consumes(messages), name=st.sampled_from(NAMES))
    def a_worker_claims(self, message, name):
        claim = self.book.claim(message.job_id, message.dispatch_seq, name)
        if claim is None:
            return multiple()
        assert (message.job_id, message.dispatch_seq) not in self.claimed, "one message, two attempts"
        self.claimed.add((message.job_id, message.dispatch_seq))
        assert claim.job_id not in self.cancelled
        return claim

    @rule(claim=claims, step=st.integers(0, 9))
    def a_worker_works(self, claim, step):
        before = self.snapshot(claim.job_id)
        held = self.holds(claim)
        lease = self.book.renew(claim.token, Progress(step))
        written = [
            self.book.add_metrics(claim.token, [MetricPoint("train/loss", step, claim.attempt)]),
            self.book.commit_checkpoint(claim.token, step=step, path=f"/{step}", sha256="a", size=1),
        ]
        assert [lease is not None, *written] == [held] * 3
        if not held:
            assert self.snapshot(claim.job_id) == before

    @rule(claim=claims, event=st.sampled_from(sorted(ENDINGS)))
    def a_worker_finishes(self, claim, event):
        before = self.snapshot(claim.job_id)
        held = self.holds(claim)
        assert self.book.finish(claim.token, event, Reason("why", "because")) is held
        if not held:
            assert self.snapshot(claim.job_id) == before

    @rule(name=st.sampled_from(NAMES))
    def a_worker_starts_anew(self, name):
        self.book.worker_started(name, "cpu")
        assert [row.job_id for row in self.book.workers() if row.name == name] == [None]

    @rule(name=st.sampled_from(NAMES), seen_at=st.sampled_from([None, 0.0]))
    def a_worker_falls_silent(self, name, seen_at):
        with self.book.database.write() as connection:
            connection.execute(workers.update().where(workers.c.name == name).values(seen_at=seen_at))

    @rule(column=st.sampled_from(["lease_expires_at", "dispatched_at", "not_before"]), at=st.sampled_from([None, 0.0]))
    def time_passes(self, column, at):
        with self.book.database.write() as connection:
            alive = jobs.c.finished_at.is_(None)
            connection.execute(jobs.update().where(alive, jobs.c[column].is_not(None)).values({column: at}))

    def holds(self, claim):
        job = self.book.job(claim.job_id)
        return job.state is State.RUNNING and job.attempt == claim.attempt

    def snapshot(self, job_id):
        book = self.book
        return (
            book.job(job_id),
            book.events(job_id),
            book.attempts(job_id),
            book.metrics(job_id),
            book.checkpoints(job_id),
        )

    @invariant()
    def everything_holds(self):
        with self.book.database.read() as connection:
            rows = connection.execute(jobs.select()).all()
        for row in rows:
            self.one_job_holds(row)
        assert sum(row.idempotency_key is not None for row in rows) <= 1
        assert sum(row.state == "dispatched" for row in rows) <= len(NAMES)

    def one_job_holds(self, row):
        state, desired = State(row.state), Desired(row.desired)
        events, attempts = self.book.events(row.id), self.book.attempts(row.id)
        # The events are the job's history: numbered without gaps, each legal after the one before, up to this state.
        assert [event.seq for event in events] == list(range(1, row.event_seq + 1))
        assert events[-1].state is state
        at = State.QUEUED
        for event in events[1:]:
            if event.type in {"wish", "checkpoint"}:
                assert event.state is at
            else:
                assert at in RULES[Event(event.type)].sources
                assert event.state is RULES[Event(event.type)].target
            at = event.state
        # Exactly one attempt is open while the job runs, and none else.
        assert [attempt.n for attempt in attempts] == list(range(1, row.attempt + 1))
        assert [attempt.n for attempt in attempts if attempt.ended_at is None] == (
            [row.attempt] if state is State.RUNNING else []
        )
        # Wishes are kept.
        if state in {State.QUEUED, State.DISPATCHED}:
            assert desired is Desired.RUN
        if state is State.PAUSED:
            assert desired is Desired.PAUSE
        if row.id in self.cancelled:
            assert desired in {Desired.CANCEL, Desired.KILL}
            assert state is State.RUNNING or state in TERMINAL
        # Losses are counted, up to the limit and not beyond.
        losses = sum(attempt.outcome in {"lost", "exhausted"} for attempt in attempts)
        assert row.infra_retries == losses <= MAX_INFRA_RETRIES + 1
        assert (losses > MAX_INFRA_RETRIES) == (events[-1].type == "exhausted")
        # What has ended stays as it ended.
        if state in TERMINAL:
            assert self.ended.setdefault(row.id, row) == row


@pytest.fixture(scope="module", autouse=True)
def template(sqlite_template):
    Laboratory.template = sqlite_template


TestLaboratory = Laboratory.TestCase
TestLaboratory.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
