"""The one door to MLflow: what a job's run looks like there, and how its files come back.

MLflow is a projection of the order book. Whatever is done here may be done again: the same points, parameters, tags and
files sent twice are stored once.
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker import note
from worker.book import Book
from worker.checkpoint import FILES, folder_name
from worker.links import shared_view
from worker.settings import Settings
from worker.spool import Entry
from worker.states import MLFLOW_STATUS
from worker.views import Job

HEALTH_TIMEOUT_S = 5.0
LONGEST_NAME = 250
"""MLflow keeps no longer names of runs."""
BATCH = 1000
"""MLflow takes no more points in one request."""
CHECKPOINTS = "checkpoints"
"""The folder of a run's artifacts that its checkpoints are in."""
NOTE_TAG = "mlflow.note.content"

log = logging.getLogger("normcore.recorder")


def connect(url: str) -> Any:
    """A client of an MLflow server, which gives up soon: what cannot be sent now is sent later."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url)


class MlflowAway(ConnectionError):
    """MLflow does not answer, so that nobody knows what it has."""


class Recorder:
    """Writes jobs into MLflow. Every method may raise whatever MLflow's client raises when the server is away."""

    def __init__(self, book: Book, settings: Settings) -> None:
        self._book = book
        self._settings = settings
        self._client = connect(settings.mlflow_url)
        self._experiment: str | None = None

    def answers(self) -> bool:
        """Whether MLflow is there, whatever it may say of a request."""
        return _answers(self._settings.mlflow_url)

    def forget(self) -> None:
        """Look up the experiment anew when it is next needed."""
        self._experiment = None

    def run_of(self, job: Job) -> str:
        """The job's run: the one that the book names, or one with the job's tag, or a new one.

        The tag finds the run of a recorder that died before the book could name it; of two recorders that both make
        one, the book decides which.
        """
        if job.mlflow_run_id is not None:
            return job.mlflow_run_id
        experiment = self._experiment_id()
        query = f"tags.`{note.JOB_TAG}` = '{job.id}'"
        found = self._client.search_runs([experiment], filter_string=query, max_results=1)
        run_id = str(found[0].info.run_id) if found else self._create_run(experiment, job)
        self._dress(run_id, job)
        named = self._book.set_mlflow_run(job.id, run_id=run_id, experiment_id=experiment)
        if named != run_id:
            self._client.delete_run(run_id)
        return named

    def steps_held(self, run_id: str) -> dict[str, int]:
        """The highest step of each key that a run holds."""
        data = self._client.get_run(run_id).data.to_proto()
        return {str(metric.key): int(metric.step) for metric in data.metrics}

    def log_points(self, run_id: str, entries: Sequence[Entry]) -> None:
        """Add up to `BATCH` points to the curves."""
        from mlflow.entities import Metric

        metrics = [Metric(entry.key, entry.value, entry.at_ms, entry.step) for entry in entries]
        self._client.log_batch(run_id, metrics=metrics, synchronous=True)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)

    def log_file(self, run_id: str, path: str, file: Path) -> None:
        """Put a file at `path` of the run's artifacts; its own name must be the last part of that."""
        folder = str(Path(path).parent)
        self._client.log_artifact(run_id, str(file), None if folder == "." else folder)

    def holds(self, run_id: str, path: str) -> bool:
        """Whether a file is at `path` of the run's artifacts."""
        folder = str(Path(path).parent)
        found = self._client.list_artifacts(run_id, None if folder == "." else folder)
        return any(entry.path == path for entry in found)

    def mirror(self, run_id: str, job: Job) -> None:
        """Set the run's status as the state of a job that has not ended is."""
        self._client.update_run(run_id, status=MLFLOW_STATUS[job.state])

    def end(self, run_id: str, job: Job) -> None:
        """End the run as its job ended, with the note that says what came out."""
        self.set_tags(run_id, note.attempt_tags(self._book.attempts(job.id)) | {NOTE_TAG: note.note(job)})
        assert job.finished_at is not None
        self._client.set_terminated(run_id, MLFLOW_STATUS[job.state], end_time=int(job.finished_at * 1000))

    def ended(self, run_id: str) -> bool:
        """Whether a run has ended."""
        return str(self._client.get_run(run_id).info.status) in {"FINISHED", "FAILED", "KILLED"}

    def unended(self) -> Iterator[tuple[str, str]]:
        """The runs that have not ended, and their jobs' ids."""
        for status in ("RUNNING", "SCHEDULED"):
            query = f"attributes.status = '{status}'"
            for run in self._client.search_runs([self._experiment_id()], filter_string=query, max_results=1000):
                if (job_id := run.data.tags.get(note.JOB_TAG)) is not None:
                    yield str(run.info.run_id), str(job_id)

    def _create_run(self, experiment: str, job: Job) -> str:
        started_at = job.started_at if job.started_at is not None else job.created_at
        run = self._client.create_run(
            experiment, start_time=int(started_at * 1000), tags=note.tags(job), run_name=job.spec.name[:LONGEST_NAME]
        )
        return str(run.info.run_id)

    def _dress(self, run_id: str, job: Job) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in note.flat_params(job.spec).items()]
        self._client.log_batch(run_id, params=params, synchronous=True)
        self.set_tags(run_id, {NOTE_TAG: note.note(job)})

    def _experiment_id(self) -> str:
        """The experiment that jobs are recorded in, made where it is missing, with our columns on show."""
        if self._experiment is None:
            found = self._find_experiment()
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            view, columns = shared_view()
            for key, value in ((view, columns), (NOTE_TAG, note.EXPERIMENT_NOTE)):
                if key not in found.tags:
                    self._client.set_experiment_tag(found.experiment_id, key, value)
            self._experiment = str(found.experiment_id)
        return self._experiment

    def _find_experiment(self) -> Any:
        from mlflow.exceptions import RestException

        name = self._settings.mlflow_experiment
        if self._client.get_experiment_by_name(name) is None:
            try:
                self._client.create_experiment(name)
            except RestException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another recorder was first
                    raise
        return self._client.get_experiment_by_name(name)


