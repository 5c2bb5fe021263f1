"""An order carried out: the records of a training, turned into files that stand and messages about them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from normcore.companions import devices_of
from normcore.data.folders import DataFolders
from normcore.instruments import still_true
from normcore.pulse import heard
from normcore.records import Checkpoint, Diverged, Figure, Finished, Metrics, Reading, Remark, Stopped
from normcore.refusal import Refusal
from normcore.snapshot import readings_of
from normcore.spec import JobSpec
from normcore.train import train
from worker.checkpoint import CorruptCheckpoint, load, save, weights
from worker.exits import Exit
from worker.readings import Readings
from worker.wire import Alive, Kept, Made, Message, Order

ALIVE_S = 1.0
"""Seconds of silence after which a training says that it lives."""

log = logging.getLogger("normcore.training")


def run(order: Order, device: str, say: Callable[[Message], None], stop: Callable[[], bool]) -> Exit:
    """Train as ordered; how it ended. A file is whole on disk before it is spoken of.

    Also while there is nothing to be told, as in a long reading of a probe, it says that it lives.

    Raises:
        Refusal: the spec cannot be trained on this worker.
        CorruptCheckpoint: the checkpoint to go on from is not what was written.
    """
    said_at = time.monotonic()

    def tell(message: Message) -> None:
        nonlocal said_at
        said_at = time.monotonic()
        say(message)

    def alive() -> None:
        if time.monotonic() > said_at + ALIVE_S:
            tell(Alive())

    with heard(alive):
        return _run(order, device, tell, stop)


def _run(order: Order, device: str, say: Callable[[Message], None], stop: Callable[[], bool]) -> Exit:
    spec = JobSpec.model_validate_json(order.spec)
    folder = Path(order.folder)
    snapshot = None if order.resume is None else load(Path(order.resume))
    readings = Readings([] if snapshot is None else still_true(readings_of(snapshot), spec))
    drawn: set[str] = set()
    folders = DataFolders(Path(order.data_dir), Path(order.cache_dir), order.hub)
    step = 0 if snapshot is None else snapshot.step
    place = _device(spec, device)
    _check_devices(spec, place, order.devices)
    # Read now: who keeps checkpoints may delete these before the training ends.
    others = _weights(order.others)
    for record in train(spec, device=place, folders=folders, resume=snapshot, stop=stop, others=others):
        match record:
            case Metrics():
                step = record.step
                say(record)
            case Reading():
                readings.add(record)
            case Checkpoint():
                saved = save(folder, record.snapshot)
                say(Kept(saved.step, str(saved.path), saved.sha256, saved.bytes, record.last, record.best))
            case Figure():
                say(_made(step, folder, f"figures/{record.name}.png", record.png))
                drawn.add(record.name)
                say(_made(step, folder, f"readings/{record.name}.npz", readings.npz(record.name)))
            case Remark():
                say(record)
            case Finished() | Diverged():
                for probe in readings.probes - drawn:
                    # What could not be drawn here can be drawn from these one day.
                    say(_made(step, folder, f"readings/{probe}.npz", readings.npz(probe)))
                say(record)
                return Exit.DONE if isinstance(record, Finished) else Exit.DIVERGED
            case Stopped():
                say(record)
                return Exit.STOPPED
    raise AssertionError("a training must end in Finished, Stopped or Diverged, got none of them")


def _weights(others: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """The last weights of other jobs; without those that cannot be read, whose probes will say so."""
    found: dict[str, dict[str, Tensor]] = {}
    for job_id, path in others.items():
        try:
            found[job_id] = weights(Path(path))
        except (CorruptCheckpoint, OSError) as error:
            log.warning("the last weights of job %s cannot be read: %s", job_id, error)
    return found


def _device(spec: JobSpec, ours: str) -> str:
    if spec.device == "cuda" and ours == "cpu":
        raise Refusal(
            "unavailable-device",
            "a job for cuda must run on a worker with a GPU, got one with a CPU only; set device to auto or cpu",
        )
    return "cpu" if spec.device == "cpu" else ours


def _check_devices(spec: JobSpec, device: str, on_cpu: int) -> None:
    if device == "cpu" and spec.devices > on_cpu:
        raise Refusal(
            "too-few-devices",
            f"a job must find as many devices as it asks for, got devices {spec.devices} on a worker that lets a job "
            f"use {on_cpu} on its CPU; lower devices, or raise the worker's NORMCORE_DEVICES",
        )
    devices_of(torch.device(device), spec.devices)


def _made(step: int, folder: Path, path: str, content: bytes) -> Made:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}")
    fresh.write_bytes(content)
    fresh.replace(file)
    return Made(step, path, str(file))
