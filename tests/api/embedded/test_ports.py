import os
import re
import socket

import pytest

from api.embedded.ports import Listener, PortTaken, check, find_holder


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_free_port_passes():
    check([Listener("the API", "127.0.0.1", free_port(), "NORMCORE_API_PORT")])


def test_taken_port_names_its_holder_and_a_free_one(taken):
    with pytest.raises(PortTaken) as refusal:
        check([Listener("the API", "127.0.0.1", taken, "NORMCORE_API_PORT")])
    said = str(refusal.value)
    assert said.startswith(f"the API cannot listen on 127.0.0.1:{taken}: it is in use by process {os.getpid()} (")
    assert "; choose another: NORMCORE_API_PORT=" in said
    offered = int(re.search("NORMCORE_API_PORT=([0-9]+)", said)[1])
    check([Listener("the API", "127.0.0.1", offered, "NORMCORE_API_PORT")])


def test_every_taken_port_is_named_at_once(taken):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortTaken) as refusal:
        check(
            [
                Listener("the API", "127.0.0.1", taken, "NORMCORE_API_PORT"),
                Listener("MLflow", "127.0.0.1", other.getsockname()[1], "NORMCORE_MLFLOW_PORT"),
            ]
        )
    assert [line.split(" cannot")[0] for line in str(refusal.value).splitlines()] == ["the API", "MLflow"]


def test_two_of_ours_on_one_port_are_refused():
    port = free_port()
    with pytest.raises(
        PortTaken, match=f"MLflow is to listen on port {port}, which another of ours takes; choose another"
    ):
        check(
            [
                Listener("the API", "127.0.0.1", port, "NORMCORE_API_PORT"),
                Listener("MLflow", "127.0.0.1", port, "NORMCORE_MLFLOW_PORT"),
            ]
        )


def test_address_of_another_machine_is_refused():
    with pytest.raises(
        PortTaken,
        match=r"the API cannot listen on 192\.0\.2\.1:8000: cannot assign requested address; set NORMCORE_API_HOST to",
    ):
        check([Listener("the API", "192.0.2.1", 8000, "NORMCORE_API_PORT")])


def test_holder_of_a_free_port_is_nobody():
    assert find_holder(free_port()) is None
