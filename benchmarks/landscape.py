"""What the landscape probe costs: each of its points, in plain training steps.

Run `.venv/bin/python benchmarks/landscape.py`. A VGG-11 of quarter width with batch norm trains on digits in batches of
64, and so does an MLP, on one thread, in the environment of a worker's trainer. In every round the arms take turns: as
many training steps as the probe has points (forward, backward and update of `normcore.learner`), one reading of
`normcore.probes.landscape`, which moves the parameters in place, and one of the obvious probe that copies the model for
every point. The clock is the process's CPU time, so that other programs on the machine count less. Both probes see the
same losses. Target: at most 1.0 training step per point on the VGG. On the MLP a step is mostly overhead, and the few
operations that replace the update cost some percent more than plain SGD's fused one.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from machine import become_a_trainer, describe, summary
from torch import Tensor, nn

from normcore.data.folders import DataFolders
from normcore.learner import Learner
from normcore.probes.footprints import no_footprints
from normcore.probes.landscape import LandscapeProbe
from normcore.probes.moment import Moment
from normcore.spec import JobSpec

LR = 0.1
COMMON = {"optimizer": {"kind": "sgd", "lr": LR}, "batch_size": 64}
JOBS = {
    "vgg11 width 0.25 + batch norm": {"model": {"kind": "vgg", "width": 0.25}, "data": {"kind": "digits"}},
    "mlp 64-384-384-10 + batch norm": {
        "model": {"kind": "mlp", "hidden": [384, 384]},
        "data": {"kind": "digits", "size": 8},
    },
}


def main() -> None:
    """Measure the three arms and print what a point costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the three arms")
    parser.add_argument("--points", type=int, default=8, help="points of a reading")
    arguments = parser.parse_args()
    become_a_trainer()
    print(describe())
    for name, job in JOBS.items():
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            folders = DataFolders(cache_dir=Path(folder))
            learner = Learner(JobSpec.model_validate(job | COMMON), torch.device("cpu"), folders)
        measure(learner, arguments.rounds, arguments.points)


def measure(learner: Learner, rounds: int, points: int) -> None:
    """Let the arms take turns, and print the cost of a point in each."""
    probe = LandscapeProbe(low=0.5, high=4.0, points=points)
    costs: list[list[float]] = [[], [], []]
    # The first round warms up.
    for turn in range(rounds + 1):
        first, last = 1 + turn * (points + 1), (turn + 1) * (points + 1)
        for number in range(first, last):
            train_step(learner, number)
        loss = learner.replay(last)()
        learner.backward(loss)
        ours: list[float] = []
        theirs: list[float] = []
        arms = [
            partial(plain_steps, learner, last, points),
            partial(read_in_place, probe, learner, last, ours),
            partial(read_by_copies, learner, last, points, theirs),
        ]
        # Who comes first changes, since each arm leaves its successor a heap of another shape.
        seconds = [0.0] * len(arms)
        for index in range(turn, turn + len(arms)):
            began = time.process_time()
            arms[index % len(arms)]()
            seconds[index % len(arms)] = time.process_time() - began
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(ours, theirs, strict=True)):
            raise AssertionError(f"the two probes must see the same losses, got {ours} and {theirs}")
        learner.update(loss, LR)
        if turn:
            for cost, spent in zip(costs, seconds, strict=True):
                cost.append(1000 * spent / points)
    step_ms, *probes = costs
    print(f"  training step, CPU ms: {summary(step_ms)}")
    for name, point_ms in zip(("in place", "deep copies"), probes, strict=True):
        steps = statistics.median(point_ms) / statistics.median(step_ms)
        ratios = summary([point / step for point, step in zip(point_ms, step_ms, strict=True)])
        print(f"  {name}, training steps a point: {steps:.3f} of the medians; round by round {ratios}")


def train_step(learner: Learner, number: int, lr: float = LR) -> None:
    """A plain training step."""
    loss, _, _ = learner.forward(number)
    learner.backward(loss)
    learner.update(loss, lr)


def plain_steps(learner: Learner, number: int, count: int) -> None:
    """Some training steps at one place: with an lr of zero all arms compute at the same parameters."""
    kept = gradients(learner.model)
    for _ in range(count):
        train_step(learner, number, lr=0.0)
    for parameter, gradient in zip(learner.model.parameters(), kept, strict=True):
        parameter.grad = gradient


def read_in_place(probe: LandscapeProbe, learner: Learner, number: int, losses: list[float]) -> None:
    """A reading as the training loop takes it."""
    gradient = tuple(parameter.grad for parameter in learner.model.parameters())
    with no_footprints(learner.model) as origin:
        replays = (learner.replay(number), partial(learner.plain_replay, number))
        reading = probe.read(Moment(number, LR, learner.model, *replays, tuple(origin), gradient))
    losses.extend(reading.arrays["loss"])


def read_by_copies(learner: Learner, number: int, points: int, losses: list[float]) -> None:
    """A reading as one would first write it: a copy of the model for every point."""
    gradient = gradients(learner.model)
    norm = torch.cat([g.flatten() for g in gradient]).norm().item()
    model, betas = learner.model, []
    for index in range(points):
        step_size = LR * (0.5 + 3.5 * index / (points - 1))
        learner.model = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, g in zip(learner.model.parameters(), gradient, strict=True):
                parameter.sub_(step_size * g)
        learner.model.zero_grad()
        loss = learner.replay(number)()
        loss.backward()  # type: ignore[no-untyped-call]
        there = gradients(learner.model)
        change = torch.cat([(a - b).flatten() for a, b in zip(there, gradient, strict=True)]).norm().item()
        losses.append(loss.item())
        betas.append(change / (step_size * norm))
    learner.model = model


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


if __name__ == "__main__":
    main()
