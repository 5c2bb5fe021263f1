"""The worker's process, with a real queue and a real scheduler: it is killed, and it is drained."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normcore.spec import JobSpec
from worker.book import Book, Desired, State

pytestmark = [
    pytest.mark.xdist_group("trainers"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
]


@pytest.fixture
def database_url(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "book.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def start_process(broker: Any, database_url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NORMCORE_")}
    environment |= {
        "NORMCORE_STATE_DIR": str(tmp_path / "state"),
        "NORMCORE_DATABASE_URL": database_url,
        "NORMCORE_REDIS_URL": broker.url,
        # Nobody listens there: what is recorded waits in the spool.
        "NORMCORE_MLFLOW_URL": "http://127.0.0.1:9",
        "NORMCORE_WORKER_NAME": "w",
        "NORMCORE_DEVICE": "cpu",
        "NORMCORE_THREADS": "1",
        "NORMCORE_HEARTBEAT_S": "0.2",
    }
    started: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "log").open("wb") as log:

        def start(module: str, **settings: str) -> subprocess.Popen[bytes]:
            command, own = [sys.executable, "-m", module], environment | settings
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.wait()


def trainers_of(pid: int) -> list[int]:
    """The trainers that a worker has spawned and that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX" and b"worker.trainer" in arguments:
            found.append(int(folder.name))
    return found


def lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_job_outlives_its_workers(book: Book, start_process, eventually) -> None:
    fields = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 1_000_000}
    job_id = book.submit(JobSpec.model_validate(fields | {"checkpoint_every": 100})).job.id
    start_process("worker.scheduler")

    # The first worker is killed: its trainers go with it, and its next life takes the job up from a checkpoint.
    worker = start_process("worker.run")
    eventually(lambda: len(book.checkpoints(job_id)) >= 2, timeout_s=120)
    trainers = trainers_of(worker.pid)
    assert trainers
    worker.kill()
    worker.wait()
    eventually(lambda: not any(lives(pid) for pid in trainers))
    worker = start_process("worker.run")
    eventually(lambda: book.job(job_id).attempt == 2 and book.attempts(job_id)[1].resumed_from, timeout_s=120)
    first, second = book.attempts(job_id)
    assert (first.outcome, first.reason.code) == ("lost", "worker-lost")
    assert second.resumed_from >= 200
    eventually(lambda: book.job(job_id).progress_step > second.resumed_from)

    # The second one is asked to end: the job goes back at no charge, and nobody is left.
    trainers = trainers_of(worker.pid)
    asked_at = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert time.monotonic() - asked_at < 30
    assert not any(lives(pid) for pid in trainers)
    job = book.job(job_id)
    assert (job.state, job.infra_retries, book.workers()) == (State.QUEUED, 1, [])
    assert book.attempts(job_id)[1].outcome == "released"
    assert book.checkpoints(job_id)[-1].step == job.progress_step
    assert book.wish(job_id, Desired.CANCEL).state is State.CANCELLED


def test_a_job_for_two_devices_goes_to_the_worker_that_has_them(book: Book, start_process, eventually) -> None:
    """Two workers take messages from the same Redis; only the one with two processes may hear of the job for two."""
    fields = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 2, "batch_size": 8}
    two, one = (book.submit(JobSpec.model_validate(fields | {"devices": devices})).job.id for devices in (2, 1))
    start_process("worker.scheduler")
    start_process("worker.run", NORMCORE_WORKER_NAME="small")
    start_process("worker.run", NORMCORE_WORKER_NAME="large", NORMCORE_DEVICES="2")
    eventually(lambda: {book.job(two).state, book.job(one).state} == {State.SUCCEEDED}, timeout_s=120)
    assert [(attempt.worker, attempt.outcome) for attempt in book.attempts(two)] == [("large", "succeeded")]
