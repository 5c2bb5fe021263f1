"""A trainer and its worker: how the one starts, and that it never outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.child import Child, environment
from worker.exits import Exit
from worker.settings import Settings
from worker.trainer import keep_to_share, warm_up

pytestmark = pytest.mark.xdist_group("trainers")


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    child = Child(Settings(state_dir=tmp_path, device="cpu", threads=1))
    yield child
    child.close()


def runs(pid: int) -> bool:
    """Whether a process is there and is more than its entry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_warm_trainer_says_what_it_computes_on_and_leaves_when_asked(child):
    ready = child.await_ready(120)
    assert ready.device == "cpu"
    assert ready.facts["torch"] == torch.__version__
    assert ready.facts["hardware"] == "1 threads"
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    child.stop()
    assert child.leave() == Exit.STOPPED


WORKER = """
import os, signal, sys
from pathlib import Path
from worker.child import Child
from worker.settings import Settings
child = Child(Settings(state_dir=Path(sys.argv[1]), device="cpu"))
if sys.argv[2] != "cold":
    child.await_ready(120)
if sys.argv[2] == "frozen":
    os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("state", ["cold", "warm", "frozen"])
def test_a_trainer_dies_with_its_worker(tmp_path, eventually, state):
    worker = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), state], stdout=subprocess.PIPE, text=True, check=False
    )
    assert worker.returncode == -signal.SIGKILL
    eventually(lambda: not runs(int(worker.stdout)))


def test_the_end_of_standard_input_is_the_end(tmp_path):
    command = [sys.executable, "-m", "worker.trainer", "--records", "1", "--parent", str(os.getpid())]
    trainer = subprocess.Popen(
        [*command, "--cache-dir", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    trainer.stdin.close()
    assert trainer.wait(120) == -signal.SIGKILL


def test_a_trainer_whose_worker_is_gone_does_not_begin(tmp_path):
    command = [sys.executable, "-m", "worker.trainer", "--records", "1", "--parent", "1", "--cache-dir", str(tmp_path)]
    trainer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (trainer.returncode, trainer.stderr) == (1, "the worker was gone before its trainer began\n")


def test_a_trainer_that_cannot_start_is_not_ready(tmp_path):
    broken = tmp_path / "a file where the cache should be"
    broken.touch()
    child = Child(Settings(state_dir=broken, device="cpu"))
    assert child.await_ready(120) is None
    child.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SystemExit, match="got cuda without a GPU that torch can use; set NORMCORE_DEVICE"):
        warm_up("cuda", tmp_path)


def test_the_rehearsal_leaves_no_trace(tmp_path):
    def state() -> tuple[object, ...]:
        legacy = np.random.get_state()  # noqa: NPY002 - the global state is what is looked at
        return (
            torch.get_rng_state().tolist(),
            legacy[1].tolist(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
        )

    before = state()
    assert warm_up("cpu", tmp_path) == "cpu"
    assert state() == before


@pytest.mark.parametrize(
    ("device", "visible", "made"),
    [
        ("cpu", "0,1", ""),
        ("auto", "0,1", "0,1"),
        ("auto", None, None),
        ("cuda", "3", "3"),
        ("cuda:1", None, "1"),
        ("cuda:1", "GPU-aa,GPU-bb", "GPU-bb"),
    ],
)
def test_a_trainer_sees_its_gpu_only(device, visible, made):
    outside = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert environment(Settings(device=device), outside).get("CUDA_VISIBLE_DEVICES") == made


def test_a_trainer_uses_every_core_unless_told_otherwise():
    cores = str(len(os.sched_getaffinity(0)))
    assert environment(Settings(device="cpu"), {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == cores
    assert environment(Settings(device="cpu", threads=3), {})["OMP_NUM_THREADS"] == "3"


def test_trainers_in_slots_share_the_cores_and_each_has_one(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    shares = {slots: environment(Settings(slots=slots), {})["OMP_NUM_THREADS"] for slots in (1, 2, 3, 16)}
    assert shares == {1: "8", 2: "4", 3: "2", 16: "1"}
    assert environment(Settings(slots=4, threads=6), {})["OMP_NUM_THREADS"] == "6", "said is said"


@pytest.mark.parametrize(("slots", "taken"), [(1, {}), (4, {0: 0.25, 1: 0.25})])
def test_a_trainer_in_a_slot_keeps_to_its_share_of_every_gpu(monkeypatch, slots, taken):
    """Of the call alone; whether CUDA keeps to it is for a machine that has one."""
    told = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, gpu: told.update({gpu: part}))
    keep_to_share(slots)
    assert told == taken


def test_an_allocator_that_was_set_from_outside_stays():
    assert environment(Settings(), {"MALLOC_TOP_PAD_": "0"})["MALLOC_TOP_PAD_"] == "0"
