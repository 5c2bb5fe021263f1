"""Attempts with real trainers, which are killed, stopped, frozen and robbed of their lease."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normcore.data.folders import DataFolders
from normcore.records import Checkpoint, Metrics
from normcore.spec import JobSpec
from normcore.train import train
from worker.book import Book, BookUnavailable, Desired, State
from worker.checkpoint import folder_name, save, sha256_of
from worker.child import Child
from worker.courier import Courier
from worker.nursery import Nursery
from worker.recorder import MlflowAway
from worker.settings import Settings
from worker.spool import Spool
from worker.tasks import Workplace, work

pytestmark = pytest.mark.xdist_group("trainers")

CLOCKS = ("time/", "memory/", "probe/overhead")
"""Curves that a clock or the allocator decides."""
LONG = 1_000_000
"""Steps of a training that does not end by itself while a test looks at it."""


class KnownNursery(Nursery):
    """Remembers whom it handed out, so that a test can lay hands on them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.taken: list[Child] = []
        self.cache = settings.state_dir / "cache"

    def take(self, timeout_s: float) -> Child | None:
        child = super().take(timeout_s)
        if child is not None:
            self.taken.append(child)
        return child


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def nursery(cache: Path) -> Iterator[KnownNursery]:
    nursery = KnownNursery(Settings(state_dir=cache, device="cpu", threads=1))
    nursery.start()
    yield nursery
    nursery.close()


@pytest.fixture
def database_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "book.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def book(make_book: Callable[..., Book]) -> Book:
    return make_book(lease_ttl_s=20.0)


@pytest.fixture
def eventually(eventually: Callable[..., None]) -> Callable[..., None]:
    """With the patience that a trainer takes to become warm on a busy machine."""
    return partial(eventually, timeout_s=120)


class Floor:
    """One worker and its order book."""

    def __init__(self, book: Book, nursery: KnownNursery, state_dir: Path, **settings: Any) -> None:
        self.book = book
        self.nursery = nursery
        # The decoded data is shared: decoding it anew takes a second.
        state_dir.mkdir(exist_ok=True)
        (state_dir / "cache").symlink_to(nursery.cache)
        self.settings = Settings(
            state_dir=state_dir,
            worker_name="w",
            **({"heartbeat_s": 0.1, "lease_ttl_s": 20, "stop_grace_s": 20} | settings),
        )
        self.draining = threading.Event()
        self._thread: threading.Thread | None = None

    def order(self, **changes: Any) -> str:
        fields = {
            "model": {"kind": "mlp", "hidden": [16]},
            "data": {"kind": "digits", "size": 8},
            "deterministic": True,
            "batch_size": 64,
            **changes,
        }
        return self.book.submit(JobSpec.model_validate(fields)).job.id

    def begin(self) -> None:
        """Dispatch what waits to this worker, and let it work in a thread of its own."""
        self.book.worker_seen("w", "cpu")
        (dispatch,) = self.book.dispatch()
        place = Workplace(self.settings, self.book, self.nursery, Courier(self.book, self.settings), self.draining)
        self._thread = threading.Thread(target=work, args=(place, dispatch.job_id, dispatch.dispatch_seq))
        self._thread.start()

    def end(self) -> None:
        assert self._thread is not None
        self._thread.join(120)
        assert not self._thread.is_alive()

    def work(self) -> None:
        """One attempt from its begin to its end."""
        self.begin()
        self.end()

    def child(self) -> Child:
        return self.nursery.taken[-1]

    def spooled(self, job_id: str, attempt: int) -> dict[tuple[str, int], float]:
        entries = Spool.create(self.settings.state_dir / "spool", job_id=job_id, attempt=attempt).batch(10**9)
        return {(entry.key, entry.step): entry.value for entry in entries}


@pytest.fixture
def floor(book: Book, nursery: KnownNursery, tmp_path: Path) -> Floor:
    return Floor(book, nursery, tmp_path / "state")


