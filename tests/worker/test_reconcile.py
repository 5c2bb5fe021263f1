import itertools

import pytest

from worker.book import Desired, Dispatch, Event, Mended, Reason, State
from worker.tables import workers


def order(book, spec, count, **options):
    return [book.submit(spec(seed=seed), **options).job.id for seed in range(count)]


def appear(book, *names, device="cpu"):
    for name in names:
        book.worker_seen(name, device)


def fall_silent(book, name, seen_at):
    with book.database.write() as connection:
        connection.execute(workers.update().where(workers.c.name == name).values(seen_at=seen_at))


def test_without_a_worker_nothing_is_dispatched(book, spec):
    order(book, spec, 3)
    assert book.dispatch() == []


def test_every_free_worker_gets_one_job_and_no_more(book, spec):
    ids = order(book, spec, 5)
    appear(book, "a", "b", "c")
    assert book.dispatch() == [Dispatch(job_id, 1, "cpu") for job_id in ids[:3]]
    assert book.dispatch() == [], "all three are spoken for, though none has claimed yet"
    assert book.claim(ids[0], 1, "a") is not None
    assert book.dispatch() == [], "a is busy, b and c are spoken for"
    claim = book.claim(ids[1], 1, "b")
    book.finish(claim.token, Event.SUCCEEDED)
    assert [dispatch.job_id for dispatch in book.dispatch()] == [ids[3]], "b is free again"


def test_jobs_go_by_priority_and_then_by_age(book, spec):
    order_of = {}
    for seed, priority in enumerate([0, 5, -1, 5, 0, 9]):
        order_of[book.submit(spec(seed=seed), priority=priority).job.id] = seed
    appear(book, "w")
    gone = []
    while dispatches := book.dispatch():
        (dispatch,) = dispatches
        gone.append(order_of[dispatch.job_id])
        claim = book.claim(dispatch.job_id, dispatch.dispatch_seq, "w")
        book.finish(claim.token, Event.SUCCEEDED)
    assert gone == [5, 1, 3, 0, 4, 2]


def test_a_job_that_was_lost_keeps_its_place(book, spec, start):
    claim = start(book)
    order(book, spec, 2, priority=1000)
    book.finish(claim.token, Event.LOST)
    assert [dispatch.job_id for dispatch in book.dispatch()] == [claim.job_id]


def test_a_worker_that_was_not_seen_for_long_or_ever_gets_nothing(make_book, spec):
    book = make_book(lease_ttl_s=30)
    order(book, spec, 3)
    appear(book, "now", "long ago", "never")
    fall_silent(book, "long ago", 1.0)
    fall_silent(book, "never", None)
    assert len(book.dispatch()) == 1
    assert [(row.name, row.live) for row in book.workers()] == [("long ago", False), ("never", False), ("now", True)]
    appear(book, "never")
    assert len(book.dispatch()) == 1, "it is back"


def test_a_worker_that_said_goodbye_gets_nothing(book, spec):
    order(book, spec, 1)
    appear(book, "w")
    book.worker_gone("w")
    assert book.dispatch() == []
    assert book.workers() == []


def test_workers_are_shown_with_their_jobs(book, start):
    claim = start(book, worker="busy")
    appear(book, "idle", device="cuda:1")
    shown = [(row.name, row.pool, row.device, row.live, row.job_id) for row in book.workers()]
    assert shown == [("busy", "cpu", "cpu", True, claim.job_id), ("idle", "cuda", "cuda:1", True, None)]


def test_a_worker_names_a_device_and_not_a_wish(book):
    with pytest.raises(ValueError, match="a worker's device must be cpu or cuda, got 'auto'"):
        book.worker_seen("w", "auto")


def test_a_job_goes_to_a_pool_that_has_its_device(book, spec):
    cuda = book.submit(spec(device="cuda")).job.id
    anything = book.submit(spec(device="auto")).job.id
    cpu = book.submit(spec(device="cpu")).job.id
    appear(book, "c")
    assert book.dispatch() == [Dispatch(anything, 1, "cpu")], "the job that needs a GPU waits, and blocks nobody"
    appear(book, "g", device="cuda:0")
    assert book.dispatch() == [Dispatch(cuda, 1, "cuda")]
    assert book.dispatch() == []
    appear(book, "g2", device="cuda:1")
    assert book.dispatch() == [Dispatch(cpu, 1, "cuda")], "a GPU worker has a CPU too"


