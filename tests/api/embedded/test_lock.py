import os
import subprocess
import sys

import pytest

from api.embedded.lock import NAME, StateFolderTaken, state_folder

HOLD = """
import sys, pathlib
from api.embedded.lock import state_folder
with state_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_folder_is_made_and_the_lock_names_its_process(tmp_path):
    with state_folder(tmp_path / "deep" / "var"):
        assert (tmp_path / "deep" / "var" / NAME).read_text() == str(os.getpid())


def test_second_laboratory_is_refused_naming_the_first(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=-1, stdout=-1) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                StateFolderTaken, match=rf"already has a laboratory, process {holder.pid}; use that one, stop"
            ),
            state_folder(tmp_path),
        ):
            pass
        holder.stdin.close()


def test_lock_falls_with_a_killed_holder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=-1, stdout=-1) as holder:
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    with state_folder(tmp_path, patience_s=0):
        pass


def test_waits_for_the_keeper_of_a_killed_laboratory(tmp_path):
    with state_folder(tmp_path) as lock:
        heir = subprocess.Popen(["sleep", "0.3"], pass_fds=[lock])
        ended = subprocess.Popen(["true"])
        ended.wait()
        (tmp_path / NAME).write_text(str(ended.pid))
    with state_folder(tmp_path, patience_s=20):
        assert heir.poll() is not None or heir.wait(1) == 0
