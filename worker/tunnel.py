"""The tunnel: the laboratory's services on this machine's own ports, through its gate. asyncssh's door on this side.

The ports stay open while the gate is away: whoever uses them then sees a service that is away, as it may be anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import NoReturn, Self

import asyncssh

from worker.endpoint import Endpoint
from worker.machine_key import MachineKey

LOCALHOST = "127.0.0.1"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""How long to wait before the gate is tried again: at first, and after many tries."""
PATIENCE_S = 5.0
"""How long a new connection waits for a gate that is away."""
CONNECT_S, LOGIN_S = 10.0, 15.0
KEEPALIVE_S, MISSED = 10, 3
CHUNK = 1 << 18

Reader = asyncio.StreamReader | asyncssh.SSHReader[bytes]
Writer = asyncio.StreamWriter | asyncssh.SSHWriter[bytes]

log = logging.getLogger("normcore.tunnel")


class Refused(Exception):
    """The gate, or who answers in its place, is not one to go on with: trying again does not help."""


class Tunnel:
    """An asynchronous context in which ports of this machine lead to endpoints in the laboratory.

    Args:
        gate: The laboratory's gate.
        key: This machine's.
        endpoints: Where to, as the gate knows them.
    """

    def __init__(self, gate: Endpoint, key: MachineKey, endpoints: Sequence[Endpoint]) -> None:
        self._gate = gate
        self._key = key
        self._endpoints = endpoints
        self._connection: asyncssh.SSHClientConnection | None = None
        self._servers = AsyncExitStack()
        self._forwards: set[asyncio.Task[None]] = set()
        self.up = asyncio.Event()
        """Set while the gate is connected."""
        self.here: tuple[Endpoint, ...] = ()
        """The ports on this machine, in the order of the endpoints."""

    async def __aenter__(self) -> Self:
        here = []
        for endpoint in self._endpoints:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: Endpoint = endpoint) -> None:
                task = asyncio.ensure_future(self._forward(reader, writer, to))
                self._forwards.add(task)
                task.add_done_callback(self._forwards.discard)

            server = await asyncio.start_server(accept, LOCALHOST, 0, limit=CHUNK)
            self._servers.callback(server.close)
            here.append(Endpoint(LOCALHOST, server.sockets[0].getsockname()[1]))
        self.here = tuple(here)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._servers.aclose()
        for task in list(self._forwards):
            task.cancel()
        await asyncio.gather(*self._forwards, return_exceptions=True)

    async def keep(self) -> NoReturn:
        """Connect to the gate, again and again, until cancelled.

        Raises:
            Refused: it does not let this machine in, or is not the gate that the machine's key is for.
        """
        pause_s, away = FIRST_PAUSE_S, False
        while True:
            try:
                async with await self._connected() as connection:
                    _go_on()
                    log.info("%s has joined the laboratory at %s", self._key.name, self._gate)
                    self._connection, pause_s, away = connection, FIRST_PAUSE_S, False
                    self.up.set()
                    await connection.wait_closed()
            except (TimeoutError, OSError, asyncssh.Error) as error:
                _go_on()
                if not away:
                    log.warning("the laboratory at %s is away, and is tried again: %s", self._gate, _why(error))
                away = True
            finally:
                self._connection = None
                self.up.clear()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connected(self) -> asyncssh.SSHClientConnection:
        try:
            key = asyncssh.import_private_key(base64.b64decode(self._key.private_key))
            host = asyncssh.import_public_key(self._key.host_key)
        except (binascii.Error, asyncssh.KeyImportError):
            raise Refused(
                f"the key of machine {self._key.name} must hold two keys of SSH, and does not; "
                f"make another one in the laboratory with: make machine NAME={self._key.name}"
            ) from None
        try:
            return await asyncssh.connect(
                self._gate.host,
                self._gate.port,
                username=self._key.name,
                client_keys=[key],
                known_hosts=([host], [], []),
                server_host_key_algs=["ssh-ed25519"],
                preferred_auth="publickey",
                # Nothing of who started this: neither their configuration nor their agent.
                config=None,
                agent_path=None,
                gss_host=None,
                compression_algs=["none"],
                connect_timeout=CONNECT_S,
                login_timeout=LOGIN_S,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=MISSED,
            )
        except asyncssh.HostKeyNotVerifiable:
            raise Refused(
                f"the laboratory at {self._gate} must show the host key that machine {self._key.name} was given, and "
                "shows another one: it is not that laboratory, or its gate was made anew; "
                f"make another machine's key there with: make machine NAME={self._key.name}"
            ) from None
        except asyncssh.PermissionDenied:
            raise Refused(
                f"the laboratory at {self._gate} must know machine {self._key.name} by its key, and does not: it was "
                f"removed there; make another key there with: make machine NAME={self._key.name}"
            ) from None

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: Endpoint) -> None:
        """One connection, from its first byte to its last."""
        try:
            with suppress(asyncio.TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(PATIENCE_S):
                    await self.up.wait()
                if self._connection is None:
                    return
                there_reader, there_writer = await self._connection.open_connection(to.host, to.port)
                try:
                    await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
                finally:
                    there_writer.close()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _go_on() -> None:
    """End here where this task was cancelled: who connects within a time limit may be done just then, and forget it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _pump(reader: Reader, writer: Writer) -> None:
    """Everything that is read is written, and at its end the end."""
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
