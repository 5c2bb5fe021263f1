"""The courier: brings what lies in the spools to MLflow, once, and never in the way of a training."""

from __future__ import annotations

import fcntl
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from normcore.records import Point
from worker.book import Book, BookUnavailable
from worker.recorder import BATCH, Recorder, brief
from worker.settings import Settings
from worker.spool import Entry, Spool
from worker.states import MLFLOW_STATUS, TERMINAL
from worker.views import Job

PASS_S = 1.0
"""How often the spools are looked through."""
MAX_BACKOFF_S = 30.0
MEND_EVERY_S = 60.0
"""How often runs are looked for that ended without their courier."""
STILL_S = 120.0
"""A run whose job ended elsewhere, and that nobody has added to for so long, is ended here."""
FIRST_ASIDE_S, MAX_ASIDE_S = 5.0, 600.0
"""How long a spool rests that MLflow refuses or that cannot be read: at first, and after many tries."""
BATCHES_IN_TURN = 20
"""How many batches of one spool are sent before the next spool has its turn."""

log = logging.getLogger("normcore.courier")


class Courier(threading.Thread):
    """Sends what the spools of a folder hold, also what earlier lives of the worker left there.

    Each point is sent once: in batches that are byte-identical when they are sent again, without what an earlier
    attempt has sent, and only while the order book says that the attempt's points belong to the job's history. While
    the book or MLflow is away nothing is sent, and nothing is lost. Of several workers on one folder one sends.

    Machines have folders of their own, and one may be lost with what it had not sent. So an attempt that goes on where
    one on another machine ended also sends the points before its beginning that MLflow lacks, out of the order book;
    and a machine that comes back to an attempt that was gone on with elsewhere sends no point, and no file that is
    there by now.
    """

    def __init__(self, book: Book, settings: Settings) -> None:
        super().__init__(name="courier", daemon=True)
        self._book = book
        self._settings = settings
        self._folder = settings.state_dir / "spool"
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._recorder: Recorder | None = None
        self._aside: dict[Path, tuple[float, float]] = {}
        self._away = False
        self._mended_at = -math.inf
        self._still: dict[str, tuple[float, dict[str, int]]] = {}

    def wake(self) -> None:
        """Look through the spools now."""
        self._wake.set()

    def close(self, patience_s: float) -> None:
        """Send what can be sent within so many seconds, and end; the rest is for the next life."""
        self._closing.set()
        self._wake.set()
        self.join(patience_s)

    def run(self) -> None:
        """Until closed: look through the spools every second, or less often while MLflow or the book is away."""
        pause_s, there = PASS_S, True
        while not self._closing.is_set():
            there = self.sync()
            pause_s = PASS_S if there else min(2 * pause_s, MAX_BACKOFF_S)
            self._wake.wait(pause_s)
            self._wake.clear()
        if there:
            self.sync()

    def sync(self) -> bool:
        """Send what may be sent of every spool; whether MLflow and the book were there."""
        with _alone_in(self._folder) as alone:
            try:
                if alone:
                    recorder = self._recorder or Recorder(self._book, self._settings)
                    waiting: set[str] = set()
                    for path in Spool.paths(self._folder):
                        # A job's attempts go in their order: what an earlier one may still send depends on where the
                        # later one begins, and nobody else must have sent past that.
                        if (job_id := path.name.partition(".")[0]) in waiting:
                            continue
                        if not self._visit(path, recorder):
                            waiting.add(job_id)
                    self._mend(recorder)
                    self._recorder = recorder
            except BookUnavailable as error:
                return self._told(f"the courier waits: {brief(error)}")
            except Exception as error:  # noqa: BLE001 - MLflow, requests and urllib3 raise each their own
                self._recorder = None
                return self._told(f"MLflow at {self._settings.mlflow_url} is away, nothing is lost: {brief(error)}")
        return self._told(None)

    def _told(self, trouble: str | None) -> bool:
        """Log an outage when it begins and when it is over; whether there is none."""
        if trouble is not None and not self._away:
            log.warning("%s", trouble)
        if trouble is None and self._away:
            log.info("the courier goes on: MLflow and the order book are there")
        self._away = trouble is not None
        return not self._away

    def _visit(self, path: Path, recorder: Recorder) -> bool:
        """Send what may be sent of a spool; whether it is done with and gone."""
        until, rest_s = self._aside.get(path, (0.0, FIRST_ASIDE_S))
        if until > time.monotonic():
            return False
        try:
            with closing(Spool(path)) as spool:
                if not self._send(spool, recorder):
                    return False
                spool.delete()
                self._aside.pop(path, None)
                return True
        except BookUnavailable:
            raise
        except Exception:
            if not recorder.answers():
                raise
            # MLflow is there, so this spool is in trouble, and it must not be in the way of the other jobs. Somebody
            # may have deleted the experiment, which the recorder looks up anew.
            recorder.forget()
            log.exception("%s cannot be sent now; it stays and is tried again in %g s", path.name, rest_s)
            self._aside[path] = time.monotonic() + rest_s, min(4 * rest_s, MAX_ASIDE_S)
            return False

    def _send(self, spool: Spool, recorder: Recorder) -> bool:
        """Send what may be sent of a spool; whether nothing of it will ever have to be sent any more."""
        # Looked at before the spool is: an attempt that has ended by now has written its last word by then.
        job = self._book.job(spool.job_id)
        if job is None:
            return False
        if self._undone(spool):
            log.warning("%s is of an attempt that a restored order book knows nothing of, and is gone", spool.path.name)
            return True
        newest, ended = spool.attempt == job.attempt, job.state in TERMINAL
        run_id = recorder.run_of(job)
        if spool.attempt > 1 and not spool.seeded and not self._seed(spool, run_id, job, recorder):
            return False
        if newest and ended and recorder.ended(run_id):
            # Another machine, which had not heard of this one for long, sent it all out of the order book.
            spool.seed(recorder.steps_held(run_id))
        limit = self._send_points(spool, run_id, job, recorder, everything=newest and ended)
        if tags := spool.tags():
            recorder.set_tags(run_id, tags)
            spool.tags_sent(tags)
        self._send_artifacts(spool, run_id, recorder, up_to=limit)
        if newest and not ended:
            if spool.fact("status") != (status := MLFLOW_STATUS[job.state]):
                recorder.mirror(run_id, job)
                spool.note(status=status)
            return False
        done = spool.empty(up_to=limit)
        if newest and done:
            recorder.end(run_id, job)
        return done

    def _send_points(self, spool: Spool, run_id: str, job: Job, recorder: Recorder, *, everything: bool) -> int | None:
        """Send points, each batch after asking the book up to which step; that step."""
        limit = None
        for _ in range(BATCHES_IN_TURN):
            if self._overtaken(spool):
                spool.drop_points()
            limit = None if everything else self._book.last_sendable_step(job.id, spool.attempt)
            if not (batch := spool.batch(BATCH, up_to=limit)):
                break
            recorder.log_points(run_id, batch)
            spool.sent(batch)
        return limit

    def _send_artifacts(self, spool: Spool, run_id: str, recorder: Recorder, *, up_to: int | None) -> None:
        """Send files, each after the points up to its step: a checkpoint that is there lacks nothing."""
        # In this order: what is in the list was written after its points were.
        artifacts, waiting = spool.artifacts(up_to=up_to), spool.first_step()
        for artifact in artifacts:
            if waiting is not None and artifact.step >= waiting:
                continue
            if self._overtaken(spool) and recorder.holds(run_id, artifact.path):
                log.info("%s of job %s is there from a later attempt", artifact.path, spool.job_id)
            elif artifact.file.exists():
                recorder.log_file(run_id, artifact.path, artifact.file)
            else:
                log.warning("%s of job %s is gone from the spool and will not be sent", artifact.path, spool.job_id)
            spool.artifact_sent(artifact)

    def _seed(self, spool: Spool, run_id: str, job: Job, recorder: Recorder) -> bool:
        """Take up where earlier attempts ended, here or elsewhere; whether it is known yet where that is."""
        (attempt,) = (attempt for attempt in self._book.attempts(job.id) if attempt.n == spool.attempt)
        if attempt.resumed_from is None and attempt.ended_at is None:
            return False
        held, begins = recorder.steps_held(run_id), attempt.resumed_from or 0
        if attempt.resumed_from is None and job.attempt == spool.attempt and job.state in TERMINAL:
            begins = job.num_steps  # it never began, and nobody measures anything of the job again
        spool.seed(held, [point for point in self._lacking(job.id, held) if point.step <= begins])
        return True

    def _lacking(self, job_id: str, held: Mapping[str, int]) -> Iterator[Point]:
        """What the order book has of a job's curves, and its run has not."""
        for key in self._book.metric_keys(job_id):
            for point in self._book.metrics(job_id, key, after_step=held.get(key)):
                yield Point(point.key, point.step, point.value)

    def _overtaken(self, spool: Spool) -> bool:
        """Whether a later attempt of the job was begun on another machine, which does not wait for this spool."""
        job = self._book.job(spool.job_id)
        successor = spool.path.with_name(f"{spool.job_id}.a{spool.attempt + 1}.db")
        return job is not None and job.attempt > spool.attempt and not successor.exists()

    def _undone(self, spool: Spool) -> bool:
        """Whether a spool is of another attempt than the one that bears its number: the book was restored since then.

        A machine that joined keeps its spools over a restore of the laboratory.
        """
        owners = [attempt.worker for attempt in self._book.attempts(spool.job_id) if attempt.n == spool.attempt]
        return not owners or spool.fact("worker") not in {None, *owners}

    def _mend(self, recorder: Recorder) -> None:
        """End the runs of jobs that ended without a courier, such as those of a machine that never came back.

        What such a machine had not sent comes from the order book, once it has been silent for long.
        """
        if time.monotonic() < self._mended_at + MEND_EVERY_S:
            return
        waiting = {path.name.partition(".")[0] for path in Spool.paths(self._folder)}
        for run_id, job_id in recorder.unended():
            job = None if job_id in waiting else self._book.job(job_id)
            if job is not None and job.state in TERMINAL and self._silent(run_id, recorder):
                assert job.finished_at is not None
                # The time is the same whoever sends: two couriers that do this at once store each point once.
                at_ms, held = int(job.finished_at * 1000), recorder.steps_held(run_id)
                lacking = [Entry(point.key, point.step, point.value, at_ms) for point in self._lacking(job_id, held)]
                for first in range(0, len(lacking), BATCH):
                    recorder.log_points(run_id, lacking[first : first + BATCH])
                recorder.end(run_id, job)
                del self._still[run_id]
        self._mended_at = time.monotonic()

    def _silent(self, run_id: str, recorder: Recorder) -> bool:
        """Whether nobody has added to a run since long, as far as this courier has seen."""
        held, now = recorder.steps_held(run_id), time.monotonic()
        since, before = self._still.get(run_id, (now, held))
        self._still[run_id] = (since if before == held else now, held)
        return before == held and now - since >= STILL_S


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Whether no other process works in a folder; none will meanwhile. The kernel ends it with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
