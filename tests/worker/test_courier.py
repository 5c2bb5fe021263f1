"""The courier against a real MLflow server, which is cut off now and then."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from normcore.records import Point
from worker.book import Book, Claim, Desired, Event, Progress, Reason, State
from worker.courier import Courier
from worker.recorder import Recorder, connect
from worker.settings import Settings
from worker.spool import Spool

pytestmark = pytest.mark.xdist_group("mlflow")


@pytest.fixture
def database_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "book.db"
    path.write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def config(tmp_path: Path, mlflow_wire: Any) -> Settings:
    # One experiment per test, so that a test sees its own runs only.
    return Settings(state_dir=tmp_path / "state", mlflow_url=mlflow_wire.url, mlflow_experiment=str(tmp_path))


@pytest.fixture
def client(mlflow_url: str) -> Any:
    return connect(mlflow_url)


@pytest.fixture
def courier(book: Book, config: Settings) -> Courier:
    return Courier(book, config)


def spool_of(config: Settings, claim: Claim) -> closing[Spool]:
    return closing(Spool.create(config.state_dir / "spool", job_id=claim.job_id, attempt=claim.attempt))


def record(config: Settings, claim: Claim, steps: range, value: float = 0.5) -> None:
    with spool_of(config, claim) as spool:
        spool.add([Point("train/loss", step, value) for step in steps])


def run_of(book: Book, client: Any, job_id: str) -> Any:
    job = book.job(job_id)
    assert job is not None
    assert job.mlflow_run_id is not None
    return client.get_run(job.mlflow_run_id)


def steps_of(book: Book, client: Any, job_id: str, key: str = "train/loss") -> list[int]:
    """The steps that MLflow holds, in order and with those that are there twice."""
    run = run_of(book, client, job_id)
    return sorted(metric.step for metric in client.get_metric_history(run.info.run_id, key))


def files_of(client: Any, run: Any, folder: str) -> list[str]:
    return [entry.path for entry in client.list_artifacts(run.info.run_id, folder)]


def commit(book: Book, claim: Claim, step: int) -> None:
    assert book.commit_checkpoint(claim.token, step=step, path=f"/nowhere/{step}", sha256="0" * 64, size=1)


def test_a_job_is_all_there_in_the_end(book, config, courier, client, start, tmp_path):
    claim = start(book, labels={"course": "6.867", "mlflow.runName": "mine"}, norm={"kind": "group", "num_groups": 4})
    figure = tmp_path / "landscape.png"
    figure.write_bytes(b"png")
    record(config, claim, range(1, 2501))
    with spool_of(config, claim) as spool:
        spool.enqueue("figures/landscape.png", figure, step=2500)
        spool.tag({"attempt.1.torch": "2"})
    assert courier.sync()
    run = run_of(book, client, claim.job_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "mlp128x128 group bs128 lr0.1 seed0"
    assert run.data.params["norm.num_groups"] == "4"
    assert run.data.params["batch_size"] == "128"
    tags = run.data.tags
    assert (tags["normcore.job_id"], tags["course"], tags["attempt.1.torch"]) == (claim.job_id, "6.867", "2")
    assert (tags["mlflow.source.type"], tags["mlflow.source.name"]) == ("JOB", f"normcore job {claim.job_id}")
    first, blank, *_ = tags["mlflow.note.content"].splitlines()
    assert (first, blank) == ("mlp128x128 with group norm on digits: 100 steps ordered.", "")
    assert files_of(client, run, "figures") == ["figures/landscape.png"]

    book.add_metrics(claim.token, [Point("test/accuracy", 100, 0.975)])
    assert book.finish(claim.token, Event.SUCCEEDED, progress=Progress(step=100))
    assert courier.sync()
    run = run_of(book, client, claim.job_id)
    job = book.job(claim.job_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", int(job.finished_at * 1000))
    assert run.data.tags["mlflow.note.content"].startswith(
        "mlp128x128 with group norm on digits: 100 steps, test accuracy 0.975.\n\n|"
    )
    assert (run.data.tags["attempts"], run.data.tags["attempt.1.outcome"]) == ("1", "succeeded")
    assert steps_of(book, client, claim.job_id) == list(range(1, 2501))
    assert Spool.paths(config.state_dir / "spool") == []


def test_the_experiment_shows_our_columns(courier, client, config):
    from worker.links import shared_view

    assert courier.sync()
    experiment = client.get_experiment_by_name(config.mlflow_experiment)
    name, value = shared_view()
    assert experiment.tags[name] == value
    assert "\n" not in experiment.tags["mlflow.note.content"]


@pytest.mark.parametrize("away", ["at the start", "in the middle", "at the end", "all the time"])
def test_mlflow_may_be_away(book, config, courier, client, start, mlflow_wire, away):
    claim = start(book)
    for phase, steps in (("at the start", range(1, 4)), ("in the middle", range(4, 7)), ("at the end", range(7, 10))):
        cut = away in {phase, "all the time"}
        if cut:
            mlflow_wire.cut()
        record(config, claim, steps)
        if phase == "at the end":
            assert book.finish(claim.token, Event.SUCCEEDED)
        assert courier.sync() is not cut
        if cut:
            mlflow_wire.mend()
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == list(range(1, 10))
    assert run_of(book, client, claim.job_id).info.status == "FINISHED"
    assert Spool.paths(config.state_dir / "spool") == []


def test_a_batch_that_may_have_arrived_is_not_stored_twice(book, config, client, start, monkeypatch):
    claim = start(book)
    record(config, claim, range(1, 11))
    # The batch arrives, and the courier dies before it can write that down.
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "sent", lambda *_: (_ for _ in ()).throw(SystemExit("dead")))
        with pytest.raises(SystemExit):
            Courier(book, config).sync()
    assert steps_of(book, client, claim.job_id) == list(range(1, 11))
    record(config, claim, range(11, 13))
    assert Courier(book, config).sync()
    assert steps_of(book, client, claim.job_id) == list(range(1, 13))


def test_a_run_that_the_book_never_heard_of_is_found_by_its_tag(book, config, client, start, monkeypatch):
    claim = start(book)
    record(config, claim, range(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Book, "set_mlflow_run", lambda *_, **__: (_ for _ in ()).throw(SystemExit("dead")))
        with pytest.raises(SystemExit):
            Courier(book, config).sync()
    assert book.job(claim.job_id).mlflow_run_id is None
    assert Courier(book, config).sync()
    experiment = client.get_experiment_by_name(config.mlflow_experiment).experiment_id
    assert len(client.search_runs([experiment])) == 1
    assert steps_of(book, client, claim.job_id) == [1, 2]


def test_of_two_recorders_one_makes_the_run(book, config, client, start, in_parallel):
    claim = start(book)
    job = book.job(claim.job_id)
    recorders = [Recorder(book, config) for _ in range(3)]
    recorders[0].run_of(book.submit(job.spec).job)  # the experiment is there before the race
    named = in_parallel(lambda recorder: recorder.run_of(job), recorders)
    assert len(set(named)) == 1
    experiment = client.get_experiment_by_name(config.mlflow_experiment).experiment_id
    mine = [run for run in client.search_runs([experiment]) if run.data.tags["normcore.job_id"] == job.id]
    assert [run.info.run_id for run in mine] == named[:1]


def test_a_later_attempt_sends_no_step_twice(book, config, courier, client, start, claim_again):
    first = start(book)
    record(config, first, range(1, 8))
    assert courier.sync()
    # Lost at step 9 on a machine that never comes back; the checkpoint is of step 5.
    record(config, first, range(8, 10))
    Spool.paths(config.state_dir / "spool")[0].unlink()
    commit(book, first, 5)
    assert book.finish(first.token, Event.LOST)
    second = claim_again(book, first.job_id)
    assert book.resumed(second.token, 5)
    record(config, second, range(6, 13))
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == list(range(1, 13))


def test_a_lost_attempt_sends_what_belongs_to_the_history(book, config, courier, client, start, claim_again):
    first = start(book)
    assert courier.sync()
    record(config, first, range(1, 10))
    commit(book, first, 5)
    assert book.finish(first.token, Event.LOST)
    # Steps 6 to 9 will be made again from the checkpoint of step 5.
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == list(range(1, 6))
    second = claim_again(book, first.job_id)
    assert book.resumed(second.token, 5)
    record(config, second, range(6, 9), value=0.25)
    assert courier.sync()
    assert [path.stem for path in Spool.paths(config.state_dir / "spool")] == [f"{first.job_id}.a2"]
    assert steps_of(book, client, first.job_id) == list(range(1, 9))
    history = client.get_metric_history(run_of(book, client, first.job_id).info.run_id, "train/loss")
    assert {metric.value for metric in history if metric.step > 5} == {0.25}


def test_mlflow_away_over_two_attempts(book, config, courier, client, start, claim_again, mlflow_wire):
    mlflow_wire.cut()
    first = start(book)
    record(config, first, range(1, 8))
    assert not courier.sync()
    commit(book, first, 5)
    assert book.finish(first.token, Event.LOST)
    second = claim_again(book, first.job_id)
    assert book.resumed(second.token, 5)
    record(config, second, range(6, 11))
    assert book.finish(second.token, Event.SUCCEEDED)
    assert not courier.sync()
    mlflow_wire.mend()
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == list(range(1, 11))
    assert Spool.paths(config.state_dir / "spool") == []


def test_a_fenced_attempt_sends_nothing_new(book, config, courier, client, start, claim_again):
    first = start(book)
    record(config, first, range(1, 4))
    assert courier.sync()
    assert book.finish(first.token, Event.LOST)
    second = claim_again(book, first.job_id)
    # It was frozen, wakes up, and goes on recording.
    record(config, first, range(4, 7), value=9.0)
    record(config, second, range(1, 3))
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == [1, 2, 3]


@pytest.fixture
def elsewhere(book: Book, config: Settings, tmp_path: Path) -> tuple[Settings, Courier]:
    """Another machine, with a disk and a courier of its own."""
    there = config.model_copy(update={"state_dir": tmp_path / "elsewhere"})
    return there, Courier(book, there)


def measured(book: Book, config: Settings, claim: Claim, steps: range) -> None:
    """As a worker does it: into its spool, and into the order book."""
    record(config, claim, steps)
    assert book.add_metrics(claim.token, [Point("train/loss", step, 0.5) for step in steps])


def test_what_a_lost_machine_had_not_sent_comes_from_the_order_book(
    book, config, courier, client, start, claim_again, elsewhere
):
    there, theirs = elsewhere
    first = start(book)
    measured(book, there, first, range(1, 4))
    assert theirs.sync()
    # Lost with its disk at step 9; MLflow has the checkpoint of step 5, and not all of the points before it.
    measured(book, there, first, range(4, 10))
    commit(book, first, 5)
    assert book.finish(first.token, Event.LOST)
    second = claim_again(book, first.job_id)
    measured(book, config, second, range(6, 8))
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == [1, 2, 3], "where it goes on from is not known yet"
    assert book.resumed(second.token, 5)
    measured(book, config, second, range(8, 13))
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == list(range(1, 13))


def test_a_machine_that_comes_back_adds_nothing_twice_and_overwrites_nothing(
    book, config, courier, client, start, claim_again, elsewhere, tmp_path
):
    there, theirs = elsewhere
    old, new = tmp_path / "old" / "landscape.npz", tmp_path / "new" / "landscape.npz"
    for file in (old, new):
        file.parent.mkdir()
        file.write_text(file.parent.name)
    first = start(book)
    measured(book, there, first, range(1, 4))
    assert theirs.sync()
    measured(book, there, first, range(4, 10))
    commit(book, first, 5)
    with spool_of(there, first) as spool:
        spool.enqueue("readings/landscape.npz", old, step=5)
        spool.enqueue("checkpoints/step_00000005/landscape.npz", old, step=5)
        spool.tag({"attempt.1.host": "gpu-box"})
    assert book.finish(first.token, Event.LOST)
    second = claim_again(book, first.job_id)
    assert book.resumed(second.token, 5)
    measured(book, config, second, range(6, 13))
    with spool_of(config, second) as spool:
        spool.enqueue("readings/landscape.npz", new, step=12)
    assert courier.sync()

    assert theirs.sync()
    assert Spool.paths(there.state_dir / "spool") == []
    assert steps_of(book, client, first.job_id) == list(range(1, 13))
    run = run_of(book, client, first.job_id)
    assert run.data.tags["attempt.1.host"] == "gpu-box"
    kept = client.download_artifacts(run.info.run_id, "readings/landscape.npz", str(tmp_path))
    assert Path(kept).read_text() == "new"
    assert files_of(client, run, "checkpoints/step_00000005") == ["checkpoints/step_00000005/landscape.npz"]


def test_what_a_machine_measured_that_is_gone_for_good_is_sent_when_it_was_silent_for_long(
    book, config, courier, client, start, elsewhere, monkeypatch
):
    there, theirs = elsewhere
    claim = start(book)
    measured(book, there, claim, range(1, 4))
    assert theirs.sync()
    measured(book, there, claim, range(4, 10))
    assert book.finish(claim.token, Event.SUCCEEDED)
    monkeypatch.setattr("worker.courier.MEND_EVERY_S", 0)
    assert courier.sync()
    assert courier.sync()
    assert run_of(book, client, claim.job_id).info.status == "RUNNING", "it may be slow"
    monkeypatch.setattr("worker.courier.STILL_S", 0)
    assert courier.sync()
    assert run_of(book, client, claim.job_id).info.status == "FINISHED"
    assert steps_of(book, client, claim.job_id) == list(range(1, 10))
    # It comes back all the same.
    assert theirs.sync()
    assert Spool.paths(there.state_dir / "spool") == []
    assert steps_of(book, client, claim.job_id) == list(range(1, 10))


def test_a_job_that_ends_before_its_next_attempt_began_has_what_the_one_before_measured(
    book, config, courier, client, start, claim_again, elsewhere
):
    there, theirs = elsewhere
    first = start(book)
    measured(book, there, first, range(1, 4))
    assert theirs.sync()
    measured(book, there, first, range(4, 10))
    commit(book, first, 5)
    assert book.finish(first.token, Event.LOST)
    # Gives up before it knows where to go on from.
    second = claim_again(book, first.job_id)
    measured(book, config, second, range(0))
    assert book.release(second.token)
    assert book.wish(first.job_id, Desired.CANCEL).state is State.CANCELLED
    assert courier.sync()
    assert run_of(book, client, first.job_id).info.status == "KILLED"
    assert steps_of(book, client, first.job_id) == list(range(1, 10))
    assert theirs.sync()
    assert steps_of(book, client, first.job_id) == list(range(1, 10))


def test_what_a_restored_book_knows_nothing_of_is_not_sent(
    book, config, courier, client, start, claim_again, elsewhere
):
    there, theirs = elsewhere
    first = start(book)
    measured(book, config, first, range(1, 4))
    assert book.finish(first.token, Event.LOST)
    undone = {"job_id": first.job_id, "attempt": 2, "worker": "gpu-box/1"}
    # Attempt 2 had gone on far on a machine that joined when the laboratory was set back to a backup.
    for claimed_again in (False, True):
        with closing(Spool.begin(there.state_dir / "spool", **undone)) as spool:
            spool.add([Point("train/loss", step, 0.25) for step in range(1, 100)])
        if claimed_again:
            claim_again(book, first.job_id)
        assert theirs.sync()
        assert Spool.paths(there.state_dir / "spool") == []
    assert courier.sync()
    assert steps_of(book, client, first.job_id) == []


def test_a_checkpoint_arrives_after_its_points(book, config, courier, client, start, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.courier.BATCHES_IN_TURN", 1)
    checkpoint = tmp_path / "state.json"
    checkpoint.write_text("{}")
    claim = start(book)
    record(config, claim, range(1, 1502))
    with spool_of(config, claim) as spool:
        for step in (1000, 1500):
            spool.enqueue(f"checkpoints/step_{step:08d}/state.json", checkpoint, step=step)
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == list(range(1, 1001))
    assert files_of(client, run_of(book, client, claim.job_id), "checkpoints") == ["checkpoints/step_00001000"]
    assert courier.sync()
    assert files_of(client, run_of(book, client, claim.job_id), "checkpoints") == [
        "checkpoints/step_00001000",
        "checkpoints/step_00001500",
    ]


def test_nothing_is_sent_while_the_book_is_away(book, config, client, start, monkeypatch):
    from worker.book import BookUnavailable

    claim = start(book)
    courier = Courier(book, config)
    assert courier.sync()
    record(config, claim, range(1, 4))
    with monkeypatch.context() as patch:
        patch.setattr(Book, "last_sendable_step", lambda *_: (_ for _ in ()).throw(BookUnavailable("away")))
        assert not courier.sync()
    assert Spool(Spool.paths(config.state_dir / "spool")[0]).batch()
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == [1, 2, 3]


def test_infinities_do_not_reach_mlflow(book, config, courier, client, start):
    claim = start(book)
    with spool_of(config, claim) as spool:
        spool.add([Point("train/loss", 1, float("inf")), Point("train/loss", 2, float("nan"))])
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == []
    assert steps_of(book, client, claim.job_id, "train/loss_nonfinite") == [1, 2]


@pytest.mark.parametrize(
    ("event", "status"),
    [(Event.SUCCEEDED, "FINISHED"), (Event.DIVERGED, "FINISHED"), (Event.FAILED, "FAILED"), (Event.LOST, "SCHEDULED")],
)
def test_the_run_has_the_status_of_its_job(book, config, courier, client, start, event, status):
    claim = start(book)
    record(config, claim, range(1, 3))
    assert courier.sync()
    assert book.finish(claim.token, event, Reason("some-code", "it ended so"))
    assert courier.sync()
    assert run_of(book, client, claim.job_id).info.status == status


def test_a_job_cancelled_while_it_waits_is_killed_with_all_its_points(book, config, courier, client, start):
    claim = start(book)
    record(config, claim, range(1, 8))
    commit(book, claim, 5)
    assert book.finish(claim.token, Event.LOST)
    assert courier.sync()
    assert book.wish(claim.job_id, Desired.CANCEL).state is State.CANCELLED
    assert courier.sync()
    # Nobody will make steps 6 and 7 again: they are the history now.
    assert steps_of(book, client, claim.job_id) == list(range(1, 8))
    assert run_of(book, client, claim.job_id).info.status == "KILLED"
    assert Spool.paths(config.state_dir / "spool") == []


def test_a_run_left_behind_is_ended(book, config, client, start, monkeypatch):
    monkeypatch.setattr("worker.courier.STILL_S", 0)
    claim = start(book)
    record(config, claim, range(1, 3))
    assert Courier(book, config).sync()
    Spool.paths(config.state_dir / "spool")[0].unlink()
    assert book.finish(claim.token, Event.FAILED, Reason("exception", "ValueError: no"))
    assert Courier(book, config).sync()
    run = run_of(book, client, claim.job_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["attempt.1.reason"] == "ValueError: no"


def test_a_spool_that_mlflow_refuses_is_not_in_the_way_of_others(book, config, courier, client, start, caplog):
    refused, other = start(book, worker="a"), start(book, worker="b")
    record(config, refused, range(1, 3))
    record(config, other, range(1, 3))
    with spool_of(config, refused) as spool:
        spool.tag({"no such key, with a comma": "x"})
    assert courier.sync()
    assert steps_of(book, client, other.job_id) == [1, 2]
    assert "MLflow refuses" in caplog.text or "cannot be sent now" in caplog.text
    assert Spool.paths(config.state_dir / "spool")[0].exists()


def test_a_spool_that_is_no_database_is_not_in_the_way_of_others(book, config, courier, client, start):
    claim = start(book)
    record(config, claim, range(1, 3))
    (config.state_dir / "spool" / "broken.a1.db").write_text("no database, but long enough to be read as one")
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == [1, 2]


def test_a_file_that_is_gone_from_the_spool_is_in_nobodys_way(book, config, courier, client, start, tmp_path, caplog):
    claim, other = start(book, worker="a"), start(book, worker="b")
    (tmp_path / "x.txt").write_text("x")
    with spool_of(config, claim) as spool:
        spool.enqueue("figures/x.txt", tmp_path / "x.txt", step=1)
        spool.artifacts()[0].file.unlink()
    record(config, claim, range(1, 3))
    record(config, other, range(1, 3))
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == steps_of(book, client, other.job_id) == [1, 2]
    assert "figures/x.txt" in caplog.text


def test_an_experiment_that_was_deleted_is_restored(book, config, courier, client, start):
    first, second = start(book, worker="a"), start(book, worker="b")
    record(config, first, range(1, 3))
    assert courier.sync()
    client.delete_experiment(client.get_experiment_by_name(config.mlflow_experiment).experiment_id)
    record(config, second, range(1, 3))
    assert courier.sync()
    courier._aside = {path: (0.0, rest_s) for path, (_, rest_s) in courier._aside.items()}  # its rest is over
    assert courier.sync()
    assert steps_of(book, client, second.job_id) == [1, 2]


def test_one_courier_at_a_time_sends_from_a_folder(book, config, courier, start, client):
    from worker.courier import _alone_in

    claim = start(book)
    record(config, claim, range(1, 3))
    with _alone_in(config.state_dir / "spool") as alone:
        assert alone
        assert courier.sync()
        assert book.job(claim.job_id).mlflow_run_id is None
    assert courier.sync()
    assert steps_of(book, client, claim.job_id) == [1, 2]


def test_the_thread_sends_by_itself_and_once_more_when_it_is_closed(book, config, courier, client, start, eventually):
    claim = start(book)
    courier.start()
    record(config, claim, range(1, 3))
    courier.wake()
    eventually(lambda: book.job(claim.job_id).mlflow_run_id and steps_of(book, client, claim.job_id) == [1, 2])
    record(config, claim, range(3, 5))
    courier.close(30)
    assert not courier.is_alive()
    assert steps_of(book, client, claim.job_id) == [1, 2, 3, 4]