def fetch_checkpoint(url: str, run_id: str, step: int, folder: Path) -> Path | None:
    """Bring a checkpoint's files from a run into `folder`, unverified; None where they cannot be had.

    Raises:
        MlflowAway: it may have them.
    """
    path = folder / folder_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as partial:
        whole = Path(partial) / path.name
        whole.mkdir()
        try:
            client = connect(url)
            for name, source in checkpoint_paths(step):
                Path(client.download_artifacts(run_id, source, partial)).rename(whole / name)
        except Exception as error:  # noqa: BLE001 - whatever the reason, it cannot be had
            if not _answers(url):
                raise MlflowAway(f"MLflow at {url} is away: {brief(error)}") from None
            log.warning("checkpoint %s of run %s cannot be had from MLflow: %s", path.name, run_id, brief(error))
            return None
        shutil.rmtree(path, ignore_errors=True)
        whole.rename(path)
    return path


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_TIMEOUT_S) as answer:  # noqa: S310
            return bool(answer.status == http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return False


def checkpoint_paths(step: int) -> Iterable[tuple[str, str]]:
    """The files of a checkpoint and their paths among a run's artifacts; the one that vouches for the others last.

    Example:
        >>> list(checkpoint_paths(500))[-1]
        ('state.json', 'checkpoints/step_00000500/state.json')
    """
    return [(name, f"{CHECKPOINTS}/{folder_name(step)}/{name}") for name in FILES]


def brief(error: Exception) -> str:
    """The first line of an error, which is what a log needs of a server that is away.

    Example:
        >>> brief(ConnectionError("refused" + chr(10) + "and much more"))
        'refused'
    """
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
