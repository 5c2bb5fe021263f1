"""The life of one attempt: order the trainer, hear it out, watch it, end it when need be, and report once.

Three threads, so that none waits for what another one needs: the reader moves the trainer's messages into the spool,
the clerk talks to the order book, and the supervisor itself, in the task's thread, only watches clocks and flags.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from normcore.records import Diverged, Finished, Metrics, Remark, Stopped
from worker import last_weights, resume
from worker.book import Book, BookUnavailable
from worker.child import Child
from worker.clerk import Clerk
from worker.exits import Ending, ending_of
from worker.oom import oom_kills
from worker.recorder import MlflowAway, checkpoint_paths
from worker.settings import Settings
from worker.spool import Spool
from worker.states import Desired, Event
from worker.tidy import tidy
from worker.views import CheckpointRow, Claim, Progress, Reason
from worker.wire import Failed, Kept, Made, Message, Order

TICK_S = 0.05
RATE_WINDOW_S = 10.0
"""The steps per second that people are shown are those of the last so many seconds."""

T = TypeVar("T")

log = logging.getLogger("normcore.supervisor")


class Supervisor:
    """Runs one attempt to its end.

    Args:
        claim: The right to run it.
        child: A warm trainer.
        spool: Where everything is written that MLflow shall have.
        claimed_at: The monotonic time before the claim.
        fetch: Brings a checkpoint's files from a run of MLflow into a folder; None where they cannot be had.
        draining: Set when the worker is to end: the job goes back to the queue, at no charge.
        first_step: Called once, after the first step.
    """

    def __init__(
        self,
        claim: Claim,
        child: Child,
        book: Book,
        spool: Spool,
        settings: Settings,
        *,
        claimed_at: float,
        fetch: Callable[[str | None, CheckpointRow, Path], Path | None],
        draining: threading.Event,
        first_step: Callable[[], None],
    ) -> None:
        self._claim = claim
        self._child = child
        self._book = book
        self._spool = spool
        self._settings = settings
        self._fetch = fetch
        self._draining = draining
        self._first_step = first_step
        self._folder = settings.state_dir.absolute() / "jobs" / claim.job_id
        self._clerk = Clerk(book, claim.token, settings, claimed_at=claimed_at)
        self._silent = threading.Event()
        self._heard_at = time.monotonic()
        self._pace: deque[tuple[float, int]] = deque()
        self._last: Message | None = None
        self._trouble: Reason | None = None
        self._killed: Reason | None = None
        self._oom_kills = oom_kills()
        self._give_up_at: float | None = None

    def run(self) -> None:
        """The attempt, from its order to its report. Nothing is reported by an attempt that is fenced."""
        self._clerk.start()
        try:
            if not self._begin():
                self._insist(lambda: self._book.release(self._claim.token))
                return
            reader = threading.Thread(target=self._read, name="reader", daemon=True)
            reader.start()
            self._watch()
            reader.join()
            code = self._child.leave()
        finally:
            self._child.kill()
            self._clerk.close()
        self._report(code)

    def _begin(self) -> bool:
        """Order the trainer to begin where the job's newest checkpoint is; whether the attempt is to be at all."""
        claim = self._claim
        facts = self._child.ready.facts if self._child.ready else {}
        self._spool.tag({f"attempt.{claim.attempt}.{key}": value for key, value in facts.items()})
        start = resume.Start()
        # Before the first attempt too: there may have been another first one, which a restored book knows nothing of.
        resume.sweep(self._folder, [row for row in claim.checkpoints if row.path is not None])
        if claim.attempt > 1:
            fetched, run_id = self._folder / "fetched", claim.mlflow_run_id
            found = resume.choose_in_time(
                claim.checkpoints, lambda row: self._fetch(run_id, row, fetched), wanted=self._wanted
            )
            if found is None:
                return False
            start = found
            self._insist(lambda: self._book.resumed(claim.token, start.step, start.passed_over))
        order = Order(
            spec=claim.spec.model_dump_json(),
            folder=str(self._folder / f"a{claim.attempt}"),
            resume=None if start.path is None else str(start.path),
            data_dir=str(self._settings.data_dir.absolute()),
            cache_dir=str(self._settings.state_dir.absolute() / "cache"),
            hub=self._settings.hub,
            devices=self._settings.devices,
            others=self._others(),
        )
        log.info("job %s attempt %d begins at step %d", claim.job_id, claim.attempt, start.step)
        self._heard_at = time.monotonic()
        self._child.order(order)
        return True

    def _wanted(self) -> bool:
        lost = self._clerk.fenced or self._clerk.expired
        return not (lost or self._draining.is_set() or self._clerk.desired is not Desired.RUN)

    def _others(self) -> dict[str, str]:
        """Where the last weights of the jobs that probes name are; of those that are gone nothing is said here."""
        found: dict[str, str] = {}
        for job_id in self._claim.spec.named_jobs.values():
            # Swept with the job's own leftovers.
            fetch = partial(self._fetch_into, self._folder / f"of_{job_id}")
            path = self._insist(partial(last_weights.find, self._book, job_id, fetch))
            if path is not None:
                found[job_id] = str(path)
        return found

    def _fetch_into(self, folder: Path, run_id: str | None, row: CheckpointRow) -> Path | None:
        try:
            return self._fetch(run_id, row, folder)
        except MlflowAway as error:
            log.warning("%s", error)
            return None

    def _read(self) -> None:
        try:
            for message in self._child.messages():
                self._heard_at = time.monotonic()
                self._take(message)
        except Exception as error:
            log.exception("job %s: what its trainer said could not be kept", self._claim.job_id)
            self._trouble = Reason("worker-error", f"the worker must keep what a training records, got: {error}")
            self._child.kill()
        finally:
            self._silent.set()

    def _take(self, message: Message) -> None:
        """Into the spool first: what the order book knows of, MLflow will get."""
        match message:
            case Metrics():
                first = self._clerk.progress is None
                self._spool.add(message.points)
                self._clerk.add(message.points, self._progress(message.step))
                if first:
                    self._first_step()
            case Kept():
                for name, path in checkpoint_paths(message.step):
                    self._spool.enqueue(path, Path(message.path) / name, step=message.step)
                self._clerk.keep(message)
            case Made():
                self._spool.enqueue(message.path, Path(message.file), step=message.step)
            case Remark():
                self._spool.tag({f"attempt.{self._claim.attempt}.{message.code}": message.detail})
                self._clerk.remark(message)
            case Diverged() | Stopped() | Finished() | Failed():
                self._last = message

    def _progress(self, step: int) -> Progress:
        now = time.monotonic()
        self._pace.append((now, step))
        while self._pace[0][0] < now - RATE_WINDOW_S and len(self._pace) > 2:
            self._pace.popleft()
        (then, earlier), steps_per_epoch = self._pace[0], self._claim.spec.steps_per_epoch
        rate = (step - earlier) / (now - then) if now > then else None
        return Progress(step=step, epoch=step / steps_per_epoch, steps_per_s=rate)

    def _watch(self) -> None:
        """Until the trainer falls silent for good; seen to it that it does when it must."""
        stop_by: float | None = None
        while not self._silent.wait(TICK_S):
            now = time.monotonic()
            if self._killed is not None:
                continue
            if self._clerk.fenced or self._clerk.expired:
                self._kill("fenced", "an attempt must hold its lease, got none")
            elif self._clerk.desired is Desired.KILL:
                self._kill("killed", "the job was to be killed")
            elif stop_by is None and (self._clerk.desired is not Desired.RUN or self._draining.is_set()):
                self._child.stop()
                stop_by = now + self._settings.stop_grace_s
            elif stop_by is not None and now > stop_by:
                self._kill("stop-grace", f"a training must stop within {self._settings.stop_grace_s:g} s, and did not")
            elif now > self._heard_at + self._settings.hang_timeout_s:
                self._child.dump_stacks()
                limit = self._settings.hang_timeout_s
                self._kill("hang", f"a training must make progress, got none for {limit:g} s; its stacks are logged")

    def _kill(self, code: str, detail: str) -> None:
        log.warning("job %s attempt %d is ended: %s", self._claim.job_id, self._claim.attempt, detail)
        self._killed = Reason(code, detail)
        self._child.kill()

    def _report(self, code: int) -> None:
        """Everything into the book, and then the end, exactly once."""
        while self._clerk.is_alive() and not self._gives_up():
            self._clerk.join(TICK_S)
        if self._clerk.is_alive() or self._clerk.fenced or (self._killed and self._killed.code == "fenced"):
            log.warning("job %s attempt %d is fenced and reports nothing", self._claim.job_id, self._claim.attempt)
            return
        ending = self._ending(code)
        finish = self._insist(
            lambda: self._book.finish(self._claim.token, ending.event, ending.reason, self._clerk.progress)
        )
        log.info(
            "job %s attempt %d ends: %s%s",
            self._claim.job_id,
            self._claim.attempt,
            ending.event,
            "" if finish else ", but it was fenced meanwhile",
        )
        with suppress(BookUnavailable):  # the next life of the worker looks again
            tidy(self._book, self._folder)

    def _ending(self, code: int) -> Ending:
        """What to report. The book makes of it what the person's wishes and the retries left say."""
        if self._trouble is not None:
            return Ending(Event.LOST, self._trouble)
        ending = ending_of(code, self._last, kernel_killed=oom_kills() > self._oom_kills)
        if self._killed is None or ending.event is not Event.LOST:
            return ending  # a result that came just before the kill is a result
        return Ending(Event.RELEASED if self._draining.is_set() else Event.LOST, self._killed)

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Call until the book answers; None when the worker has to end before it does."""
        while True:
            try:
                return call()
            except BookUnavailable as error:
                if self._gives_up():
                    return None
                log.warning("%s", error)
                time.sleep(min(self._settings.heartbeat_s, 1.0))

    def _gives_up(self) -> bool:
        """Whether the worker is to end and has waited long enough for the book. The lease runs out by itself."""
        if self._give_up_at is None and self._draining.is_set():
            self._give_up_at = time.monotonic() + self._settings.stop_grace_s
        return self._give_up_at is not None and time.monotonic() > self._give_up_at
