"""The deep linear net of Santurkar et al. 2018 (appendix A): along the gradient, effective beta times lr settles at 2.

Run `.venv/bin/python benchmarks/deep_linear.py`. 25 layers of 10x10, 1,000 samples, full batch, summed squared error,
float64, 2,500 steps of plain gradient descent, with batch norm and without a norm; the landscape probe reads effective
beta at one lr from the weights at every tenth step. Printed are median and quartiles of beta times lr over steps 500 to
2,500.
"""

from __future__ import annotations

from machine import become_a_trainer, describe, summary

from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.train import train

STEPS, FROM = 2500, 500
ARMS = (
    *((norm, 1e-6, seed) for seed in range(3) for norm in ("batch", "none")),
    ("batch", 5e-7, 0),
    ("batch", 2e-6, 0),
)


def main() -> None:
    """Train every arm and print a line for each."""
    become_a_trainer()
    print(describe())
    for norm, lr, seed in ARMS:
        betas, losses = readings(norm, lr, seed)
        print(f"{norm:5} lr {lr:g} seed {seed}: beta x lr {summary(betas)}; loss {losses[0]:.3g} to {losses[-1]:.3g}")


def readings(norm: str, lr: float, seed: int) -> tuple[list[float], list[float]]:
    """Beta times lr from step `FROM` on, and the training losses."""
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
        "probes": [{"kind": "landscape", "every": 10, "low": 0.999, "high": 1.001, "points": 2}],
    }
    betas, losses = [], []
    for record in train(JobSpec.model_validate(job)):
        if isinstance(record, Metrics):
            for key, step, value in record.points:
                if key == "train/loss":
                    losses.append(value)
                elif key == "landscape/effective_beta_times_lr" and step >= FROM:
                    betas.append(value)
    return betas, losses


if __name__ == "__main__":
    main()
