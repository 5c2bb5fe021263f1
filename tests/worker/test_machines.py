from __future__ import annotations

import stat
from pathlib import Path

import pytest

from worker.gate import folder_of, host_key, public_text
from worker.machine_key import MachineKey
from worker.machine_register import KnownMachine, MachineRegister, UnknownMachine
from worker.machines import main
from worker.settings import Settings


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    return Settings(
        state_dir=tmp_path,
        database_url="postgresql+psycopg://normcore:secret@postgres/normcore",
        redis_url="redis://:hidden@redis:6379/0",
        mlflow_url="http://mlflow:5000",
        mlflow_public_url="https://mlflow.example/",
    )


def test_a_machine_is_added_listed_and_removed(config, capsys):
    assert main(["add", "gpu-box"], config) == 0
    (line,) = capsys.readouterr().out.splitlines()
    key = MachineKey.of(line)
    assert (key.name, key.mlflow_public_url) == ("gpu-box", "https://mlflow.example")
    assert (key.database_url, key.redis_url, key.mlflow_url) == (config.database, config.broker, "http://mlflow:5000")
    assert key.host_key == public_text(host_key(folder_of(config)))
    assert main(["add", "attic"], config) == 0
    capsys.readouterr()
    assert main(["list"], config) == 0
    assert capsys.readouterr().out.split() == ["attic", "gpu-box"]
    assert main(["remove", "gpu-box"], config) == 0
    assert main(["list"], config) == 0
    assert capsys.readouterr().out.split() == ["attic"]


def test_the_register_keeps_no_private_key_and_is_the_owner_s_alone(config, capsys):
    main(["add", "gpu-box"], config)
    key = MachineKey.of(capsys.readouterr().out)
    file = folder_of(config) / "machines"
    assert key.private_key not in file.read_text()
    assert "secret" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "gpu-box"], "a machine's name must be new, got 'gpu-box', which is in the register; remove it first"),
        (["remove", "attic"], "must be in the register to be removed, got 'attic'; known: gpu-box"),
        (["add", "gpu box"], "must be 1 to 63 letters, digits, dots, dashes or underscores, got 'gpu box'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(config, capsys, words, said):
    main(["add", "gpu-box"], config)
    capsys.readouterr()
    assert main(words, config) == 2
    out, err = capsys.readouterr()
    assert (out, said in err) == ("", True)


def test_a_laboratory_without_ports_has_no_keys_to_give(config, capsys):
    assert main(["add", "gpu-box"], config.model_copy(update={"database_url": None})) == 2
    assert "reaches a laboratory's services by host and port" in capsys.readouterr().err
    assert not MachineRegister(folder_of(config)).names()


def test_machines_added_at_the_same_time_are_all_there(tmp_path, in_parallel):
    register = MachineRegister(tmp_path)
    in_parallel(lambda n: MachineRegister(tmp_path).add(f"m{n}", f"ssh-ed25519 {n}"), range(8))
    assert sorted(register.names().values()) == [f"m{n}" for n in range(8)]
    with pytest.raises(KnownMachine):
        register.add("m1", "ssh-ed25519 x")
    with pytest.raises(UnknownMachine):
        register.remove("m9")
