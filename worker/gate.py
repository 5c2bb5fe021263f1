"""The gate, `python -m worker.gate`: where other machines come in, by SSH, to work for this laboratory.

A machine that the register knows by its key may open connections to the database, the queue and MLflow, and can do
nothing else here: no shell, no files, no other host, no listening. All three stay unpublished, and what passes is
encrypted. asyncssh's door on the laboratory's side.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
from collections.abc import Collection
from pathlib import Path

import asyncssh

from worker.endpoint import Endpoint
from worker.machine_register import MachineRegister
from worker.settings import Settings, settings

LOOK_S = 0.5
"""How often the register is looked at for machines that were removed."""
LOGIN_S = 10.0
MOST_STRANGERS = 64
"""How many connections may be about to show their keys."""
MOST_KEYS = 6
"""How many keys a connection may show that are not in the register; a machine has one."""
KEEPALIVE_S, MISSED = 10, 3
"""A machine that does not answer so often in so many seconds is gone."""
ALGORITHMS = {
    "kex_algs": ["curve25519-sha256"],
    "encryption_algs": ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
    "signature_algs": ["ssh-ed25519"],
    "compression_algs": ["none"],
}
"""What both sides, which are ours, speak."""

log = logging.getLogger("normcore.gate")


class Gate:
    """Lets the machines of a register in, to some endpoints.

    Args:
        register: Which machines; a removed one is cut off within a second.
        endpoints: Where to.
    """

    def __init__(self, register: MachineRegister, endpoints: Collection[Endpoint]) -> None:
        self.register = register
        self.endpoints = frozenset(endpoints)
        self.strangers: dict[asyncssh.SSHServerConnection, None] = {}
        """Those that have not shown their keys yet, the oldest first."""
        self.inside: dict[asyncssh.SSHServerConnection, str] = {}
        """The connections that are in, and the keys they came in by."""

    async def open(self, host_key: asyncssh.SSHKey, host: str, port: int) -> asyncssh.SSHAcceptor:
        """Listen."""
        return await asyncssh.listen(
            host,
            port,
            server_factory=lambda: _Visitor(self),
            server_host_keys=[host_key],
            login_timeout=LOGIN_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=MISSED,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_pty=False,
            allow_scp=False,
            gss_host=None,
            reuse_address=True,
            **ALGORITHMS,
        )

    async def attend(self) -> None:
        """Cut off the machines that are removed, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                known = self.register.names()
            except OSError as error:  # such as too many open files, which a machine may bring about
                log.error("the register of machines cannot be read, and is tried again: %s", error)  # noqa: TRY400
                continue
            for connection, key in list(self.inside.items()):
                if key not in known:
                    log.info("a machine was removed and is cut off")
                    connection.abort()


class _Visitor(asyncssh.SSHServer):
    """Who stands at the gate. Whatever is not answered here, asyncssh refuses by itself."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._key = ""
        self._refused = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._gate.strangers[conn] = None
        if len(self._gate.strangers) > MOST_STRANGERS:
            # The oldest has had the longest time to show its key: who just comes to stand here keeps nobody out.
            next(iter(self._gate.strangers)).abort()

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._key = public_text(key)
        known = self._gate.register.names().get(self._key) == username
        if not known:
            self._refused += 1
            if self._refused == 1:
                log.warning("a machine that calls itself %.80r is not let in from %s", username, self._from())
            if self._refused == MOST_KEYS:
                self._connection.abort()
        return known

    def auth_completed(self) -> None:
        self._gate.strangers.pop(self._connection, None)
        self._gate.inside[self._connection] = self._key
        log.info("%s joins from %s", self._connection.get_extra_info("username"), self._from())

    def connection_requested(self, dest_host: str, dest_port: int, *_origin: object) -> bool:
        if Endpoint(dest_host, dest_port) in self._gate.endpoints:
            return True
        name = self._connection.get_extra_info("username")
        log.warning("%s may not reach %.100r, port %d", name, dest_host, dest_port)
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "not one of the laboratory's")

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.strangers.pop(self._connection, None)
        if self._gate.inside.pop(self._connection, None) is not None:
            name = self._connection.get_extra_info("username")
            log.info("%s leaves%s", name, f": {exc}" if exc else "")

    def _from(self) -> str:
        return str(self._connection.get_extra_info("peername")[0])


def public_text(key: asyncssh.SSHKey) -> str:
    """A public key as the register has it: its kind and its bytes, without a comment."""
    return " ".join(key.export_public_key().decode().split()[:2])


def new_key_pair() -> tuple[str, str]:
    """A new machine's private key, as `MachineKey` has it, and the public one, as the register has it."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return base64.b64encode(key.export_private_key("pkcs8-der")).decode(), public_text(key)


def host_key(folder: Path) -> asyncssh.SSHKey:
    """The laboratory's own key, made when it is first asked for; machines hold on to it."""
    path = folder / "host_key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = folder / f".host_key.{os.getpid()}"
        fresh.touch(mode=0o600)
        fresh.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        try:
            path.hardlink_to(fresh)  # whoever is first decides
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return asyncssh.read_private_key(path)


def folder_of(config: Settings) -> Path:
    """Where the gate's key and its register are."""
    return config.state_dir.absolute() / "gate"


async def main(config: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # what there is to know is said here
    folder = folder_of(config)
    endpoints = [Endpoint.of(url) for url in (config.database, config.broker, config.mlflow_url)]
    gate, stop = Gate(MachineRegister(folder), endpoints), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await gate.open(host_key(folder), "", config.gate_port):
        log.info("open at port %d, to %s", config.gate_port, ", ".join(map(str, endpoints)))
        attending = asyncio.create_task(gate.attend())
        await stop.wait()
        attending.cancel()
        for connection in list(gate.inside):
            connection.disconnect(asyncssh.DISC_BY_APPLICATION, "the laboratory's gate closes")


if __name__ == "__main__":
    asyncio.run(main(settings()))