def uninterrupted(spec: JobSpec, cache: Path) -> tuple[str, dict[tuple[str, int], float]]:
    """The weights' hash and the curves of the same job, trained here in one go."""
    threads, digest = torch.get_num_threads(), ""
    torch.set_num_threads(1)  # as many as the trainers have: sums differ in their last bits otherwise
    points: dict[tuple[str, int], float] = {}
    for record in train(spec, folders=DataFolders(cache_dir=cache / "cache")):
        if isinstance(record, Metrics):
            points |= {(point.key, point.step): point.value for point in record.points}
        if isinstance(record, Checkpoint):
            tensors = record.snapshot.tensors.items()
            digest = sha256_of({name.removeprefix("model."): t for name, t in tensors if name.startswith("model.")})
    torch.set_num_threads(threads)
    return digest, points


def measured(points: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Without times and shares of time, which differ from run to run."""
    return {name: value for name, value in points.items() if not name[0].startswith(CLOCKS)}


def curves(book: Book, job_id: str) -> dict[tuple[str, int], float]:
    return {(point.key, point.step): point.value for point in book.metrics(job_id)}


def test_an_attempt_from_order_to_report(floor, book, cache):
    probes = [{"kind": "landscape", "every": 20, "points": 3}]
    job_id = floor.order(steps=60, checkpoint_every=25, evaluate_every=20, probes=probes)
    # Of a first attempt that this book knows nothing of, as on another machine after a restore.
    (floor.settings.state_dir / "jobs" / job_id / "a1" / "step_00000025").mkdir(parents=True)
    floor.work()
    job = book.job(job_id)
    assert (job.state, job.progress_step, job.infra_retries) == (State.SUCCEEDED, 60, 0)
    digest, points = uninterrupted(job.spec, cache)
    assert measured(curves(book, job_id)) == measured(points)
    assert measured(floor.spooled(job_id, 1)) == measured(points)
    rows = book.checkpoints(job_id)
    assert [(row.step, row.kind) for row in rows] == [(25, "periodic"), (50, "periodic"), (60, "last")]
    assert rows[-1].sha256 == digest
    # Only the last one stays on this disk after the end; all of them wait for MLflow.
    assert [row.path is not None and Path(row.path).is_dir() for row in rows] == [False, False, True]
    assert [path.name for path in (floor.settings.state_dir / "jobs" / job_id).glob("*/step_*")] == ["step_00000060"]
    spool = Spool.create(floor.settings.state_dir / "spool", job_id=job_id, attempt=1)
    files = {artifact.path: artifact.file for artifact in spool.artifacts()}
    assert list(files) == [
        *(
            f"checkpoints/step_{step:08d}/{name}"
            for step in (25, 50, 60)
            for name in ("model.safetensors", "training.safetensors", "state.json")
        ),
        "figures/landscape.png",
        "readings/landscape.npz",
    ]
    assert files["figures/landscape.png"].read_bytes().startswith(b"\x89PNG")
    readings = np.load(files["readings/landscape.npz"])
    assert (readings["step"].tolist(), readings["loss"].shape) == ([20, 40, 60], (3, 3))


def test_the_first_progress_does_not_wait_for_a_heartbeat(book, nursery, tmp_path, eventually):
    floor = Floor(book, nursery, tmp_path / "state", heartbeat_s=60)
    job_id = floor.order(steps=LONG)
    floor.begin()
    eventually(lambda: book.metrics(job_id, "train/loss"))
    assert (book.job(job_id).progress_step, book.metrics(job_id, "train/loss")[0].step) == (1, 1)
    floor.draining.set()
    floor.end()


def test_a_killed_trainer_costs_a_retry_and_nothing_else(floor, book, cache, eventually):
    job_id = floor.order(steps=1500, checkpoint_every=250, noise={"kind": "santurkar"}, optimizer={"kind": "adamw"})
    floor.begin()
    eventually(lambda: book.checkpoints(job_id))
    os.kill(floor.child().pid, signal.SIGKILL)
    floor.end()
    assert (book.job(job_id).state, book.job(job_id).infra_retries) == (State.QUEUED, 1)
    floor.work()
    job, (first, second) = book.job(job_id), book.attempts(job_id)
    assert (job.state, first.outcome, second.outcome) == (State.SUCCEEDED, "lost", "succeeded")
    assert first.reason.code == "trainer-lost"
    assert first.reason.detail.startswith("a training must end by itself, got SIGKILL")
    assert second.resumed_from >= 250
    digest, points = uninterrupted(job.spec, cache)
    assert book.checkpoints(job_id)[-1].sha256 == digest
    assert measured(curves(book, job_id)) == measured(points)


def test_a_broken_checkpoint_is_passed_over(floor, book, cache, eventually):
    job_id = floor.order(steps=1500, checkpoint_every=250)
    floor.begin()
    eventually(lambda: len(book.checkpoints(job_id)) >= 2)
    floor.child().kill()
    floor.end()
    before, newest = [row for row in book.checkpoints(job_id) if row.path is not None]
    with (Path(newest.path) / "model.safetensors").open("r+b") as model:
        model.truncate(100)
    floor.work()
    job = book.job(job_id)
    assert (job.state, book.attempts(job_id)[-1].resumed_from) == (State.SUCCEEDED, before.step)
    (event,) = [event for event in book.events(job_id) if event.type == "resumed_from"]
    assert event.data["step"] == before.step
    (passed_over,) = event.data["passed_over"]
    assert passed_over.startswith(f"checkpoint {folder_name(newest.step)}: model.safetensors was written with")
    assert book.checkpoints(job_id)[-1].sha256 == uninterrupted(job.spec, cache)[0]


def test_a_checkpoint_that_is_not_on_this_disk_comes_from_mlflow(floor, book, eventually, tmp_path, monkeypatch):
    job_id = floor.order(steps=1500, checkpoint_every=250)
    floor.begin()
    eventually(lambda: book.checkpoints(job_id))
    floor.child().kill()
    floor.end()
    book.set_mlflow_run(job_id, run_id="run", experiment_id="1")
    elsewhere, newest = tmp_path / "elsewhere", book.checkpoints(job_id)[-1].step
    (floor.settings.state_dir / "jobs" / job_id / "a1").rename(elsewhere)
    asked = []

    def fetch(_url: str, run_id: str, step: int, folder: Path) -> Path | None:
        asked.append((run_id, step))
        if len(asked) < 3:
            raise MlflowAway("MLflow is away")
        return Path(shutil.copytree(elsewhere / folder_name(step), folder / folder_name(step)))

    monkeypatch.setattr("worker.tasks.fetch_checkpoint", fetch)
    floor.draining.set()
    floor.work()
    floor.draining.clear()
    floor.work()
    assert asked == [("run", newest)] * 3
    assert [attempt.outcome for attempt in book.attempts(job_id)] == ["lost", "released", "succeeded"]
    assert (book.job(job_id).infra_retries, book.attempts(job_id)[-1].resumed_from) == (1, newest)


def test_a_probe_looks_at_the_last_weights_of_another_job_from_this_disk_or_from_mlflow(
    floor, book, tmp_path, monkeypatch
):
    def line() -> Any:
        """The readings of a job of another seed, on the line from the first job."""
        probe = {"kind": "interpolation", "points": 3, "job": one}
        job_id = floor.order(steps=20, seed=1, probes=[probe])
        floor.work()
        assert book.job(job_id).state is State.SUCCEEDED
        return np.load(floor.settings.state_dir / "jobs" / job_id / "a1" / "readings" / "interpolation.npz")

    one = floor.order(steps=20)
    floor.work()
    readings = line()
    assert 0 < readings["loss_start"][0] < curves(book, one)["train/loss", 1]
    assert np.isfinite(readings["barrier"]).all()

    book.set_mlflow_run(one, run_id="run", experiment_id="1")
    elsewhere = tmp_path / "elsewhere"
    (floor.settings.state_dir / "jobs" / one / "a1").rename(elsewhere)
    asked = []

    def fetch(_url: str, run_id: str, step: int, folder: Path) -> Path | None:
        asked.append((run_id, step))
        return Path(shutil.copytree(elsewhere / folder_name(step), folder / folder_name(step)))

    monkeypatch.setattr("worker.tasks.fetch_checkpoint", fetch)
    assert line()["loss"].tolist() == readings["loss"].tolist()
    assert asked == [("run", 20)]
    # What was fetched goes with what else an ended job leaves behind.
    assert not list(floor.settings.state_dir.glob("jobs/*/of_*/step_*"))


def test_a_draining_worker_gives_the_job_back_uncharged(floor, book, cache, eventually):
    job_id = floor.order(steps=1500, checkpoint_every=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 10)
    floor.draining.set()
    floor.end()
    job = book.job(job_id)
    assert (job.state, job.infra_retries, job.reason) == (State.QUEUED, 0, None)
    (row,) = book.checkpoints(job_id)
    assert 10 < row.step < 1500
    floor.draining.clear()
    floor.work()
    job = book.job(job_id)
    assert [attempt.outcome for attempt in book.attempts(job_id)] == ["released", "succeeded"]
    assert book.attempts(job_id)[-1].resumed_from == row.step
    digest, points = uninterrupted(job.spec, cache)
    assert book.checkpoints(job_id)[-1].sha256 == digest
    assert measured(curves(book, job_id)) == measured(points)


def test_a_drain_before_the_first_step_is_uncharged_too(floor, book):
    job_id = floor.order(steps=LONG)
    floor.draining.set()
    floor.work()
    assert (book.job(job_id).state, book.job(job_id).infra_retries) == (State.QUEUED, 0)


@pytest.mark.parametrize(("wish", "checkpoints"), [(Desired.CANCEL, 1), (Desired.KILL, 0)])
def test_a_running_job_can_be_ended(floor, book, eventually, wish, checkpoints):
    job_id = floor.order(steps=LONG, checkpoint_every=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    book.wish(job_id, wish)
    floor.end()
    assert book.job(job_id).state is State.CANCELLED
    assert len(book.checkpoints(job_id)) == checkpoints
    assert not floor.child().alive()


def test_a_paused_job_goes_on_where_it_was(floor, book, eventually):
    job_id = floor.order(steps=1500, checkpoint_every=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    book.wish(job_id, Desired.PAUSE)
    floor.end()
    assert book.job(job_id).state is State.PAUSED
    book.wish(job_id, Desired.RUN)
    floor.work()
    assert book.job(job_id).state is State.SUCCEEDED
    assert book.attempts(job_id)[-1].resumed_from == book.checkpoints(job_id)[0].step > 0


def test_a_trainer_that_does_not_stop_is_killed_after_the_grace_time(book, nursery, tmp_path, eventually):
    floor = Floor(book, nursery, tmp_path / "state", stop_grace_s=0.5)
    job_id = floor.order(steps=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    os.kill(floor.child().pid, signal.SIGSTOP)
    book.wish(job_id, Desired.CANCEL)
    floor.end()
    assert book.job(job_id).state is State.CANCELLED


def test_a_trainer_that_hangs_is_lost(book, nursery, tmp_path, eventually):
    floor = Floor(book, nursery, tmp_path / "state", hang_timeout_s=3)
    job_id = floor.order(steps=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    os.kill(floor.child().pid, signal.SIGSTOP)
    floor.end()
    job = book.job(job_id)
    assert (job.state, job.infra_retries) == (State.QUEUED, 1)
    assert book.attempts(job_id)[0].reason.code == "hang"


def test_an_attempt_whose_lease_was_given_away_ends_and_writes_nothing(floor, book, eventually, set_columns):
    job_id = floor.order(steps=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    set_columns(book, job_id, lease_token="somebody else's")
    before = len(book.events(job_id))
    floor.end()
    assert not floor.child().alive()
    assert (book.job(job_id).state, len(book.events(job_id))) == (State.RUNNING, before)


def test_a_worker_cut_off_from_the_book_ends_its_training_in_time(
    make_book, nursery, tmp_path, eventually, monkeypatch
):
    book = make_book(lease_ttl_s=6.0)
    floor = Floor(book, nursery, tmp_path / "state", lease_ttl_s=6)
    job_id = floor.order(steps=LONG)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    with monkeypatch.context() as patch:
        for method in ("renew", "add_metrics", "commit_checkpoint", "finish"):
            patch.setattr(Book, method, lambda *_, **__: (_ for _ in ()).throw(BookUnavailable("away")))
        cut_at = time.monotonic()
        eventually(lambda: not floor.child().alive())
        assert time.monotonic() - cut_at < 6.0, "the training must have ended before the lease did"
        floor.draining.set()  # or else it would wait for the book for ever
        floor.settings.stop_grace_s = 0.1
        floor.end()
    eventually(lambda: book.reconcile().requeued == (job_id,))


def test_a_short_outage_of_the_book_is_ridden_out(floor, book, cache, eventually, monkeypatch):
    job_id = floor.order(steps=2000, checkpoint_every=200)
    floor.begin()
    eventually(lambda: book.job(job_id).progress_step > 0)
    with monkeypatch.context() as patch:
        for method in ("renew", "add_metrics", "commit_checkpoint", "finish"):
            patch.setattr(Book, method, lambda *_, **__: (_ for _ in ()).throw(BookUnavailable("away")))
        time.sleep(1)
    floor.end()
    job = book.job(job_id)
    assert (job.state, len(book.attempts(job_id))) == (State.SUCCEEDED, 1)
    assert [row.step for row in book.checkpoints(job_id)] == list(range(200, 2001, 200))
    assert measured(curves(book, job_id)) == measured(uninterrupted(job.spec, cache)[1])


def test_divergence_is_a_result(floor, book):
    job_id = floor.order(
        steps=200, norm={"kind": "none"}, optimizer={"kind": "sgd", "lr": 300.0}, model={"kind": "mlp"}
    )
    floor.work()
    job = book.job(job_id)
    assert (job.state, job.reason.code) == (State.DIVERGED, "diverged")
    assert job.reason.detail.startswith("the loss must stay finite, got ")


def test_a_spec_that_cannot_be_trained_here_fails_at_once(floor, book, tmp_path):
    floor.settings.data_dir, floor.settings.hub = tmp_path, False
    job_id = floor.order(data={"kind": "cifar10"})
    floor.work()
    job = book.job(job_id)
    assert (job.state, job.reason.code, len(book.attempts(job_id))) == (State.FAILED, "dataset-not-found", 1)
    assert "NORMCORE_DATA_DIR" in job.reason.detail


def test_an_exception_in_the_training_fails_the_job_with_its_words(floor, book, cache, tmp_path):
    job_id = floor.order(steps=100)
    floor.book.worker_seen("w", "cpu")
    (dispatch,) = book.dispatch()
    claim = book.claim(job_id, dispatch.dispatch_seq, "w")
    # A checkpoint of another model, by a mistake that no check of files can see.
    other = claim.spec.model_copy(update={"model": claim.spec.model.model_copy(update={"hidden": (3,)}), "steps": 5})
    records = train(other, folders=DataFolders(cache_dir=cache / "cache"))
    (snapshot,) = [record.snapshot for record in records if isinstance(record, Checkpoint)]
    saved = save(tmp_path / "other", snapshot)
    book.commit_checkpoint(claim.token, step=5, path=str(saved.path), sha256=saved.sha256, size=saved.bytes)
    book.release(claim.token)
    floor.work()
    job = book.job(job_id)
    assert (job.state, job.reason.code) == (State.FAILED, "exception")
    assert job.reason.detail.startswith("ValueError: a snapshot must be of the ")
    assert "Traceback" not in job.reason.detail


def test_an_old_message_is_worth_nothing_and_costs_no_trainer(floor, book, nursery):
    job_id = floor.order(steps=5)
    book.worker_seen("w", "cpu")
    (dispatch,) = book.dispatch()
    place = Workplace(floor.settings, book, nursery, Courier(book, floor.settings), floor.draining)
    work(place, job_id, dispatch.dispatch_seq - 1)
    unused = floor.child()
    assert book.job(job_id).state is State.DISPATCHED
    work(place, job_id, dispatch.dispatch_seq)
    assert floor.child() is unused
    assert book.job(job_id).state is State.SUCCEEDED
    work(place, job_id, dispatch.dispatch_seq)
    assert len(book.attempts(job_id)) == 1