def large(book, spec, devices, **options):
    return book.submit(spec(batch_size=64, devices=devices, **options)).job.id


def test_a_job_goes_to_a_worker_with_as_many_devices_as_it_asks_for(book, spec):
    four = large(book, spec, 4)
    one = book.submit(spec()).job.id
    book.worker_seen("small", "cpu", processes=2)
    assert book.dispatch() == [Dispatch(one, 1, "cpu-2")], "the one that nobody can run waits, and blocks nobody"
    book.worker_seen("large", "cpu", processes=4)
    assert book.dispatch() == [Dispatch(four, 1, "cpu-4")]


def test_a_gpu_worker_has_two_numbers_of_devices(book, spec):
    on_gpus = large(book, spec, 2, device="auto")
    on_the_cpu = large(book, spec, 4, device="cpu")
    book.worker_seen("g", "cuda:0", gpus=1, processes=4)
    assert book.dispatch() == [Dispatch(on_the_cpu, 1, "cuda-1-4")]
    book.worker_seen("h", "cuda:0", gpus=2, processes=1)
    assert book.dispatch() == [Dispatch(on_gpus, 1, "cuda-2")]


def test_a_small_job_leaves_the_large_worker_free_where_it_can(book, spec):
    book.worker_seen("large", "cpu", processes=4)
    book.worker_seen("small", "cpu")
    one = book.submit(spec()).job.id
    four = large(book, spec, 4)
    assert book.dispatch() == [Dispatch(one, 1, "cpu"), Dispatch(four, 1, "cpu-4")]


def test_nothing_that_came_later_gets_ahead_of_a_large_job_at_a_large_worker(book, spec):
    """The starvation that could be: one small job after the other on the only worker that is large enough."""
    book.worker_seen("large", "cpu", processes=4)
    book.worker_seen("small", "cpu")
    order(book, spec, 2)
    first = book.dispatch()
    claims = {one.pool: book.claim(one.job_id, 1, "large" if one.pool == "cpu-4" else "small") for one in first}
    four = large(book, spec, 4)
    later = order(book, spec, 3)
    book.finish(claims["cpu"].token, Event.SUCCEEDED)
    (passing,) = book.dispatch()
    assert passing == Dispatch(later[0], 1, "cpu"), "it takes what the large one could not have had"
    book.finish(claims["cpu-4"].token, Event.SUCCEEDED)
    assert book.dispatch() == [Dispatch(four, 1, "cpu-4")]
    urgent = book.submit(spec(seed=9), priority=1).job.id
    claim = book.claim(four, 1, "large")
    book.finish(claim.token, Event.SUCCEEDED)
    assert book.dispatch() == [Dispatch(urgent, 1, "cpu-4")], "and a large one holds up none that comes before it"


def test_large_jobs_that_fit_nowhere_fill_no_page_of_candidates(book, spec):
    """The look at the first few jobs must look at those that can run."""
    for seed in range(5):
        large(book, spec, 4, seed=seed)
    (one,) = order(book, spec, 1)
    appear(book, "w")
    assert book.dispatch(limit=1) == [Dispatch(one, 1, "cpu")]


def test_a_job_that_no_worker_can_run_says_what_it_waits_for(book, spec):
    four, cuda, one = large(book, spec, 4), book.submit(spec(device="cuda")).job.id, book.submit(spec()).job.id
    ids = (four, cuda, one)

    def told():
        return {key: reason.code for key, reason in book.obstacles([book.job(job_id) for job_id in ids]).items()}

    assert told() == dict.fromkeys(ids, "no-worker")
    book.worker_seen("w", "cpu", processes=2)
    assert told() == {four: "too-few-devices", cuda: "no-gpu"}
    assert book.obstacles([book.job(four)])[four].detail == (
        "waits for a worker that lets a job use 4 devices; the largest lets it use 2"
    )
    book.worker_seen("g", "cuda:0", gpus=4)
    assert told() == {}, "busy or not: their turn comes"
    fall_silent(book, "g", 1.0)
    assert told() == {four: "too-few-devices", cuda: "no-gpu"}
    book.wish(four, Desired.CANCEL)
    assert told() == {cuda: "no-gpu"}


