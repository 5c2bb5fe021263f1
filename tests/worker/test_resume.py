from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normcore.records import Snapshot
from worker.checkpoint import save
from worker.resume import Start, choose, choose_in_time, sweep
from worker.views import CheckpointRow


def committed(folder: Path, step: int, weight: float = 0.0) -> CheckpointRow:
    saved = save(folder / "a1", Snapshot(step, {"model.w": torch.full((4,), weight)}))
    return CheckpointRow(step, 1, "periodic", saved.sha256, saved.bytes, str(saved.path), 0.0)


def nothing(_row: CheckpointRow) -> None:
    return None


def tear(row: CheckpointRow) -> None:
    (Path(str(row.path)) / "model.safetensors").write_bytes(b"torn")


def test_the_newest_checkpoint_is_gone_on_from(tmp_path):
    rows = [committed(tmp_path, step) for step in (20, 10)]
    assert choose(rows, nothing) == Start(Path(str(rows[0].path)), 20)


@pytest.mark.parametrize(("torn", "step"), [(1, 10), (2, 0)])
def test_a_torn_checkpoint_is_passed_over(tmp_path, torn, step):
    rows = [committed(tmp_path, step) for step in (20, 10)]
    for row in rows[:torn]:
        tear(row)
    start = choose(rows, nothing)
    assert start.step == step
    names = ["checkpoint step_00000020", "checkpoint step_00000010"]
    assert [text.split(":")[0] for text in start.passed_over] == names[:torn]


def test_what_is_not_or_no_longer_good_on_this_disk_is_fetched(tmp_path):
    row = committed(tmp_path, 20)
    copy = Path(str(committed(tmp_path / "mlflow", 20).path))
    tear(row)
    assert choose([row], lambda _row: copy) == Start(copy, 20, choose([row], nothing).passed_over)
    (Path(str(row.path)) / "state.json").unlink()
    assert choose([row], lambda _row: copy).path == copy


def test_a_checkpoint_on_another_machine_is_fetched_and_nothing_is_said_of_it(tmp_path):
    row = committed(tmp_path / "there", 20)
    copy = Path(str(row.path)).rename(tmp_path / "step_00000020")
    assert choose([row], lambda _row: copy) == Start(copy, 20)


def test_a_checkpoint_that_neither_this_machine_nor_mlflow_has_is_passed_over_with_that_reason(tmp_path):
    rows = [committed(tmp_path / "there", 30), committed(tmp_path, 20)]
    Path(str(rows[0].path)).rename(tmp_path / "gone")
    start = choose(rows, nothing)
    assert start == Start(
        Path(str(rows[1].path)),
        20,
        ("checkpoint step_00000030 is neither on this machine's disk nor whole in MLflow",),
    )


def test_many_checkpoints_that_are_nowhere_are_one_reason(tmp_path):
    rows = [replace(committed(tmp_path, step), path=None) for step in (30, 20, 10)]
    assert choose(rows, nothing).passed_over == (
        "3 checkpoints from step_00000010 to step_00000030 are neither on this machine's disk nor whole in MLflow",
    )


def test_a_checkpoint_that_is_in_mlflow_alone_is_fetched(tmp_path):
    row = committed(tmp_path, 20)
    assert choose([replace(row, path=None)], lambda _row: Path(str(row.path))) == Start(Path(str(row.path)), 20)


def test_a_whole_checkpoint_that_was_never_committed_is_not_trusted(tmp_path):
    row = committed(tmp_path, 20)
    other = Path(str(committed(tmp_path / "other", 20, weight=1.0).path))
    tear(row)
    start = choose([row], lambda _row: other)
    assert start.path is None
    assert "must be what was committed: step 20" in start.passed_over[1]


def test_without_checkpoints_it_begins_from_scratch():
    assert choose([], nothing) == Start(None, 0, ())


def test_mlflow_is_waited_for_rather_than_to_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.resume.FIRST_PAUSE_S", 0.001)
    row = committed(tmp_path, 20)
    tries = []

    def fetch(_row: CheckpointRow) -> Path:
        tries.append(1)
        if len(tries) < 4:
            raise ConnectionError("MLflow is away")
        return Path(str(row.path))

    found = choose_in_time([replace(row, path=None)], fetch, wanted=lambda: True)
    assert found == Start(Path(str(row.path)), 20)


def away(_row: CheckpointRow) -> None:
    raise ConnectionError("MLflow is away")


def test_mlflow_is_not_waited_for_where_this_disk_has_the_newest(tmp_path):
    row = committed(tmp_path, 20)
    assert choose_in_time([row, replace(row, step=10, path=None)], away, wanted=lambda: False) == Start(
        Path(str(row.path)), 20
    )


def test_after_some_time_an_older_one_on_this_disk_must_do(tmp_path):
    newer, older = committed(tmp_path / "there", 30), committed(tmp_path, 20)
    found = choose_in_time([replace(newer, path=None), older], away, wanted=lambda: True, patience_s=-1)
    assert found is not None
    assert (found.step, len(found.passed_over)) == (20, 1)


def test_who_is_not_wanted_any_more_does_not_wait(tmp_path):
    assert choose_in_time([replace(committed(tmp_path, 20), path=None)], away, wanted=lambda: False) is None


def test_only_the_committed_is_left_of_earlier_attempts(tmp_path):
    kept = committed(tmp_path, 20)
    uncommitted = committed(tmp_path, 30)
    (tmp_path / "a1" / ".step_00000040.x").mkdir()
    committed(tmp_path / "fetched", 20)
    (tmp_path / "a1" / "figures").mkdir()
    sweep(tmp_path, [kept])
    assert not Path(str(uncommitted.path)).exists()
    assert list((tmp_path / "fetched").iterdir()) == [tmp_path / "fetched" / "a1"]
    assert sorted(path.name for path in (tmp_path / "a1").iterdir()) == ["figures", "step_00000020"]
