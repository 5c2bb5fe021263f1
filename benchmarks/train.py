"""What recording costs: the training loop with every step recorded, against the bare loop one would write by hand.

Run `.venv/bin/python benchmarks/train.py`. Both arms do the same training on the same resident data with torch's same
fused SGD, on one thread, in the environment of a worker's trainer; at the end their weights are compared bit for bit.
The bare arm is plain torch modules and five lines; the recorded arm is `normcore.train.train`, whose records, with
loss, accuracy and lr of every step, are written to a file as JSON lines.

The arms take turns within one process, some 0.25 s at a time: the recorded one until its next record, then the bare one
for as many steps. The clock is the process's CPU time, so that other programs on the machine count less. A ratio above
1 means that the recorded loop is the faster one. Target: at least 0.97 at steps of about 1 ms.

Where Lightning is installed (`pip install lightning`), it trains the same net on the same batches, loss and accuracy of
every step logged to a file, in turns with the bare loop; the set-up of its `fit` is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import torch
from machine import become_a_trainer, describe, summary
from torch import Tensor, nn
from torch.nn import functional

from normcore.build import build_model
from normcore.data.dataset import load
from normcore.data.folders import DataFolders
from normcore.menu.models import VggSpec
from normcore.models.vgg import STAGES
from normcore.records import Checkpoint, Metrics, Record
from normcore.spec import JobSpec
from normcore.train import train

COMMON = {"batch_size": 64, "evaluate_every": 100_000_000, "checkpoint_every": 100_000_000}
JOBS = {
    "mlp 64-384-384-10 + batch norm": {
        "model": {"kind": "mlp", "hidden": [384, 384]},
        "data": {"kind": "digits", "size": 8},
    },
    "vgg11 width 0.25 + batch norm": {"model": {"kind": "vgg", "width": 0.25}, "data": {"kind": "digits"}},
}


def main() -> None:
    """Measure both models and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="turns of each arm, about 0.25 s each")
    turns = parser.parse_args().turns
    become_a_trainer()
    print(describe())
    for name, job in JOBS.items():
        print(name)
        # More steps than any machine will do; the recorded arm is stopped after its turns.
        measure(JobSpec.model_validate({**job, **COMMON, "steps": 100_000_000}), turns)


def measure(spec: JobSpec, turns: int) -> None:
    """Let the arms take turns, and compare their speeds and their weights."""
    with tempfile.TemporaryDirectory() as folder:
        folders = DataFolders(cache_dir=Path(folder) / "cache")
        bare = Bare(spec, folders)
        stopping = False
        records = train(spec, folders=folders, stop=lambda: stopping)
        ratios, bare_ms, recorded_ms, done = [], [], [], 0
        with (Path(folder) / "records.jsonl").open("w") as lines:
            for turn in range(turns + 1):
                stopping = turn == turns
                began = time.process_time()
                record = write(next(records), lines)
                recorded = time.process_time() - began
                began = time.process_time()
                bare.steps(record.step - done)
                plain = time.process_time() - began
                steps, done = record.step - done, record.step
                # The first record holds the set-up; the last turn belongs to the checkpoint.
                if 0 < turn < turns:
                    ratios.append(plain / recorded)
                    bare_ms.append(1000 * plain / steps)
                    recorded_ms.append(1000 * recorded / steps)
        last = next(record for record in records if isinstance(record, Checkpoint))
        compare(bare, last.snapshot.tensors)
        losses = (Path(folder) / "records.jsonl").read_text().count("train/loss")
    speed = statistics.median(bare_ms) / statistics.median(recorded_ms)
    print(f"  bare loop, CPU ms per step:      {summary(bare_ms)}")
    print(f"  recorded loop, CPU ms per step:  {summary(recorded_ms)}")
    print(f"  recorded / bare, in speed:       {speed:.3f} of the medians; turn by turn {summary(ratios)}")
    print(f"  {done} steps, {losses} losses recorded; weights bit-identical")
    if find_spec("lightning") is not None:
        beside_lightning(spec, bare, steps=max(20, done // (turns + 1)), turns=turns)


def beside_lightning(spec: JobSpec, bare: Bare, *, steps: int, turns: int) -> None:
    """Let Lightning and the bare loop take turns."""
    from peers.lightning_arm import step_ms

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        model = Bare(spec, DataFolders(cache_dir=Path(folder) / "cache"))
        for _ in range(turns):
            theirs = step_ms(model.model, model.data, spec.optimizer.lr, steps, folder)
            began = time.process_time()
            bare.steps(steps)
            ratios.append(1000 * (time.process_time() - began) / steps / theirs)
    print(f"  Lightning / bare, in speed:      {summary(ratios)}")


def write(record: Record, lines: TextIO) -> Metrics:
    """What a listener does at least: one JSON line for each record."""
    if not isinstance(record, Metrics):
        raise TypeError(f"expected nothing but metrics between checkpoints, got {type(record).__name__}")
    lines.write(json.dumps({"step": record.step, "points": record.points}) + "\n")
    return record


class Bare:
    """The loop one would write by hand, on plain torch modules with the job's initial weights."""

    def __init__(self, spec: JobSpec, folders: DataFolders) -> None:
        self.data = load(spec, folders=folders)
        weights = dict(build_model(spec).named_parameters())
        self.model = nn.Sequential(*(vgg(spec.model) if isinstance(spec.model, VggSpec) else mlp()))
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            for ours, theirs in zip(self.model.parameters(), weights.values(), strict=True):
                ours.copy_(theirs)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=spec.optimizer.lr, fused=True)
        self.step = 0

    def steps(self, count: int) -> None:
        """Go on for some steps."""
        data, model, optimizer = self.data, self.model, self.optimizer
        for step in range(self.step, self.step + count):
            batch = data.batch(step)
            loss = functional.cross_entropy(model(batch.inputs), batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.step += count


def mlp() -> Iterator[nn.Module]:
    """The layers of the MLP."""
    yield nn.Flatten()
    for before, after in ((64, 384), (384, 384)):
        yield from (nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
    yield nn.Linear(384, 10)


def vgg(spec: VggSpec) -> Iterator[nn.Module]:
    """The layers of the VGG."""
    channels = 1
    for stage in STAGES[spec.depth]:
        for full_width in stage:
            after = round(spec.width * full_width)
            yield from (nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            channels = after
        yield nn.MaxPool2d(2)
    yield from (nn.Flatten(), nn.Linear(channels, 10))


def compare(bare: Bare, recorded: Mapping[str, Tensor]) -> None:
    """Raise unless both arms have the same parameters and statistics, bit for bit."""
    theirs = [tensor for name, tensor in recorded.items() if name.startswith("model.")]
    for ours, other in zip(bare.model.state_dict().values(), theirs, strict=True):
        if not torch.equal(ours, other):
            raise AssertionError("the two arms must do the same training, got different weights")


if __name__ == "__main__":
    main()
