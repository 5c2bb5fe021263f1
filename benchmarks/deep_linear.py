"""The deep linear net of Santurkar et al. 2018 (appendix A): how smooth its loss is, and how its layers shift.

Run `.venv/bin/python benchmarks/deep_linear.py`. 25 layers of 10x10, 1,000 samples, full batch, summed squared error,
float64, 2,500 steps of plain gradient descent, with batch norm and without a norm. Two tables:

- The landscape probe reads effective beta at one lr from the weights at every tenth step. Printed are median and
  quartiles of beta times lr over steps 500 to 2,500, which settles at 2 whatever the lr.
- The covariate shift probe reads layers 9 and 17 at every tenth step, at the lr of 1e-7. Printed are least, median and
  largest cosine and L2 distance of the gradients before and after the update of the layers in front, over steps 700 to
  2,500: the paper's figure 3(b), in which the net *with* batch norm shifts more.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from machine import become_a_trainer, describe, summary

from normcore.records import Metrics, Reading, Record
from normcore.spec import JobSpec
from normcore.train import train

STEPS, BETA_FROM, SHIFT_FROM = 2500, 500, 700
ARMS = (
    *((norm, 1e-6, seed) for seed in range(3) for norm in ("batch", "none")),
    ("batch", 5e-7, 0),
    ("batch", 2e-6, 0),
)
SHIFT_LR, LAYERS = 1e-7, (9, 17)


def main() -> None:
    """Train every arm and print a line for each."""
    become_a_trainer()
    print(describe())
    for norm, lr, seed in ARMS:
        betas, losses = betas_of(norm, lr, seed)
        print(f"{norm:5} lr {lr:g} seed {seed}: beta x lr {summary(betas)}; loss {losses[0]:.3g} to {losses[-1]:.3g}")
    for norm in ("none", "batch"):
        for layer, cosines, distances in shifts(norm):
            print(f"{norm:5} lr {SHIFT_LR:g} layer {layer:2}: cosine {spread(cosines)}; l2 {spread(distances)}")


def betas_of(norm: str, lr: float, seed: int) -> tuple[list[float], list[float]]:
    """Beta times lr from step `BETA_FROM` on, and the training losses."""
    betas, losses = [], []
    for record in records(norm, lr, seed, {"kind": "landscape", "low": 0.999, "high": 1.001, "points": 2}):
        if isinstance(record, Metrics):
            for key, step, value in record.points:
                if key == "train/loss":
                    losses.append(value)
                elif key == "landscape/effective_beta_times_lr" and step >= BETA_FROM:
                    betas.append(value)
    return betas, losses


def shifts(norm: str) -> Iterator[tuple[int, list[float], list[float]]]:
    """By layer, cosine and distance of its gradients from step `SHIFT_FROM` on."""
    probe = {"kind": "covariate_shift", "layers": [f"blocks.{layer - 1}.linear" for layer in LAYERS]}
    seen = [record for record in records(norm, SHIFT_LR, 0, probe) if isinstance(record, Reading)]
    late = [reading for reading in seen if reading.step >= SHIFT_FROM]
    for place, layer in enumerate(LAYERS):
        cosines, distances = ([reading.arrays[name][place] for reading in late] for name in ("cosine", "l2"))
        yield layer, cosines, distances


def records(norm: str, lr: float, seed: int, probe: dict[str, object]) -> Iterator[Record]:
    """The training of an arm, with a probe that reads at every tenth step."""
    job = {
        "model": {"kind": "deep_linear"},
        "norm": {"kind": norm},
        "data": {"kind": "gaussian"},
        "optimizer": {"kind": "sgd", "lr": lr},
        "batch_size": 1000,
        "steps": STEPS,
        "seed": seed,
        "precision": "float64",
        "evaluate_every": STEPS,
        "checkpoint_every": STEPS,
        "probes": [probe | {"every": 10}],
    }
    return train(JobSpec.model_validate(job))


def spread(values: list[float]) -> str:
    """Least, median and largest."""
    return f"{min(values):.4g} to {max(values):.4g}, median {statistics.median(values):.4g}"


if __name__ == "__main__":
    main()
