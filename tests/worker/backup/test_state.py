"""The tar of a laboratory's files: what is in it, and that all stands still while it is written."""

from __future__ import annotations

import io
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from normcore.records import Point
from worker.backup import state
from worker.settings import Settings
from worker.spool import Spool
from worker.standstill import changing, copying


def restored(folder: Path, target: Path) -> Path:
    """What comes out of the tar of a folder."""
    out = io.BytesIO()
    state.write(folder, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        tar.extractall(target, filter="tar")
    return target


def checkpoint(folder: Path) -> Path:
    path = folder / "jobs" / "j" / "a1" / "step_00000010" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def test_checkpoints_spools_and_artifacts_are_in_it_and_nothing_else(tmp_path):
    source = tmp_path / "state"
    model = checkpoint(source)
    (model.parent.parent / ".step_00000020.torn").mkdir()
    for other in ("mlflow/1/run/artifacts/é.png", "logs/worker.log", "cache/huggingface/x", "tmpabc", "jobs/.lock"):
        (source / other).parent.mkdir(parents=True, exist_ok=True)
        (source / other).write_text(other)
    found = restored(source, tmp_path / "restored")
    files = sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file())
    assert files == ["jobs/j/a1/step_00000010/model.safetensors", "mlflow/1/run/artifacts/é.png"]
    assert (found / files[1]).read_text() == "mlflow/1/run/artifacts/é.png"
    assert list(found.glob("jobs/j/a1/*")) == [found / "jobs/j/a1/step_00000010"]


def test_a_checkpoint_that_waits_in_a_spool_is_in_it_once(tmp_path):
    source = tmp_path / "state"
    model = checkpoint(source)
    with closing(Spool.create(source / "spool", job_id="j", attempt=1)) as spool:
        spool.enqueue("checkpoints/step_00000010/model.safetensors", model, step=10)
    found = restored(source, tmp_path / "restored")
    with closing(Spool(found / "spool" / "j.a1.db")) as spool:
        (artifact,) = spool.artifacts()
    assert artifact.file.samefile(found / model.relative_to(source))


@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_a_spool_is_copied_with_what_its_log_still_holds(tmp_path, open_meanwhile):
    spool = Spool.create(tmp_path / "state" / "spool", job_id="j", attempt=1)
    spool.add([Point("train/loss", step, 0.5) for step in range(50)])
    if not open_meanwhile:
        spool.close()
    found = restored(tmp_path / "state", tmp_path / "restored")
    with closing(Spool(found / "spool" / "j.a1.db")) as copy:
        assert [entry.step for entry in copy.batch()] == list(range(50))
    if open_meanwhile:
        spool.close()


def test_spools_that_are_written_to_are_whole(tmp_path):
    """Each transaction adds a step of two curves: a copy has both or none, and no gap."""
    done = threading.Event()

    def record() -> None:
        with closing(Spool.create(tmp_path / "state" / "spool", job_id="j", attempt=1)) as spool:
            step = 0
            while not done.is_set():
                spool.add([Point("a", step, 0.5), Point("b", step, 0.5)])
                step += 1

    writer = threading.Thread(target=record)
    writer.start()
    try:
        while not list((tmp_path / "state" / "spool").glob("*.db-wal")):
            pass
        for n in range(20):
            found = restored(tmp_path / "state", tmp_path / str(n))
            with closing(Spool(found / "spool" / "j.a1.db")) as copy:
                entries = copy.batch(limit=1_000_000)
            steps = {key: [entry.step for entry in entries if entry.key == key] for key in "ab"}
            assert steps["a"] == steps["b"] == list(range(len(steps["a"])))
    finally:
        done.set()
        writer.join()


def test_nothing_is_deleted_or_sent_between_held_and_the_end(tmp_path, monkeypatch, capsysbinary):
    checkpoint(tmp_path)
    for folder in ("jobs", "spool"):
        with changing(tmp_path / folder) as may:
            assert may
    seen = []

    class Asker:
        def readline(self) -> str:
            for folder in ("jobs", "spool"):
                with changing(tmp_path / folder) as may:
                    seen.append(may)
            return "go\n"

    class Out:
        buffer = io.BytesIO()

    monkeypatch.setattr(state, "settings", lambda: Settings(state_dir=tmp_path))
    monkeypatch.setattr("sys.stdin", Asker())
    monkeypatch.setattr("sys.stdout", Out())
    state.main()
    assert seen == [False, False]
    assert capsysbinary.readouterr().err == b"held\n"
    with changing(tmp_path / "jobs") as may:
        assert may


def test_whoever_asks_and_goes_gets_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "settings", lambda: Settings(state_dir=tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(SystemExit, match="nothing is written"):
        state.main()


def test_a_copy_waits_for_what_is_being_deleted(tmp_path):
    order = []

    def copy() -> None:
        with copying(tmp_path):
            order.append("copied")

    with changing(tmp_path):
        thread = threading.Thread(target=copy)
        thread.start()
        thread.join(0.1)
        order.append("deleted")
    thread.join()
    assert order == ["deleted", "copied"]
