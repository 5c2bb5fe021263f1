"""The recorder's way back: checkpoints from a real MLflow server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from normcore.records import Snapshot
from worker.book import Book
from worker.checkpoint import CorruptCheckpoint, load, save, verify
from worker.recorder import MlflowAway, Recorder, checkpoint_paths, connect, fetch_checkpoint
from worker.settings import Settings

pytestmark = pytest.mark.xdist_group("mlflow")


@pytest.fixture(scope="module")
def client(mlflow_url: str) -> Any:
    return connect(mlflow_url)


@pytest.fixture(scope="module")
def run_id(client: Any) -> str:
    return str(client.create_run(client.create_experiment("fetch")).info.run_id)


def upload(client: Any, run_id: str, path: Path, step: int, leave_out: str = "") -> None:
    for name, to in checkpoint_paths(step):
        if name != leave_out:
            client.log_artifact(run_id, str(path / name), str(Path(to).parent))


def test_a_checkpoint_comes_back_from_a_run(mlflow_url, client, run_id, tmp_path):
    snapshot = Snapshot(5, {"model.w": torch.arange(6.0), "optimizer.w.momentum": torch.ones(6)}, {"seed": 0})
    saved = save(tmp_path / "here", snapshot)
    upload(client, run_id, saved.path, 5)
    path = fetch_checkpoint(mlflow_url, run_id, 5, tmp_path / "there")
    assert path == tmp_path / "there" / "step_00000005"
    assert verify(path).sha256 == saved.sha256
    assert torch.equal(load(path).tensors["optimizer.w.momentum"], torch.ones(6))
    assert [entry.name for entry in (tmp_path / "there").iterdir()] == ["step_00000005"]


def test_a_checkpoint_comes_in_place_of_a_broken_one(mlflow_url, client, run_id, tmp_path):
    saved = save(tmp_path / "here", Snapshot(6, {"model.w": torch.zeros(3)}))
    upload(client, run_id, saved.path, 6)
    (saved.path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CorruptCheckpoint):
        verify(saved.path)
    assert fetch_checkpoint(mlflow_url, run_id, 6, tmp_path / "here") == saved.path
    assert verify(saved.path) == saved


@pytest.mark.parametrize("missing", ["state.json", "everything"])
def test_a_checkpoint_that_is_not_all_there_cannot_be_had(mlflow_url, client, run_id, tmp_path, missing, caplog):
    step = {"state.json": 7, "everything": 8}[missing]
    if missing != "everything":
        saved = save(tmp_path / "here", Snapshot(step, {"model.w": torch.zeros(3)}))
        upload(client, run_id, saved.path, step, leave_out=missing)
    assert fetch_checkpoint(mlflow_url, run_id, step, tmp_path / "there") is None
    assert list((tmp_path / "there").iterdir()) == []
    assert f"step_0000000{step} of run {run_id} cannot be had" in caplog.text


def test_nobody_knows_what_a_server_has_that_is_away(tmp_path, mlflow_wire):
    mlflow_wire.cut()
    with pytest.raises(MlflowAway, match=f"MLflow at {mlflow_wire.url} is away: "):
        fetch_checkpoint(mlflow_wire.url, "no run", 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_recorder_knows_whether_mlflow_answers(mlflow_wire):
    recorder = Recorder(Book("sqlite://"), Settings(mlflow_url=mlflow_wire.url))
    assert recorder.answers()
    mlflow_wire.cut()
    assert not recorder.answers()
