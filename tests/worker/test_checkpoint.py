import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from normcore.records import Snapshot
from worker.checkpoint import FILES, CorruptCheckpoint, folder_name, load, save, sha256_of, verify


def snapshot(step: int = 7, *, weight: float = 1.0, momentum: float = 0.5) -> Snapshot:
    tensors = {
        "model.0.weight": torch.full((3, 4), weight),
        "model.0.num_batches_tracked": torch.tensor(12),
        "model.1.weight": torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(1)).to(
            memory_format=torch.channels_last
        ),
        "model.2.half": torch.arange(5, dtype=torch.bfloat16),
        "optimizer.0.momentum_buffer": torch.full((3, 4), momentum),
        "rng.torch": torch.get_rng_state(),
        "readings.landscape.loss": torch.zeros(0, 8, dtype=torch.float64),
    }
    return Snapshot(step=step, tensors=tensors, facts={"epoch": 2, "lr": 0.1, "nested": {"a": [1, None, "x"]}})


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    before = snapshot()
    after = load(save(tmp_path, before).path)
    assert (after.step, after.facts) == (before.step, before.facts)
    assert after.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(after.tensors[name], tensor), name


def test_the_model_file_holds_the_model_under_its_own_names(tmp_path):
    from safetensors.torch import load_file

    saved = save(tmp_path, snapshot())
    assert saved.path == tmp_path / "step_00000007"
    assert sorted(path.name for path in saved.path.iterdir()) == sorted(FILES)
    assert set(load_file(saved.path / "model.safetensors")) == {
        "0.weight",
        "0.num_batches_tracked",
        "1.weight",
        "2.half",
    }
    assert saved.bytes == sum(path.stat().st_size for path in saved.path.iterdir())


def test_equal_weights_have_equal_hashes_whatever_was_trained_with_them(tmp_path):
    one = save(tmp_path / "a", snapshot(momentum=0.5))
    other = save(tmp_path / "b", snapshot(momentum=0.9))
    assert one.sha256 == other.sha256
    assert one.sha256 != save(tmp_path / "c", snapshot(weight=1.0000001)).sha256


def test_the_hash_tells_names_shapes_and_dtypes_apart():
    base = torch.zeros(4)
    same_bytes = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 2)},
        {"a": base.view(torch.int32)},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
    ]
    assert len({sha256_of(tensors) for tensors in same_bytes}) == len(same_bytes)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_byte_anywhere_is_noticed(tmp_path, name, where):
    path = save(tmp_path, snapshot()).path
    content = bytearray((path / name).read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x01
    (path / name).write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=name):
        load(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_torn_file_is_noticed(tmp_path, name, kept):
    path = save(tmp_path, snapshot()).path
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CorruptCheckpoint, match=name):
        verify(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(tmp_path, name):
    path = save(tmp_path, snapshot()).path
    (path / name).unlink()
    with pytest.raises(CorruptCheckpoint, match=f"no readable {name}"):
        load(path)


def test_facts_that_were_edited_by_hand_are_not_trusted(tmp_path):
    path = save(tmp_path, snapshot()).path
    state = json.loads((path / "state.json").read_text())
    state["facts"]["lr"] = 0.2
    (path / "state.json").write_text(json.dumps(state, sort_keys=True, indent=1) + "\n")
    with pytest.raises(CorruptCheckpoint, match="does not match its own seal"):
        load(path)


def test_a_step_that_stands_is_left_as_it_is(tmp_path):
    first = save(tmp_path, snapshot(weight=1.0))
    assert save(tmp_path, snapshot(weight=2.0)) == first
    assert torch.equal(load(first.path).tensors["model.0.weight"], torch.ones(3, 4))


def test_a_save_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        save(tmp_path, Snapshot(step=1, tensors={"model.w": torch.ones(1)}, facts={"loss": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a checkpoint must not be pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    assert load(save(tmp_path, snapshot()).path).step == 7


def test_verify_needs_no_torch(tmp_path):
    path = save(tmp_path, snapshot()).path
    script = (
        "import sys, pathlib; from worker.checkpoint import verify; "
        "print(verify(pathlib.Path(sys.argv[1])).step, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "False"]


WRITER = """
import sys, pathlib, torch
from normcore.records import Snapshot
from worker.checkpoint import save
tensors = {f"model.{i}": torch.ones(200_000) for i in range(8)} | {"optimizer.0": torch.ones(200_000)}
print("ready", flush=True)
for step in range(1, 100_000):
    save(pathlib.Path(sys.argv[1]), Snapshot(step=step, tensors=tensors))
"""


def test_what_a_killed_writer_leaves_is_whole(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    while not (tmp_path / folder_name(3)).exists():
        time.sleep(0.005)
    # In the middle of a save: the temporary folder of the next step is there.
    while not list(Path(tmp_path).glob(".step_*")):
        time.sleep(0.0002)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    standing = sorted(tmp_path.glob("step_*"))
    assert len(standing) >= 3
    for path in standing:
        assert load(path).step == int(path.name.removeprefix("step_"))
