import math
import subprocess
import sys

import pytest

from normcore.records import Point
from worker.spool import Spool


@pytest.fixture
def spool(tmp_path):
    return Spool.create(tmp_path, job_id="job", attempt=1)


def drain(spool: Spool, limit: int = 1000) -> list[tuple[str, int, float]]:
    """What a recorder sends."""
    taken = []
    while batch := spool.batch(limit):
        taken += [(entry.key, entry.step, entry.value) for entry in batch]
        spool.sent(batch)
    return taken


def test_a_point_is_sent_once_however_often_it_is_added(spool):
    spool.add([Point("train/loss", 1, 2.0), Point("train/loss", 1, 3.0)])
    spool.add([Point("train/loss", 1, 4.0), Point("train/loss", 2, 1.0)])
    assert drain(spool) == [("train/loss", 1, 2.0), ("train/loss", 2, 1.0)]
    spool.add([Point("train/loss", 1, 5.0), Point("train/loss", 2, 5.0)])
    assert drain(spool) == []


def test_a_batch_sent_again_is_byte_identical(spool, monkeypatch):
    clock = iter([1000.0, 2000.0, 3000.0])
    monkeypatch.setattr("worker.spool.time.time", lambda: next(clock))
    spool.add([Point("train/loss", 1, 2.0)])
    first = spool.batch()
    spool.add([Point("train/loss", 1, 2.0), Point("train/loss", 2, 1.0)])
    assert spool.batch()[:1] == first
    assert [entry.at_ms for entry in spool.batch()] == [1_000_000, 2_000_000]


def test_a_key_is_sent_in_the_order_of_its_steps(spool):
    spool.add([Point("b", step, 0.0) for step in (7, 8, 9)])
    spool.add([Point("a", step, 0.0) for step in (1, 2, 3)])
    steps = [step for _, step, _ in drain(spool, limit=2)]
    assert steps == sorted(steps)


def test_a_new_attempt_sends_what_earlier_ones_did_not(tmp_path):
    spool = Spool.create(tmp_path, job_id="job", attempt=2)
    assert not spool.seeded
    # The second attempt went on from step 5 and has begun to record before MLflow could be asked.
    spool.add([Point("train/loss", step, 0.2) for step in (6, 7, 8)] + [Point("test/loss", 6, 0.5)])
    # What the run is found to hold was sent by the first one, which got further than its last checkpoint.
    spool.seed({"train/loss": 6, "test/loss": 3})
    spool.add([Point("train/loss", step, 0.3) for step in (6, 8, 9)])
    assert spool.seeded
    assert drain(spool) == [
        ("test/loss", 6, 0.5),
        ("train/loss", 7, 0.2),
        ("train/loss", 8, 0.2),
        ("train/loss", 9, 0.3),
    ]


def test_what_came_after_a_step_can_be_held_back(tmp_path, spool):
    (tmp_path / "file").write_text("file")
    for step in (3, 4):
        spool.add([Point("train/loss", step, 0.2)])
        spool.enqueue(f"at/{step}", tmp_path / "file", step=step)
    (entry,), (artifact,) = spool.batch(up_to=3), spool.artifacts(up_to=3)
    assert (entry.step, artifact.path) == (3, "at/3")
    spool.sent([entry])
    spool.artifact_sent(artifact)
    assert spool.empty(up_to=3)
    assert not spool.empty()


