"""What probes cost, in plain training steps.

Run `.venv/bin/python benchmarks/probes.py`. First a point of the landscape probe: a VGG-11 of quarter width with batch
norm trains on digits in batches of 64, by plain SGD and by recipes in use (momentum and weight decay, or AdamW, with
crops), and so does an MLP. In every round the arms take turns: as many training steps as a reading has points (batch,
forward, backward, update of `normcore.learner`); a reading as a job takes it, with all that `normcore.instruments` does
around it; one by a deep copy of the model for every point; and one by `torch.func.functional_call` on moved parameters.
All readings see the same losses. Target: at most 0.98 training steps per point on a CNN.

A point has the forward and the backward pass of a step, which are 97 % of it. In the place of the update, which under
plain SGD moves three values per parameter through memory, it moves seven: for its own move, the difference of the
gradients, and the norm of that. What it saves are the batch, which is fetched once a reading, and what the optimizer
does besides. So under plain SGD a point is about a step, and less where the update has moments and the batch crops.

Then one reading of every probe on the menu on that VGG with plain SGD, beside as many training steps as the probe says
that it costs, eight at most, and beside what it says. Of a probe that watches steps on the way, what that adds to a
step is said too.

The clock is the process's CPU time, so that other programs on the machine count less; one thread, in the environment of
a worker's trainer.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import become_a_trainer, describe, summary
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from normcore.curves import Curves
from normcore.data.folders import DataFolders
from normcore.instruments import Instruments
from normcore.learner import Learner
from normcore.probes.probe import Watching
from normcore.records import Reading, Remark
from normcore.spec import MENU, JobSpec, kind_of

LOW, HIGH = 0.5, 4.0
VGG = {
    "model": {"kind": "vgg", "width": 0.25},
    "data": {"kind": "digits"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "batch_size": 64,
}
RECIPE = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
MLP = {"model": {"kind": "mlp", "hidden": [384, 384]}, "data": {"kind": "digits", "size": 8}}
LANDSCAPES: dict[str, dict[str, Any]] = {
    "vgg11 width 0.25 + batch norm, plain SGD": VGG,
    "the same, SGD with momentum and weight decay, crops": VGG
    | {"optimizer": RECIPE, "data": {"kind": "digits", "crop_padding": 4}},
    "the same, AdamW, crops": VGG
    | {"optimizer": {"kind": "adamw", "lr": 0.001}, "data": {"kind": "digits", "crop_padding": 4}},
    "mlp 64-384-384-10 + batch norm, plain SGD": VGG | MLP,
}
SETTINGS: dict[str, dict[str, Any]] = {"lr_range": {"steps": 20}}
"""Knobs of probes whose defaults would take minutes here; all others stand at their defaults."""

WATCHED = 4
"""Steps that a probe which watches has watched at its reading."""


def main() -> None:
    """Measure, and print what a point and a reading cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the arms of a landscape")
    parser.add_argument("--points", type=int, default=8, help="points of its reading")
    parser.add_argument("--readings", type=int, default=5, help="readings of each probe on the menu")
    parser.add_argument("--probes", nargs="*", help="only these kinds; landscape stands for the points")
    arguments = parser.parse_args()
    become_a_trainer()
    print(describe())
    wanted = arguments.probes
    if not wanted or "landscape" in wanted:
        for name, job in LANDSCAPES.items():
            print(name)
            measure_points(Bench(job), arguments.rounds, arguments.points)
    print("one reading, in training steps of vgg11 width 0.25 + batch norm, plain SGD")
    for part in MENU["probes"]:
        if not wanted or kind_of(part) in wanted:
            measure_readings(Bench(VGG), kind_of(part), arguments.readings)


