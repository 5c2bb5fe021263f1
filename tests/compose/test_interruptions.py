"""What the scripts of docker/ say and leave behind when something fails in the middle; docker only answers here."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("manifest.json", "normcore.dump", "mlflow.dump", "state.tar")


@dataclass(frozen=True)
class Host:
    """A checkout, and a docker whose answers are cases of a shell's `case` over all of its arguments."""

    folder: Path

    def run(self, script: str, *arguments: str, answers: str, **environment: str) -> subprocess.CompletedProcess[str]:
        shutil.copytree(ROOT / "docker", self.folder / "docker")
        docker = self.folder / "bin" / "docker"
        docker.parent.mkdir()
        docker.write_text(f'#!/bin/sh\necho "$*" >>"{self.folder}/asked"\ncase "$*" in\n{answers}\nesac\n')
        docker.chmod(0o755)
        # As BSD's and macOS' print a number.
        (docker.parent / "wc").write_text('#!/bin/sh\nprintf "%8d\\n" "$(/usr/bin/wc "$@")"\n')
        (docker.parent / "wc").chmod(0o755)
        return subprocess.run(
            ["sh", f"docker/{script}", *arguments],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self, what: str) -> list[str]:
        return [line for line in (self.folder / "asked").read_text().splitlines() if what in line]

    def backup(self) -> str:
        folder = self.folder / "backups" / "one"
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_text("x")
        return "backups/one"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_backup_whose_files_cannot_be_read_says_so_and_leaves_nothing(host: Host) -> None:
    # The reader ends between the two dumps, so that nobody hears the word to go.
    reader = 'echo held >&2; until [ -e dumped ]; do sleep 0.05; done; echo "no space" >&2; exit 3'
    answers = f"*backup.state*) {reader} ;;\n*' mlflow'*) sleep 0.3 ;;\n*pg_dump*) touch dumped ;;"
    done = host.run("backup", "one", answers=answers)
    assert (done.returncode, done.stderr) == (1, "backup: the files could not be read: no space\n")
    assert list((host.folder / "backups").iterdir()) == []


@pytest.mark.parametrize("name", ["before/upgrade", "../backup", ".."])
def test_a_backup_lies_in_the_folder_of_backups(host: Host, name: str) -> None:
    done = host.run("backup", name, answers="")
    assert done.returncode == 1
    assert done.stderr.endswith(f"without slashes and no dot first, got {name}\n")


@pytest.mark.parametrize("there", ["PG_VERSION", "lib/normcore/state"])
def test_what_is_there_of_a_laboratory_is_not_restored_over(host: Host, there: str) -> None:
    answers = f"*' config') echo 'name: lab' ;;\n*'{there}'*) echo something ;;"
    done = host.run("restore", host.backup(), answers=answers)
    assert done.returncode == 1
    assert "the laboratory lab has a database or files already; to lose them: OVERWRITE=yes" in done.stderr
    assert not host.asked(" up ") + host.asked(" down")


def test_nothing_is_restored_where_it_cannot_be_seen_what_is_there(host: Host) -> None:
    done = host.run("restore", host.backup(), answers="*PG_VERSION*) exit 125 ;;")
    assert done.returncode == 1
    assert "what the laboratory holds cannot be seen; nothing is restored" in done.stderr
    assert not host.asked(" up ") + host.asked(" down")


def test_a_restore_that_fails_as_it_makes_room_says_that_the_laboratory_is_not_whole(host: Host) -> None:
    answers = "*' config') echo 'name: \"123\"' ;;\n*PG_VERSION*) echo yes ;;\n*'volume rm'*) exit 1 ;;"
    done = host.run("restore", host.backup(), answers=answers, OVERWRITE="yes")
    assert done.returncode == 1
    assert "restore: the laboratory is not whole" in done.stderr
    assert host.asked("volume rm") == ["volume rm --force 123_postgres 123_redis 123_state"]


def test_the_order_book_is_restored_last(host: Host) -> None:
    assert host.run("restore", host.backup(), answers="").returncode == 0
    order = ["--dbname mlflow", "tar --extract", "--dbname normcore", "backup.settle", "up --detach --wait"]
    lines = (host.folder / "asked").read_text().splitlines()
    found = [max(number for number, line in enumerate(lines) if what in line) for what in order]
    assert found == sorted(found)


def test_an_upgrade_that_fails_says_how_to_do_the_rest(host: Host) -> None:
    answers = "*'ps --services'*) printf 'postgres\\napi\\nmlflow\\nworker\\n' ;;\n*'mlflow python'*) exit 1 ;;"
    done = host.run("upgrade", answers=answers)
    assert done.returncode == 1
    rest = "docker compose stop mlflow && docker/migrate-mlflow && docker compose up --detach --wait"
    assert f"upgrade: not at its end; when what hindered it is away, this does the rest: {rest}\n" in done.stderr


def test_an_upgrade_of_a_machine_that_joined_speaks_of_nothing_else(host: Host) -> None:
    done = host.run("upgrade", answers="*'ps --services'*) echo worker ;;\n*'ps --quiet'*) exit 1 ;;")
    assert done.returncode == 1
    assert done.stderr.endswith(" this does the rest: docker compose up --detach --wait\n")


def test_an_upgrade_brings_back_as_many_workers_as_there_were(host: Host) -> None:
    answers = "*'ps --services'*) printf 'postgres\\nworker\\n' ;;\n*'ps --quiet'*) printf 'one\\ntwo\\n' ;;"
    done = host.run("upgrade", answers=answers)
    assert done.returncode == 0, done.stderr
    assert len(host.asked("--scale worker=2 worker")) == 2