def test_a_limit_is_kept(book, spec):
    ids = order(book, spec, 4)
    appear(book, *"abcd")
    assert [dispatch.job_id for dispatch in book.dispatch(limit=3)] == ids[:3]


def test_many_schedulers_at_once_dispatch_each_job_once_and_never_more_than_there_are_workers(
    make_book, spec, in_parallel
):
    books = [make_book() for _ in range(4)]
    order(books[0], spec, 30)
    appear(books[0], *"abcdefgh")
    dispatched = [one for batch in in_parallel(lambda book: book.dispatch(), books * 3) for one in batch]
    assert len(dispatched) == len({one.job_id for one in dispatched}) == 8
    assert len(books[0].jobs(states=[State.DISPATCHED]).items) == 8


def test_schedulers_and_workers_at_once_run_every_job_once(make_book, spec, in_parallel):
    """Three schedulers, four workers, and messages that all arrive twice, in no order."""
    books = [make_book() for _ in range(7)]
    ids = set(order(books[0], spec, 24))
    names = ["w1", "w2", "w3", "w4"]
    appear(books[0], *names)
    messages, ran, crowded = [], [], []

    def work(role):
        number, name = role
        book = books[number]
        while len(ran) < len(ids):
            if name is None:
                for one in book.dispatch():
                    messages.extend([one, one])
                running = len(book.jobs(states=[State.DISPATCHED, State.RUNNING]).items)
                if running > len(names):
                    crowded.append(running)
                continue
            try:
                message = messages.pop(number % max(1, len(messages)))
            except IndexError:
                continue
            claim = book.claim(message.job_id, message.dispatch_seq, name)
            if claim is not None:
                ran.append(claim.job_id)
                assert book.finish(claim.token, Event.SUCCEEDED)

    in_parallel(work, enumerate([None, None, None, *names]))
    assert sorted(ran) == sorted(ids)
    assert crowded == []
    assert {job.state for job in books[0].jobs().items} == {State.SUCCEEDED}


def test_a_lease_that_ran_out_is_charged_and_the_job_is_tried_again_at_once(book, start, set_columns, claim_again):
    claim = start(book, worker="gpu-3")
    set_columns(book, claim.job_id, lease_expires_at=book.ping() - 0.001)
    assert book.reconcile() == Mended(requeued=(claim.job_id,))
    assert not book.reconcile()
    job = book.job(claim.job_id)
    assert (job.state, job.infra_retries, job.reason) == (State.QUEUED, 1, None)
    (attempt,) = book.attempts(job.id)
    assert attempt.outcome == "lost"
    assert attempt.reason == Reason(
        "worker-lost", "a worker must renew its lease, got no word from gpu-3 until the lease ran out"
    )
    assert claim_again(book, job.id).attempt == 2


def test_a_lease_that_runs_is_left_alone(book, start):
    claim = start(book)
    assert not book.reconcile()
    assert book.renew(claim.token) is not None


@pytest.mark.parametrize("missing", ["lease_expires_at", "dispatched_at"])
def test_a_row_whose_time_is_missing_is_not_immortal(book, spec, start, set_columns, missing):
    if missing == "lease_expires_at":
        job_id = start(book).job_id
    else:
        job_id = book.submit(spec()).job.id
        appear(book, "w")
        book.dispatch()
    set_columns(book, job_id, **{missing: None})
    assert book.reconcile()
    assert book.job(job_id).state is State.QUEUED


def test_leases_that_run_out_again_and_again_fail_the_job_with_the_reason(make_book, start, set_columns, claim_again):
    book = make_book(max_infra_retries=3)
    claim = start(book)
    for losses in range(1, 5):
        set_columns(book, claim.job_id, lease_expires_at=0)
        mended = book.reconcile()
        assert mended == (Mended(failed=(claim.job_id,)) if losses == 4 else Mended(requeued=(claim.job_id,)))
        if losses < 4:
            set_columns(book, claim.job_id, not_before=None)
            claim = claim_again(book, claim.job_id)
    job = book.job(claim.job_id)
    assert (job.state, job.infra_retries, job.reason_code) == (State.FAILED, 4, "max-infra-retries")
    assert "an attempt may be lost 3 times, got 4; the last time: a worker must renew its lease" in job.reason_detail
    assert book.dispatch() == []


