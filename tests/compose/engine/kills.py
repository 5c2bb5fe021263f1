"""Every container is killed at once in the middle of a training, which ends as if nothing had been."""

from __future__ import annotations

from engine.project import Project

JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 3000, "checkpoint_every": 100,
       "deterministic": True, "seed": 1}  # fmt: skip


def run(laboratory: Project) -> None:
    """One training undisturbed, one through the death of all containers, one through `down` and three workers."""
    undisturbed = laboratory.finished(laboratory.order(JOB, trial="undisturbed"))

    job = laboratory.order(JOB, trial="every container killed")
    laboratory.under_way(job, 200)
    laboratory.kill()
    print(f"  up after every container was killed: {laboratory.up():.0f} s")
    laboratory.finished(job).must_be(undisturbed)

    job = laboratory.order(JOB, trial="down and up")
    laboratory.under_way(job, 200)
    print(f"  down: {laboratory.down():.0f} s")
    print(f"  up with the volumes kept, and three workers: {laboratory.up('--scale', 'worker=3'):.0f} s")
    laboratory.finished(job).must_be(undisturbed)
    laboratory.up("--scale", "worker=1")
