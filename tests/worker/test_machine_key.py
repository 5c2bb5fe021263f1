from __future__ import annotations

import base64

import pytest

from worker.machine_key import BadKey, MachineKey

KEY = MachineKey(
    name="gpu-box",
    private_key="MC4",
    host_key="ssh-ed25519 AAAA",
    database_url="postgresql+psycopg://normcore:secret@postgres/normcore",
    redis_url="redis://:secret@redis:6379/0",
    mlflow_url="http://mlflow:5000",
    mlflow_public_url="http://127.0.0.1:5000",
    mlflow_experiment="normcore",
)


def test_a_key_is_one_line_and_says_all_again():
    assert len(str(KEY).split()) == 1
    assert MachineKey.of(f" {KEY}\n") == KEY


def test_a_key_does_not_show_its_secrets_in_a_log():
    assert "secret" not in repr(KEY)
    assert "MC4" not in repr(KEY)


@pytest.mark.parametrize("text", ["", "ssh-ed25519 AAAA gpu-box", "normcore-machine-.x", "machine-1.x"])
def test_another_text_is_no_key(text):
    with pytest.raises(BadKey, match=rf"begins with normcore-machine-1, got {len(text)} others; make one .* NAME="):
        MachineKey.of(text)


def test_a_key_of_another_version_is_refused_by_its_version():
    with pytest.raises(BadKey, match=r"must be of version 1, which this Normcore reads, got version 2; bring"):
        MachineKey.of(str(KEY).replace("machine-1.", "machine-2."))


@pytest.mark.parametrize("end", [-1, -7, -100, len("normcore-machine-1.")])
def test_a_key_that_is_cut_off_is_refused_and_not_shown(end):
    with pytest.raises(BadKey, match=r"must be whole, got \d+ .*copy the line again") as bad:
        MachineKey.of(str(KEY)[:end])
    assert str(KEY)[30:50] not in str(bad.value)


def test_a_key_with_more_or_less_in_it_is_refused():
    for payload in (b"{}", b"[]", KEY.model_dump_json().encode()[:-1] + b',"shell":"sh"}'):
        with pytest.raises(BadKey, match="must be whole"):
            MachineKey.of(f"normcore-machine-1.{base64.urlsafe_b64encode(payload).decode()}")