@pytest.mark.parametrize(
    ("desired", "state"),
    [(Desired.CANCEL, State.CANCELLED), (Desired.KILL, State.CANCELLED), (Desired.PAUSE, State.PAUSED)],
)
def test_a_lost_job_that_was_to_stop_stops(book, start, set_columns, desired, state):
    claim = start(book)
    book.wish(claim.job_id, desired)
    set_columns(book, claim.job_id, lease_expires_at=0)
    assert book.reconcile() == Mended(stopped=(claim.job_id,))
    job = book.job(claim.job_id)
    assert (job.state, job.infra_retries) == (state, 0)


def test_many_reconciliations_at_once_charge_a_loss_once(make_book, start, set_columns, in_parallel):
    books = [make_book() for _ in range(6)]
    claims = [start(books[0], worker=f"w{seed}", seed=seed) for seed in range(5)]
    for claim in claims:
        set_columns(books[0], claim.job_id, lease_expires_at=0)
    mended = in_parallel(lambda book: book.reconcile().requeued, books)
    assert sorted(itertools.chain(*mended)) == sorted(claim.job_id for claim in claims)
    assert {job.infra_retries for job in books[0].jobs().items} == {1}


def test_a_renewal_and_a_reconciliation_at_once_agree_on_who_has_the_job(make_book, start, set_columns, in_parallel):
    books = [make_book(), make_book()]
    for seed in range(8):
        claim = start(books[0], worker=f"w{seed}", seed=seed)
        set_columns(books[0], claim.job_id, lease_expires_at=0)

        def act(role, claim=claim):
            return books[1].renew(claim.token) if role == "renew" else books[0].reconcile().requeued

        lease, requeued = in_parallel(act, ["renew", "reconcile"])
        assert (lease is None) == (requeued == (claim.job_id,))
        assert books[0].job(claim.job_id).state is (State.QUEUED if requeued else State.RUNNING)
        books[0].wish(claim.job_id, Desired.CANCEL)


def test_a_dispatch_nobody_claims_is_made_again_and_its_message_is_worth_nothing(make_book, spec, set_columns):
    book = make_book(dispatch_timeout_s=60)
    (job_id,) = order(book, spec, 1)
    appear(book, "w")
    (first,) = book.dispatch()
    assert not book.reconcile()
    set_columns(book, job_id, dispatched_at=book.ping() - 61)
    assert book.reconcile() == Mended(unclaimed=(job_id,))
    assert book.job(job_id).infra_retries == 0
    (second,) = book.dispatch()
    assert (second.job_id, second.dispatch_seq) == (job_id, first.dispatch_seq + 1)
    assert book.claim(job_id, first.dispatch_seq, "w") is None
    assert book.claim(job_id, second.dispatch_seq, "w") is not None
    assert [event.type for event in book.events(job_id)] == [
        "submitted", "dispatched", "unclaimed", "dispatched", "claimed"
    ]  # fmt: skip


def test_a_dispatch_that_was_claimed_cannot_be_taken_back(book, spec):
    (job_id,) = order(book, spec, 1)
    appear(book, "w")
    (dispatch,) = book.dispatch()
    claim = book.claim(job_id, dispatch.dispatch_seq, "w")
    assert book.withdraw(job_id, dispatch.dispatch_seq) is False
    assert book.renew(claim.token) is not None


def test_a_worker_that_starts_anew_has_lost_what_its_earlier_life_held(book, start, claim_again):
    claim, other = start(book, worker="w"), start(book, worker="other")
    assert book.worker_started("w", "cpu") == [claim.job_id]
    assert book.renew(claim.token) is None
    assert book.renew(other.token) is not None
    job = book.job(claim.job_id)
    assert (job.state, job.infra_retries) == (State.QUEUED, 1)
    assert "a worker must outlive its job, got a new start of w in the middle" in book.attempts(job.id)[0].reason.detail
    assert claim_again(book, job.id, "w").attempt == 2
    assert book.worker_started("new", "cpu") == []


def test_waiting_jobs_are_found_without_reading_the_ended_ones(book):
    """The look that the scheduler takes ten times a second goes through the index."""
    with book.database.read() as connection:
        explain = "EXPLAIN QUERY PLAN"
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # which an empty table invites
            explain = "EXPLAIN"
        query = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY priority DESC, created_at, id LIMIT 3"
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {query}"))
    assert "ix_jobs_state_priority_created_at_id" in plan
