import subprocess
import time

import pytest
import redis

from api.embedded.broker import find_broker


@pytest.fixture
def running(tmp_path):
    lives = []

    def run(broker):
        lives.append(subprocess.Popen(broker.command, stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while not broker.answers():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return lives[-1]

    yield run
    for life in lives:
        life.kill()
        life.wait()


def test_broker_listens_on_its_socket_alone_and_is_durable(tmp_path, running):
    broker = find_broker(tmp_path)
    life = running(broker)
    assert broker.url == f"redis+socket://{tmp_path}/valkey.sock?virtual_host=0"
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        client.lpush("queue", "job")
    life.terminate()
    life.wait()
    assert not broker.answers()
    running(broker)
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        assert client.lrange("queue", 0, -1) == [b"job"]


@pytest.mark.parametrize("folder", ["x" * 120, "with space"])
def test_socket_moves_out_of_a_folder_that_cannot_be_its_address(tmp_path, running, folder):
    broker = find_broker(tmp_path / folder)
    assert broker.folder.is_relative_to(tmp_path / folder)
    assert not broker.socket.is_relative_to(tmp_path)
    running(broker)
    with redis.Redis(unix_socket_path=broker.url.removeprefix("redis+socket://").split("?")[0]) as client:
        assert client.ping()
    broker.remove_socket()
    assert not broker.socket.parent.exists()


def script(folder, name, version):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def test_server_on_the_path_is_preferred(tmp_path, monkeypatch):
    redis_server = script(tmp_path, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=libc bits=64")
    monkeypatch.setenv("PATH", str(tmp_path))
    broker = find_broker(tmp_path / "var")
    assert (broker.program, broker.folder.name) == (redis_server, "redis-7.0")


def test_server_that_is_too_old_is_passed_over(tmp_path, monkeypatch):
    redis_server = script(tmp_path, "redis-server", "Redis server v=5.0.3 sha=00000000:0 malloc=libc bits=64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_broker(tmp_path / "var").program != redis_server


def test_no_server_at_all_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r"no Redis-compatible server was found: .*; install one, or set REDIS_URL"
    ):
        find_broker(tmp_path / "var")
