"""Noise after the norm on CIFAR-10 (Santurkar et al. 2018, section 2.1): does batch norm work by stable distributions?

Run `NORMCORE_DATA_DIR=... .venv/bin/python benchmarks/noise.py`. VGG-11 of a quarter of the width, batch 128, plain SGD
at lr 0.1, no augmentation, paired seeds: batch norm, batch norm with noise after it, no norm, and noise without a norm.
For each run: training loss and accuracy, with the noise on, as means over the last tenth of the steps; and test
accuracy with the noise off under the running statistics, which were gathered under noise; with the noise off and
statistics recomputed; and with the noise on.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from pathlib import Path

from machine import become_a_trainer, describe

from normcore.data.folders import DataFolders
from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.train import train

ARMS = (("batch", "none"), ("batch", "santurkar"), ("none", "none"), ("none", "santurkar"))
TESTS = ("test/accuracy", "test/accuracy_recomputed", "test/accuracy_noisy")


def main() -> None:
    """Train every arm with every seed, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    become_a_trainer()
    print(describe())
    print("| norm | noise | seed | train/loss | train/accuracy |", " | ".join(TESTS), "|")
    print("|---|---|---|---|---|" + "---|" * len(TESTS))
    for norm, noise in ARMS:
        for seed in range(arguments.seeds):
            print(
                f"| {norm} | {noise} | {seed} |", " | ".join(row(norm, noise, seed, arguments.steps)), "|", flush=True
            )


def row(norm: str, noise: str, seed: int, steps: int) -> list[str]:
    """What one training came to."""
    job = {
        "model": {"kind": "vgg", "width": 0.25},
        "norm": {"kind": norm},
        "noise": {"kind": noise},
        "data": {"kind": "cifar10"},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "batch_size": 128,
        "steps": steps,
        "seed": seed,
        "evaluate_every": steps,
        "checkpoint_every": steps,
    }
    curves: dict[str, list[float]] = defaultdict(list)
    folders = DataFolders(Path(os.environ.get("NORMCORE_DATA_DIR", "data")))
    for record in train(JobSpec.model_validate(job), folders=folders):
        if isinstance(record, Metrics):
            for point in record.points:
                curves[point.key].append(point.value)
    tail = max(1, steps // 10)
    means = [f"{statistics.fmean(curves[key][-tail:]):.3f}" for key in ("train/loss", "train/accuracy")]
    return means + [f"{curves[key][-1]:.3f}" if curves[key] else "" for key in TESTS]


if __name__ == "__main__":
    main()
