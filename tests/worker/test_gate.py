"""The gate and the tunnel, both real, on this machine's loopback: a service behind it answers with what it is told."""

from __future__ import annotations

import asyncio
import base64
import errno
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from worker.endpoint import Endpoint
from worker.gate import Gate, host_key, new_key_pair, public_text
from worker.machine_key import MachineKey
from worker.machine_register import MachineRegister
from worker.tunnel import Refused, Tunnel

HOST = "127.0.0.1"


class Laboratory:
    """A service, and a gate that leads to it and to nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.register = MachineRegister(folder)
        self.address = Endpoint(HOST, 0)
        self.service = Endpoint(HOST, 0)
        self.connections = 0
        self._open = AsyncExitStack()

    async def serve(self) -> None:
        server = await asyncio.start_server(self._echo, HOST, 0)
        self.service = Endpoint(HOST, server.sockets[0].getsockname()[1])
        self._open.callback(server.close)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    @asynccontextmanager
    async def gate(self) -> AsyncIterator[Gate]:
        """Open it, at the port that it had before."""
        gate = Gate(self.register, [self.service])
        acceptor = await gate.open(host_key(self.folder), HOST, self.address.port)
        self.address = Endpoint(HOST, acceptor.get_port())
        attending = asyncio.create_task(gate.attend())
        try:
            yield gate
        finally:
            attending.cancel()
            acceptor.close()
            for connection in [*gate.inside, *gate.strangers]:
                connection.abort()
            await acceptor.wait_closed()

    def machine(self, name: str = "gpu-box", **changes: str) -> MachineKey:
        private, public = new_key_pair()
        self.register.add(name, public)
        fields = {
            "name": name,
            "private_key": private,
            "host_key": public_text(host_key(self.folder)),
            "database_url": "postgresql://postgres/normcore",
            "redis_url": "redis://redis",
            "mlflow_url": "http://mlflow:5000",
            "mlflow_public_url": "http://127.0.0.1:5000",
            "mlflow_experiment": "normcore",
        }
        return MachineKey.model_validate(fields | changes)

    async def close(self) -> None:
        await self._open.aclose()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.gate.LOOK_S", 0.05)
    monkeypatch.setattr("worker.tunnel.FIRST_PAUSE_S", 0.05)


@pytest.fixture
def played(tmp_path: Path) -> Callable[[Callable[[Laboratory], Awaitable[None]]], None]:
    """Plays a scene in a laboratory whose gate is not open yet."""

    def play(scene: Callable[[Laboratory], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            laboratory = Laboratory(tmp_path / "gate")
            await laboratory.serve()
            try:
                await asyncio.wait_for(scene(laboratory), 20)
            finally:
                await laboratory.close()

        asyncio.run(all_of_it())

    return play


@asynccontextmanager
async def tunnel_of(laboratory: Laboratory, key: MachineKey) -> AsyncIterator[tuple[Tunnel, asyncio.Task[Any]]]:
    async with Tunnel(laboratory.address, key, [laboratory.service]) as tunnel:
        keeping = asyncio.create_task(tunnel.keep())
        try:
            yield tunnel, keeping
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def echoed(tunnel: Tunnel, said: bytes) -> bytes:
    """What comes back when something is said and then nothing more."""
    reader, writer = await asyncio.open_connection(tunnel.here[0].host, tunnel.here[0].port)
    try:
        writer.write(said)
        writer.write_eof()
        with suppress(ConnectionError):
            return await reader.read()
        return b""
    finally:
        writer.close()


def directly(laboratory: Laboratory, key: MachineKey) -> Coroutine[Any, Any, asyncssh.SSHClientConnection]:
    """A client of SSH that is not ours, and asks for more."""
    private = asyncssh.import_private_key(base64.b64decode(key.private_key))
    address = laboratory.address
    return asyncssh.connect(
        address.host, address.port, username=key.name, client_keys=[private], known_hosts=None, config=None
    )


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_what_is_said_on_one_side_is_heard_on_the_other(played):
    async def scene(laboratory: Laboratory) -> None:
        async with laboratory.gate(), tunnel_of(laboratory, laboratory.machine()) as (tunnel, _):
            much = bytes(range(256)) * 20_000
            said = [echoed(tunnel, text) for text in (b"", b"a word", much)]
            assert await asyncio.gather(*said) == [b"", b"a word", much]

    played(scene)


def test_a_machine_may_forward_to_the_services_and_do_nothing_else(played, caplog):
    async def scene(laboratory: Laboratory) -> None:
        async with laboratory.gate(), await directly(laboratory, laboratory.machine()) as connection:
            await connection.open_connection(laboratory.service.host, laboratory.service.port)
            for host, port in ((HOST, laboratory.address.port), ("localhost", laboratory.service.port), (HOST, 22)):
                with pytest.raises(asyncssh.ChannelOpenError, match="not one of the laboratory's"):
                    await connection.open_connection(host, port)
            for more in (
                connection.run("id"),
                connection.create_process(),
                connection.start_sftp_client(),
                connection.open_unix_connection("/var/run/docker.sock"),
            ):
                with pytest.raises(asyncssh.Error):
                    await more
            for listening in (
                connection.forward_remote_port("", 0, HOST, 22),
                connection.forward_remote_path("/tmp/normcore-test.sock", "/tmp/x"),
            ):
                with pytest.raises(asyncssh.ChannelListenError):
                    await listening

    played(scene)
    assert "gpu-box may not reach '127.0.0.1', port 22" in caplog.text


def test_who_came_and_went_is_logged(played, caplog):
    async def scene(laboratory: Laboratory) -> None:
        async with laboratory.gate() as gate:
            async with tunnel_of(laboratory, laboratory.machine()) as (tunnel, _):
                await tunnel.up.wait()
            await until(lambda: not gate.inside)

    caplog.set_level("INFO", logger="normcore.gate")
    played(scene)
    assert [record.getMessage() for record in caplog.records if record.name == "normcore.gate"] == [
        "gpu-box joins from 127.0.0.1",
        "gpu-box leaves",
    ]


def test_a_key_that_is_not_in_the_register_is_refused(played):
    async def scene(laboratory: Laboratory) -> None:
        key = laboratory.machine()
        laboratory.register.remove(key.name)
        laboratory.machine()  # another key of the same name
        async with laboratory.gate(), tunnel_of(laboratory, key) as (_, keeping):
            with pytest.raises(Refused, match=r"must know machine gpu-box by its key, and does not: it was removed"):
                await keeping

    played(scene)


def test_who_tries_many_keys_is_logged_once_and_cut_off(played, caplog):
    async def scene(laboratory: Laboratory) -> None:
        keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(20)]
        async with laboratory.gate():
            address = laboratory.address
            with pytest.raises(asyncssh.ConnectionLost):
                await asyncssh.connect(
                    address.host, address.port, username="gpu-box", client_keys=keys, known_hosts=None, config=None
                )

    played(scene)
    assert caplog.text.count("a machine that calls itself 'gpu-box' is not let in") == 1


def test_a_machine_comes_in_by_its_own_name_only(played):
    async def scene(laboratory: Laboratory) -> None:
        laboratory.machine("other")
        key = laboratory.machine().model_copy(update={"name": "other"})
        async with laboratory.gate(), tunnel_of(laboratory, key) as (_, keeping):
            with pytest.raises(Refused, match="must know machine other by its key"):
                await keeping

    played(scene)


def test_passwords_do_not_open_the_gate(played):
    async def scene(laboratory: Laboratory) -> None:
        laboratory.machine()
        async with laboratory.gate():
            address = laboratory.address
            with pytest.raises(asyncssh.PermissionDenied):
                await asyncssh.connect(
                    address.host,
                    address.port,
                    username="gpu-box",
                    password="",
                    client_keys=[],
                    known_hosts=None,
                    config=None,
                    agent_path=None,
                )

    played(scene)


def test_a_removed_machine_is_cut_off_at_once_and_the_others_are_not(played):
    async def scene(laboratory: Laboratory) -> None:
        gone, stays = laboratory.machine("gone"), laboratory.machine("stays")
        async with (
            laboratory.gate(),
            tunnel_of(laboratory, gone) as (tunnel, keeping),
            tunnel_of(laboratory, stays) as (other, _),
        ):
            assert await echoed(tunnel, b"in") == b"in"
            reader, writer = await asyncio.open_connection(tunnel.here[0].host, tunnel.here[0].port)
            writer.write(b"still")
            assert await reader.readexactly(5) == b"still"
            laboratory.register.remove("gone")
            with suppress(ConnectionError):
                assert await reader.read() == b""  # the open connection ends
            writer.close()
            with pytest.raises(Refused, match="it was removed there"):
                await keeping
            assert await echoed(other, b"in") == b"in"

    played(scene)


def test_a_machine_is_cut_off_also_after_the_register_could_not_be_read(played, monkeypatch, caplog):
    async def scene(laboratory: Laboratory) -> None:
        key = laboratory.machine("gone")
        async with laboratory.gate(), tunnel_of(laboratory, key) as (tunnel, keeping):
            assert await echoed(tunnel, b"in") == b"in"
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(laboratory.register, "names", unreadable)
                await until(lambda: "the register of machines cannot be read" in caplog.text)
            laboratory.register.remove("gone")
            with pytest.raises(Refused, match="it was removed there"):
                await asyncio.wait_for(keeping, 5)

    def unreadable() -> dict[str, str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("worker.gate.LOOK_S", 0.05)
    played(scene)


def test_another_host_key_is_not_that_laboratory(played, tmp_path):
    async def scene(laboratory: Laboratory) -> None:
        key = laboratory.machine(host_key=public_text(host_key(tmp_path / "elsewhere")))
        async with laboratory.gate() as gate, tunnel_of(laboratory, key) as (tunnel, keeping):
            with pytest.raises(Refused, match="the host key that machine gpu-box was given, and shows another"):
                await keeping
            assert not tunnel.up.is_set()
            assert not gate.inside

    played(scene)


def test_the_tunnel_is_there_again_when_the_gate_is(played):
    async def scene(laboratory: Laboratory) -> None:
        key = laboratory.machine()
        async with AsyncExitStack() as stack:
            async with laboratory.gate():
                tunnel, _ = await stack.enter_async_context(tunnel_of(laboratory, key))
                assert await echoed(tunnel, b"before") == b"before"
            await until(lambda: not tunnel.up.is_set())
            waiting = asyncio.create_task(echoed(tunnel, b"meanwhile"))
            async with laboratory.gate():
                # On the same port here, which was open all the time.
                assert await waiting == b"meanwhile"

    played(scene)


def test_a_tunnel_that_is_ended_while_it_connects_ends(played, monkeypatch):
    async def at_the_same_moment(_self: Tunnel) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise ConnectionRefusedError from None

    monkeypatch.setattr(Tunnel, "_connected", at_the_same_moment)

    async def scene(laboratory: Laboratory) -> None:
        async with tunnel_of(laboratory, laboratory.machine()) as (_, keeping):
            await asyncio.sleep(0.01)
            keeping.cancel()
            await asyncio.wait([keeping], timeout=5)
            assert keeping.cancelled()

    played(scene)


def test_a_connection_ends_when_the_gate_stays_away(played, monkeypatch):
    monkeypatch.setattr("worker.tunnel.PATIENCE_S", 0.05)

    async def scene(laboratory: Laboratory) -> None:
        async with laboratory.gate():
            key = laboratory.machine()
        async with tunnel_of(laboratory, key) as (tunnel, keeping):
            assert await echoed(tunnel, b"anybody?") == b""
            assert not keeping.done()

    played(scene)


def test_a_service_that_is_away_is_a_connection_that_ends(played):
    async def scene(laboratory: Laboratory) -> None:
        await laboratory.close()
        async with laboratory.gate(), tunnel_of(laboratory, laboratory.machine()) as (tunnel, _):
            assert await echoed(tunnel, b"anybody?") == b""
            assert tunnel.up.is_set()

    played(scene)


def test_a_crowd_of_strangers_does_not_keep_a_machine_out(played, monkeypatch):
    monkeypatch.setattr("worker.gate.MOST_STRANGERS", 5)

    async def scene(laboratory: Laboratory) -> None:
        async with laboratory.gate() as gate, AsyncExitStack() as stack:
            for _ in range(8):
                _, writer = await asyncio.open_connection(HOST, laboratory.address.port)
                stack.callback(writer.close)
            await until(lambda: len(gate.strangers) == 5)
            async with tunnel_of(laboratory, laboratory.machine()) as (tunnel, _):
                assert await echoed(tunnel, b"in") == b"in"
                assert len(gate.strangers) == 4

    played(scene)


def test_the_host_key_is_made_once_and_is_the_owner_s_alone(tmp_path):
    first = host_key(tmp_path / "gate")
    assert host_key(tmp_path / "gate") == first
    (file,) = (tmp_path / "gate").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
