"""What a backup says of itself is compared with every byte of it before anything is restored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib.metadata import version

import pytest

from worker import schema
from worker.backup import manifest
from worker.backup.manifest import BadBackup, check, seal

FILES = {"normcore.dump": b"jobs" * 1000, "mlflow.dump": b"", "state.tar": b"\0weights" * (1 << 18)}


def sealed(revision: str = "") -> bytes:
    """A backup as `check` reads it."""
    sizes = {name: len(content) for name, content in FILES.items()}
    facts = {"revision": revision or schema.known()[-1], "postgres": "15", "artifacts": "/state/mlflow"}
    return b"".join([seal(io.BytesIO(b"".join(FILES.values())), sizes, **facts).model_dump_json().encode(), b"\n"]) + (
        b"".join(FILES.values())
    )


def test_what_was_sealed_is_whole():
    found = check(io.BytesIO(sealed(schema.known()[0])))
    assert (found.normcore, found.mlflow) == (version("normcore"), version("mlflow"))
    assert {name: part.bytes for name, part in found.files.items()} == {
        name: len(content) for name, content in FILES.items()
    }


@pytest.mark.parametrize("revision", ["", "0999"])
def test_what_nobody_could_restore_is_not_sealed(revision):
    with pytest.raises(
        BadBackup, match=rf"must have a schema that this version knows, 0001 to \d{{4}}, got '{revision}'"
    ):
        seal(io.BytesIO(), {}, revision=revision, postgres="15", artifacts="/state/mlflow")


def flipped(backup: bytes) -> bytes:
    return backup[:-100] + bytes([backup[-100] ^ 1]) + backup[-99:]


def of_a_later_version(backup: bytes) -> bytes:
    return backup.replace(f'"revision":"{schema.known()[-1]}"'.encode(), b'"revision":"0999"')


def with_a_word_more(backup: bytes) -> bytes:
    line, _, rest = backup.partition(b"\n")
    return json.dumps({**json.loads(line), "password": "x"}).encode() + b"\n" + rest


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flipped, r"^state.tar must hold 2097152 bytes with sha256 \w{12}, got 2097152 with \w{12}; take another"),
        (lambda backup: backup[:-1], r"^state.tar must hold 2097152 bytes .*, got 2097151 with"),
        (lambda backup: backup + b"x", "^the last file must end where the manifest says, and goes on"),
        (lambda backup: backup[1:], "^manifest.json must say what the backup holds, got 1 mistakes"),
        (lambda _: b"", "^manifest.json must say what the backup holds"),
        (with_a_word_more, "got 1 mistakes, such as: Extra inputs are not permitted"),
        (of_a_later_version, r"this version knows, 0001 to \d{4}, got 0999; restore it with normcore"),
    ],
)
def test_a_backup_that_is_not_whole_or_from_later_is_refused(damage: Callable[[bytes], bytes], sentence: str):
    with pytest.raises(BadBackup, match=sentence):
        check(io.BytesIO(damage(sealed())))


def test_the_command_seals_and_checks(monkeypatch, capsys):
    def run(content: bytes, *arguments: str) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        manifest.main(arguments)
        return capsys.readouterr().out

    for name, value in {"REVISION": "0001", "POSTGRES": "15", "ARTIFACTS": "s3://bucket/laboratory"}.items():
        monkeypatch.setenv(name, value)
    content = b"".join(FILES.values())
    line = run(content, "seal", *(f"{name}={len(part)}" for name, part in FILES.items()))
    assert run(line.encode() + content, "check").endswith("artifacts not in it, but in s3://bucket/laboratory\n")
    with pytest.raises(SystemExit, match=r"^nothing is restored: state\.tar must hold"):
        run(line.encode() + content[:-1], "check")