class Bench:
    """A training that is made step by step."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            folders = DataFolders(cache_dir=Path(folder))
            self.learner = Learner(JobSpec.model_validate(job), torch.device("cpu"), folders)
        self._job, self.done = dict(job), 0
        self.lr = JobSpec.model_validate(job).optimizer.lr

    def instruments(self, probe: Mapping[str, Any], steps: int) -> Instruments:
        """A probe as a job of so many steps has it."""
        spec = JobSpec.model_validate(self._job | {"probes": [probe], "steps": steps})
        curves = Curves(spec.record_every, torch.device("cpu"))
        # Statistics for evaluation are moving averages here: there is nothing to make ready.
        return Instruments(spec, self.learner, curves, lambda: None)

    def steps(self, count: int) -> None:
        """Plain training steps."""
        for _ in range(count):
            self.done += 1
            loss, _, _ = self.learner.forward(self.done)
            self.learner.backward(loss)
            self.learner.update(loss, self.lr)

    def steps_in_place(self, count: int) -> None:
        """Steps of the next batch with an lr of zero, so that all arms compute at the same parameters."""
        parameters = list(self.learner.model.parameters())
        kept = [parameter.grad for parameter in parameters]
        for _ in range(count):
            loss, _, _ = self.learner.forward(self.done + 1)
            self.learner.backward(loss)
            self.learner.update(loss, 0.0)
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient

    def observed_step(self, instruments: Instruments) -> tuple[float, Reading | None]:
        """A step with a probe: the CPU seconds of the probe alone, and what it read."""
        self.done += 1
        spent = seconds(partial(instruments.attend, self.done))
        loss, _, _ = self.learner.forward(self.done)
        self.learner.backward(loss)
        spent += seconds(partial(instruments.before_update, self.lr))
        self.learner.update(loss, self.lr)
        spent += seconds(partial(instruments.after_update, self.lr))
        return spent, reading_of(instruments)


def measure_points(bench: Bench, rounds: int, points: int) -> None:
    """Let the arms of a landscape take turns, and print the cost of a point in each."""
    learner = bench.learner
    probe = {"kind": "landscape", "every": 1, "low": LOW, "high": HIGH, "points": points}
    instruments = bench.instruments(probe, steps=(rounds + 1) * (points + 1))
    sizes = [bench.lr * (LOW + (HIGH - LOW) * index / (points - 1)) for index in range(points)]
    costs: list[list[float]] = [[], [], [], []]
    # The first round warms up.
    for turn in range(rounds + 1):
        bench.steps(points)
        number = bench.done + 1
        attending = seconds(partial(instruments.attend, number))
        loss, _, _ = learner.forward(number)
        learner.backward(loss)
        copied: list[float] = []
        called: list[float] = []
        arms: list[Callable[[], None]] = [
            partial(bench.steps_in_place, points),
            partial(instruments.before_update, bench.lr),
            partial(read_by_copies, learner, number, sizes, copied),
            partial(read_by_calls, learner, number, sizes, called),
        ]
        # Who comes first changes, since each arm leaves its successor a heap of another shape.
        spent = [0.0, attending, 0.0, 0.0]
        for index in range(turn, turn + len(arms)):
            spent[index % len(arms)] += seconds(arms[index % len(arms)])
        reading = reading_of(instruments)
        assert reading is not None
        for losses in (copied, called):
            if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(reading.arrays["loss"], losses, strict=True)):
                raise AssertionError(f"all readings must see the same losses, got {reading.arrays['loss']}, {losses}")
        learner.update(loss, bench.lr)
        bench.done = number
        if turn:
            for cost, each in zip(costs, spent, strict=True):
                cost.append(1000 * each / points)
    step_ms, *readings = costs
    print(f"  training step, CPU ms: {summary(step_ms)}")
    for name, point_ms in zip(("in place", "deepcopy", "functional_call"), readings, strict=True):
        steps = statistics.median(point_ms) / statistics.median(step_ms)
        ratios = summary([point / step for point, step in zip(point_ms, step_ms, strict=True)])
        print(f"  {name}, training steps a point: {steps:.3f} of the medians; round by round {ratios}")


def read_by_copies(learner: Learner, number: int, sizes: list[float], losses: list[float]) -> None:
    """A reading as one would first write it: a copy of the model for every point."""
    gradient = gradients(learner.model)
    norm = torch.cat([g.flatten() for g in gradient]).norm().item()
    model, replay, betas = learner.model, learner.replay(number), []
    for step_size in sizes:
        learner.model = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, g in zip(learner.model.parameters(), gradient, strict=True):
                parameter.sub_(step_size * g)
        learner.model.zero_grad()
        loss = replay()
        loss.backward()  # type: ignore[no-untyped-call]
        there = gradients(learner.model)
        change = torch.cat([(a - b).flatten() for a, b in zip(there, gradient, strict=True)]).norm().item()
        losses.append(loss.item())
        betas.append(change / (step_size * norm))
    learner.model = model


def read_by_calls(learner: Learner, number: int, sizes: list[float], losses: list[float]) -> None:
    """A reading as functions are differentiated: the model is called with other parameters."""
    model, batch, betas = learner.model, learner.batch(number), []
    gradient = gradients(model)
    norm = torch.cat([g.flatten() for g in gradient]).norm().item()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for step_size in sizes:
        pairs = zip(model.named_parameters(), gradient, strict=True)
        moved = {name: (parameter.detach() - step_size * g).requires_grad_() for (name, parameter), g in pairs}
        loss = functional.cross_entropy(functional_call(model, moved | buffers, (batch.inputs,)), batch.labels)
        there = torch.autograd.grad(loss, list(moved.values()))
        change = torch.cat([(a - b).flatten() for a, b in zip(there, gradient, strict=True)]).norm().item()
        losses.append(loss.item())
        betas.append(change / (step_size * norm))


def measure_readings(bench: Bench, kind: str, readings: int) -> None:
    """Readings of a probe in turns with training steps, and its line of the table."""
    probe, stated = {"kind": kind, **SETTINGS.get(kind, {})}, 0.0
    (spec,) = JobSpec.model_validate(VGG | {"probes": [probe]}).probes
    if "every" in type(spec).model_fields:
        probe["every"] = 1
    costs: list[float] = []
    watching: list[float] = []
    # The first round warms up.
    for turn in range(readings + 1):
        made = spec.part()(**spec.knobs())
        watched = WATCHED if isinstance(made, Watching) else 0
        stated = made.cost(bench.learner.model)
        count = min(8, max(2, round(stated)))
        step_s = seconds(partial(bench.steps, count)) / count
        instruments = bench.instruments(probe, steps=bench.done + watched + 1)
        on_the_way = [bench.observed_step(instruments)[0] / step_s for _ in range(watched)]
        spent, reading = bench.observed_step(instruments)
        if reading is None:
            raise AssertionError(f"the probe must read at step {bench.done}, the last of the job, got nothing")
        if turn:
            costs.append(spent / step_s)
            watching += on_the_way
    off = statistics.median(costs) / stated
    knobs = f" {json.dumps(SETTINGS[kind])}" if kind in SETTINGS else ""
    print(f"  {kind}{knobs}: {summary(costs)}; it says {stated:.3g}, which is {1 / off:.2f} of that")
    if watching:
        print(f"    and at a step that it watches: {summary(watching)}")


def reading_of(instruments: Instruments) -> Reading | None:
    """What the probe read at this step, if it did; its failure is ours."""
    if failures := [seen.detail for seen in instruments.seen if isinstance(seen, Remark)]:
        raise AssertionError(f"the probe must not fail here, got: {failures[0]}")
    return next((seen for seen in instruments.seen if isinstance(seen, Reading)), None)


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def seconds(work: Callable[[], None]) -> float:
    """CPU time of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
