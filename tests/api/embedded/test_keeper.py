import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from api.embedded import keeper as module
from api.embedded.keeper import keep, keeper

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def group(*command):
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)


def test_groups_that_are_left_are_ended_and_dismissed_ones_are_not():
    left, dismissed = group("sleep", "60"), group("sleep", "60")
    with left, dismissed:
        keep([f"+{left.pid}\n", f"+{dismissed.pid}\n", f"-{dismissed.pid}\n"], grace_s=0.2)
        assert left.wait(5) == -signal.SIGTERM
        assert dismissed.poll() is None
        dismissed.kill()


def test_group_that_ignores_sigterm_is_killed_after_the_grace():
    with group(sys.executable, "-c", STUBBORN) as stubborn:
        assert stubborn.stdout.readline() == b"deaf\n"
        keep([f"+{stubborn.pid}\n"], grace_s=0.2)
        assert stubborn.wait(5) == -signal.SIGKILL


def test_killed_laboratory_leaves_nothing(tmp_path):
    program = f"""
import os, signal, subprocess
from api.embedded.keeper import keeper
with keeper(os.open({str(tmp_path / "lock")!r}, os.O_CREAT | os.O_RDWR)) as guardian:
    grandparent = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], start_new_session=True, stdout=1)
    guardian.guard(grandparent.pid)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    grandchild = int(done.stdout)
    deadline = time.monotonic() + 20
    while runs(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_keeper_starts_without_our_packages(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", module.__file__, "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "api" not in {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}


def test_keeper_that_was_killed_does_not_stop_the_laboratory(tmp_path):
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    with keeper(lock) as guardian:
        guardian._process.kill()
        guardian._process.wait()
        for _ in range(3):
            guardian.guard(2**22)
    os.close(lock)
