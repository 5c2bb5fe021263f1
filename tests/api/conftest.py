"""The API over a real order book in SQLite and the real preview; only Redis, MLflow and workers are not there."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from api.app import create_app
from normcore.spec import JobSpec
from worker.book import Book, Claim, MetricPoint, Progress
from worker.migrate import upgrade
from worker.settings import Settings

ORDER = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 100}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A migrated database, made once: its bytes are copied for each test."""
    path = tmp_path_factory.mktemp("migrated") / "normcore.db"
    upgrade(f"sqlite:///{path}")
    return path.read_bytes()


def settings_in(folder: Path, migrated: bytes) -> Settings:
    (folder / "normcore.db").write_bytes(migrated)
    return Settings(
        state_dir=folder,
        data_dir=folder / "data",
        hub=False,
        database_url=None,
        redis_url=None,
        mlflow_url="http://127.0.0.1:9",
        mlflow_public_url="http://mlflow.example:5000/",
    )


@pytest.fixture
def settings(tmp_path: Path, migrated: bytes) -> Settings:
    return settings_in(tmp_path, migrated)


@pytest.fixture
def book(settings: Settings) -> Iterator[Book]:
    book = Book.open(settings)
    yield book
    book.close()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def order() -> dict[str, object]:
    """The body of a small job."""
    return dict(ORDER)


@pytest.fixture
def spec() -> JobSpec:
    """The same job."""
    return JobSpec.model_validate(ORDER)


class Worker:
    """A worker's side of the book, in the order in which a worker goes through it."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def claim(self) -> Claim:
        """Take the next job."""
        self.book.worker_seen("worker-1", "cpu")
        (dispatch,) = self.book.dispatch(limit=1)
        claim = self.book.claim(dispatch.job_id, dispatch.dispatch_seq, "worker-1")
        assert claim is not None
        return claim

    def train(self, claim: Claim, step: int, **points: float) -> None:
        """Report progress, and a point of each curve; `train_loss` is `train/loss`."""
        assert self.book.renew(claim.token, Progress(step=step, epoch=step / 11, steps_per_s=20.0)) is not None
        curves = [MetricPoint(name.replace("_", "/", 1), step, value) for name, value in points.items()]
        assert self.book.add_metrics(claim.token, curves)


@pytest.fixture
def worker(book: Book) -> Worker:
    return Worker(book)


@pytest.fixture
def server(settings: Settings) -> Iterator[str]:
    """The address of the API behind a real HTTP server, for what a test client does not do: streams and their ends."""
    with served(settings) as address:
        yield address


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory, migrated: bytes) -> Iterator[str]:
    """The same, one for all tests of a module."""
    with served(settings_in(tmp_path_factory.mktemp("server"), migrated)) as address:
        yield address


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