def test_spools_come_by_job_and_attempt(tmp_path):
    for job, attempt in (("b", 1), ("a", 10), ("a", 9)):
        Spool.create(tmp_path, job_id=job, attempt=attempt).close()
    assert [path.name for path in Spool.paths(tmp_path)] == ["a.a9.db", "a.a10.db", "b.a1.db"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinities_are_told_but_not_sent(spool, value):
    spool.add([Point("train/loss", 4, value)])
    assert drain(spool) == [("train/loss_nonfinite", 4, 1.0)]


def test_another_life_finds_everything(tmp_path, spool):
    figure = tmp_path / "landscape.png"
    figure.write_bytes(b"png")
    spool.add([Point("train/loss", 1, 2.0)])
    spool.tag({"attempt.1.worker": "w"})
    spool.enqueue("figures/landscape.png", figure, step=1)
    spool.note(run_id="r")
    spool.close()
    (path,) = Spool.paths(tmp_path)
    later = Spool(path)
    assert (later.job_id, later.attempt, later.fact("run_id"), later.fact("other")) == ("job", 1, "r", None)
    assert later.tags() == {"attempt.1.worker": "w"}
    assert [(a.path, a.file.read_bytes()) for a in later.artifacts()] == [("figures/landscape.png", b"png")]
    assert not later.empty()
    assert drain(later) == [("train/loss", 1, 2.0)]
    later.tags_sent(later.tags())
    later.artifact_sent(later.artifacts()[0])
    assert later.empty()


def test_a_tag_that_changed_while_it_was_sent_is_sent_again(spool):
    spool.tag({"attempt.1.ended": "no", "attempt.1.worker": "w"})
    sending = spool.tags()
    spool.tag({"attempt.1.ended": "yes"})
    spool.tags_sent(sending)
    assert spool.tags() == {"attempt.1.ended": "yes"}


def test_an_artifact_outlives_its_original(tmp_path, spool):
    original = tmp_path / "model.safetensors"
    original.write_bytes(b"weights")
    spool.enqueue("checkpoints/step_00000001/model.safetensors", original, step=1)
    original.unlink()
    (artifact,) = spool.artifacts()
    assert artifact.file.read_bytes() == b"weights"
    assert artifact.file.name == "model.safetensors"
    spool.artifact_sent(artifact)
    assert not artifact.file.exists()
    assert spool.empty()


def test_a_newer_file_of_the_same_path_is_sent_too(tmp_path, spool):
    for text in ("old", "new"):
        (tmp_path / text).write_text(text)
    spool.enqueue("figures/landscape.png", tmp_path / "old", step=1)
    (sending,) = spool.artifacts()
    spool.enqueue("figures/landscape.png", tmp_path / "new", step=2)
    assert sending.file.read_text() == "old"
    spool.artifact_sent(sending)
    assert [artifact.file.read_text() for artifact in spool.artifacts()] == ["new"]


def test_a_file_system_without_hard_links_is_fine(tmp_path, spool, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr("worker.spool.Path.hardlink_to", refuse)
    (tmp_path / "a").write_text("a")
    spool.enqueue("a", tmp_path / "a", step=0)
    assert spool.artifacts()[0].file.read_text() == "a"


def test_an_attempt_begins_with_nothing_of_one_that_had_its_number(tmp_path):
    undone = Spool.begin(tmp_path, job_id="j", attempt=2, worker="gpu-box")
    undone.add([Point("train/loss", 7, 1.0)])
    undone.seed({"train/loss": 300})
    undone.close()
    spool = Spool.begin(tmp_path, job_id="j", attempt=2, worker="w")
    spool.add([Point("train/loss", 8, 2.0)])
    assert [entry.step for entry in spool.batch()] == [8]
    assert (spool.seeded, spool.fact("worker")) == (False, "w")


def test_nothing_is_left_of_a_deleted_spool(tmp_path, spool):
    (tmp_path / "a").write_text("a")
    spool.enqueue("a", tmp_path / "a", step=0)
    spool.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


WRITER = """
import os, sys, pathlib, signal
from normcore.records import Point
from worker.spool import Spool
spool = Spool.create(pathlib.Path(sys.argv[1]), job_id="job", attempt=1)
spool.add([Point("train/loss", step, 1.0) for step in range(1, 501)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_added_survives_the_death_of_the_writer(tmp_path):
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=False)
    (path,) = Spool.paths(tmp_path)
    assert len(drain(Spool(path))) == 500
