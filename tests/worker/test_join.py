"""Joining, with a real gate and a worker that is a line of shell."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from worker.endpoint import Endpoint
from worker.gate import Gate, host_key, new_key_pair, public_text
from worker.join import _join, environment, main
from worker.machine_key import MachineKey
from worker.machine_register import MachineRegister
from worker.settings import Settings
from worker.tunnel import Refused

HERE = Endpoint("127.0.0.1", 0)


@pytest.fixture
def key(tmp_path: Path) -> MachineKey:
    private, public = new_key_pair()
    MachineRegister(tmp_path / "gate").add("gpu-box", public)
    return MachineKey(
        name="gpu-box",
        private_key=private,
        host_key=public_text(host_key(tmp_path / "gate")),
        database_url="postgresql+psycopg://normcore:secret@postgres/normcore",
        redis_url="redis://:hidden@redis:6379/0",
        mlflow_url="http://mlflow:5000",
        mlflow_public_url="https://mlflow.example",
        mlflow_experiment="ours",
    )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Settings(worker_name="w")


@pytest.fixture
def joined(tmp_path: Path, key: MachineKey, config: Settings) -> Callable[..., int]:
    """Joins with a worker of shell, plays a scene meanwhile, and returns the exit status."""

    def join(worker: str, scene: Callable[[Gate], Awaitable[None]] | None = None) -> int:
        async def all_of_it() -> int:
            gate = Gate(MachineRegister(tmp_path / "gate"), [])
            async with await gate.open(host_key(tmp_path / "gate"), HERE.host, 0) as acceptor:
                address = Endpoint(HERE.host, acceptor.get_port())
                attending = asyncio.create_task(gate.attend())
                task = asyncio.create_task(_join(address, key, config, ["sh", "-c", f"cd {tmp_path}\n{worker}"]))
                try:
                    if scene is not None:
                        await scene(gate)
                    return await asyncio.wait_for(task, 20)
                finally:
                    attending.cancel()
                    for connection in gate.inside:
                        connection.abort()

        return asyncio.run(all_of_it())

    return join


async def written(file: Path) -> None:
    while not file.exists():
        await asyncio.sleep(0.01)


def test_the_worker_finds_the_laboratory_on_this_machine(joined, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMCORE_MACHINE_KEY", "for the tunnel alone")
    monkeypatch.setenv("NORMCORE_DATABASE_URL", "sqlite:///not-this-one.db")
    assert joined("env > env; exit 5") == 5
    env = dict(
        line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if line.startswith("NORMCORE_")
    )
    assert env["NORMCORE_DATABASE_URL"].startswith("postgresql+psycopg://normcore:secret@127.0.0.1:")
    assert env["NORMCORE_REDIS_URL"].startswith("redis://:hidden@127.0.0.1:")
    assert env["NORMCORE_MLFLOW_URL"].startswith("http://127.0.0.1:")
    assert env["NORMCORE_MLFLOW_PUBLIC_URL"] == "https://mlflow.example"
    assert env["NORMCORE_MLFLOW_EXPERIMENT"] == "ours"
    assert env["NORMCORE_WORKER_NAME"] == "gpu-box/w"
    assert "NORMCORE_MACHINE_KEY" not in env


def test_the_ports_are_set_into_the_urls(key, config):
    names = environment(key, [Endpoint("127.0.0.1", port) for port in (1, 2, 3)], config)
    assert names["NORMCORE_DATABASE_URL"] == "postgresql+psycopg://normcore:secret@127.0.0.1:1/normcore"
    assert names["NORMCORE_REDIS_URL"] == "redis://:hidden@127.0.0.1:2/0"
    assert names["NORMCORE_MLFLOW_URL"] == "http://127.0.0.1:3"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_the_tunnel_stays_until_the_worker_has_ended(joined, tmp_path, number):
    async def scene(gate: Gate) -> None:
        await written(tmp_path / "ready")
        os.kill(os.getpid(), number)
        await written(tmp_path / "asked")
        await asyncio.sleep(0.1)
        assert gate.inside
        (tmp_path / "done").touch()

    name = number.name.removeprefix("SIG")
    worker = f"""trap 'echo > asked; while [ ! -e done ]; do sleep 0.02; done; exit 7' {name}
        echo > ready; while :; do sleep 0.02; done"""
    assert joined(worker, scene) == 7


def test_a_worker_that_is_killed_is_told_of_as_a_shell_does(joined):
    assert joined("kill -KILL $$") == 137


def test_a_removed_machine_ends_its_worker_and_says_why(joined, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.gate.LOOK_S", 0.05)
    monkeypatch.setattr("worker.tunnel.FIRST_PAUSE_S", 0.05)

    async def scene(_gate: Gate) -> None:
        await written(tmp_path / "ready")
        MachineRegister(tmp_path / "gate").remove("gpu-box")

    worker = "trap 'echo > asked; exit 0' TERM; echo > ready; while :; do sleep 0.02; done"
    with pytest.raises(Refused, match="it was removed there; make another key there with: make machine NAME=gpu-box"):
        joined(worker, scene)
    assert (tmp_path / "asked").exists()


def test_while_the_laboratory_is_away_a_signal_is_the_end(key, config):
    async def scene() -> int:
        task = asyncio.create_task(_join(Endpoint("127.0.0.1", 9), key, config, ["false"]))
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(task, 10)

    assert asyncio.run(scene()) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"laboratory": None}, "NORMCORE_LABORATORY is not set"),
        ({"machine_key": None}, "NORMCORE_MACHINE_KEY is not set"),
        ({"machine_key": "normcore-machine-2.x"}, "must be of version 1, which this Normcore reads, got version 2"),
        ({"laboratory": "http://lab"}, "an address must be host:port, got 'http://lab'"),
    ],
)
def test_what_cannot_join_says_so_and_ends(key, caplog, changes, said):
    fields = {"laboratory": "127.0.0.1:9", "machine_key": str(key), **changes}
    assert main(Settings(**{name: value for name, value in fields.items() if value is not None}), ["false"]) == 2
    (record,) = caplog.records
    assert said in record.getMessage()
    assert str(key)[40:60] not in record.getMessage()
