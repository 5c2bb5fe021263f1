"""Ports that are in use, found before anything starts, with their holder and the remedy."""

from __future__ import annotations

import errno
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_FREE_TO_ALL = 1024
"""Lower ports are root's."""

LISTEN = "0A"
"""How /proc/net/tcp writes that a socket listens."""


class PortTaken(RuntimeError):
    """A port that a service is to listen on cannot be had."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is to listen where, and the setting that moves it."""

    who: str
    host: str
    port: int
    setting: str


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that listens on a port."""

    pid: int
    command: str


def check(listeners: Sequence[Listener]) -> None:
    """Make sure that every listener can have its port.

    Raises:
        PortTaken: with a sentence for each port that cannot be had: who holds it, and how to move ours.
    """
    ours: set[int] = set()
    complaints = []
    for listener in listeners:
        complaint = _complaint(listener, ours)
        if complaint is not None:
            avoid = ours.union(other.port for other in listeners)
            complaints.append(f"{listener.who} {complaint}; {_remedy(listener, avoid)}")
        ours.add(listener.port)
    if complaints:
        raise PortTaken("\n".join(complaints))


def _complaint(listener: Listener, ours: set[int]) -> str | None:
    if listener.port in ours:
        return f"is to listen on port {listener.port}, which another of ours takes"
    try:
        _bind(listener.host, listener.port)
    except OSError as error:
        place = f"{listener.host}:{listener.port}"
        if error.errno != errno.EADDRINUSE:
            return f"cannot listen on {place}: {(error.strerror or str(error)).lower()}"
        holder = find_holder(listener.port)
        by = "" if holder is None else f" by process {holder.pid} ({holder.command})"
        return f"cannot listen on {place}: it is in use{by}"
    return None


def _remedy(listener: Listener, avoid: set[int]) -> str:
    for port in range(max(listener.port, FIRST_FREE_TO_ALL), 65536):
        if port not in avoid:
            try:
                _bind(listener.host, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    break
            else:
                return f"choose another: {listener.setting}={port} normcore up"
    return "set NORMCORE_API_HOST to an address of this machine, such as 127.0.0.1"


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: connections of an earlier life that linger do not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def find_holder(port: int) -> Holder | None:
    """The process that listens on a TCP port, where /proc tells: on Linux, for one's own processes (root: for all)."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(Path("/proc/net") / table, port)}
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = any(str(descriptor.readlink()) in links for descriptor in (process / "fd").iterdir())
            command = (process / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace") if held else ""
        except OSError:  # another user's process, or one that has just ended
            continue
        if held:
            return Holder(int(process.name), shlex.join(command.split("\0"))[:80])
    return None


def _listening(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port]
