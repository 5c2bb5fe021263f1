"""A whole laboratory, started as a person starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from api.client import ApiUnreachable, Client

START_S = 180


@dataclass(frozen=True)
class Laboratory:
    """A running `normcore up`."""

    client: Client
    mlflow_url: str
    state_dir: Path

    def kill(self, module: str) -> list[int]:
        """SIGKILL this laboratory's processes that run a module; their process ids."""
        killed = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = f"NORMCORE_STATE_DIR={self.state_dir}".encode() in environment
            if ours and module.encode() in arguments:
                os.kill(int(folder.name), signal.SIGKILL)
                killed.append(int(folder.name))
        return killed


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """The laboratory of this test run, on free ports, with a lease short enough to see it run out."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are found by /proc, which this system does not have")
    state_dir = tmp_path_factory.mktemp("laboratory")
    api_port, mlflow_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NORMCORE_")}
    environment |= {
        "NORMCORE_STATE_DIR": str(state_dir),
        "NORMCORE_API_PORT": str(api_port),
        "NORMCORE_MLFLOW_PORT": str(mlflow_port),
        "NORMCORE_LEASE_TTL_S": "8",
        "NORMCORE_HUB": "false",
    }
    log = state_dir / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("normcore")), "up"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with Client(f"http://127.0.0.1:{api_port}") as client:
            wait_until_ready(client, process, log)
            yield Laboratory(client, f"http://127.0.0.1:{mlflow_port}", state_dir)
    finally:
        process.terminate()
        process.wait(timeout=90)


def wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when every part of the laboratory answers."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if client.ready().status == "ok":
                return
        except ApiUnreachable:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the laboratory did not start:\n{log.read_text()}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
