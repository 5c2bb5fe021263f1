"""The real services of one laboratory, started as a person starts them, in an empty environment and without a home."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from api.client import Client

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("up"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc"),
]
NORMCORE = str(Path(sys.executable).with_name("normcore"))
PATIENCE_S = 300


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Up:
    """`normcore up` on a state folder."""

    def __init__(self, folder):
        self.folder = folder
        self.api_port, self.mlflow_port = free_port(), free_port()
        self.output = folder / "up.txt"
        self.process = None

    @property
    def environment(self):
        return {
            "NORMCORE_STATE_DIR": str(self.folder / "var"),
            "NORMCORE_API_PORT": str(self.api_port),
            "NORMCORE_MLFLOW_PORT": str(self.mlflow_port),
            "NORMCORE_HUB": "false",
        }

    def start(self):
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [NORMCORE, "up"],
                env=self.environment,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )

    def run(self):
        """Start a laboratory that is to be refused."""
        return subprocess.run(
            [NORMCORE, "up"], env=self.environment, capture_output=True, text=True, cwd=self.folder, check=False
        )

    def wait_for(self, pattern):
        """Wait until the output has such a line."""
        self.wait_until(lambda: re.search(pattern, self.output.read_text(), re.MULTILINE), pattern)

    def wait_until(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what} in {PATIENCE_S} s:\n{self.output.read_text()}"
            time.sleep(0.05)

    def processes(self, word=""):
        """The laboratory's processes, zombies aside, whose command line has this word, by number."""
        ours = f"NORMCORE_STATE_DIR={self.folder / 'var'}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if ours in environment and word in command:
                found[int(folder.name)] = command
        return found


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("up"))
    up.start()
    try:
        up.wait_for("^Stop it with Ctrl-C")
        yield up
    finally:
        if up.process.poll() is None:
            up.process.terminate()
            up.process.wait(90)


def test_taken_port_is_said_before_anything_starts(tmp_path):
    refused = Up(tmp_path)
    with socket.create_server(("127.0.0.1", refused.mlflow_port)):
        done = refused.run()
    assert done.returncode == 1
    assert done.stdout.startswith(f"MLflow cannot listen on 127.0.0.1:{refused.mlflow_port}: it is in use by process ")
    assert re.search(r"; choose another: NORMCORE_MLFLOW_PORT=\d+ normcore up\n$", done.stdout)
    assert [path.name for path in (tmp_path / "var").iterdir()] == ["up.lock"]


def test_everything_is_up_and_says_where(up):
    with Client(f"http://127.0.0.1:{up.api_port}") as client:
        ready = client.ready()
        assert (ready.status, set(ready.checks.values())) == ("ok", {"ok"})
    assert httpx.get(f"http://127.0.0.1:{up.mlflow_port}/health").text == "OK"
    said = up.output.read_text()
    assert f"API     http://127.0.0.1:{up.api_port} " in said
    assert f"MLflow  http://127.0.0.1:{up.mlflow_port}/#/experiments" in said
    logs = {path.name for path in (up.folder / "var" / "log").iterdir()}
    assert logs == {f"{name}.log" for name in ("api", "broker", "migrations", "mlflow", "scheduler", "worker")}
    assert {path.name for path in up.folder.iterdir()} == {"var", "up.txt"}


def test_second_laboratory_is_refused_naming_the_first(up):
    done = up.run()
    assert done.returncode == 1
    assert f"{up.folder / 'var'} already has a laboratory, process {up.process.pid}; use that one, stop" in done.stdout


def test_killed_worker_is_started_again(up):
    (worker,) = up.processes("worker.run")
    os.kill(worker, signal.SIGKILL)
    up.wait_for("^worker: killed by SIGKILL, starting it again in 0.5 s")
    up.wait_for("(?s)^worker: ready in .*^worker: ready in ")
    (again,) = up.processes("worker.run")
    assert again != worker


def test_killed_mlflow_leaves_no_server_on_its_port(up):
    (leader,) = up.processes("mlflow server")
    before = set(up.processes(str(up.mlflow_port)))
    os.kill(leader, signal.SIGKILL)
    up.wait_for("(?s)^mlflow: killed by SIGKILL.*^mlflow: ready in ")
    assert not before & set(up.processes())


def test_killed_laboratory_leaves_no_process_and_the_next_goes_on(up):
    with Client(f"http://127.0.0.1:{up.api_port}") as client:
        job = client.submit({"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 10})
        assert client.wait(job.id).state == "succeeded"
    assert len(up.processes()) > 6
    up.process.kill()
    up.process.wait()
    up.start()
    up.wait_for("^api: ready in ")
    with Client(f"http://127.0.0.1:{up.api_port}") as client:
        assert [other.id for other in client.jobs()] == [job.id]
    # In the middle of the start, when some services have no handlers yet.
    up.process.terminate()
    assert up.process.wait(90) == 0
    assert up.output.read_text().splitlines()[-1] == (
        "The laboratory has stopped (SIGTERM); `normcore up` goes on where it was."
    )
    up.wait_until(lambda: not up.processes(), "end of the last process")
