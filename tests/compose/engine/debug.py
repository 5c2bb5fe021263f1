"""The service `debug` sees into a worker's processes and reaches the API, without root's rights."""

from __future__ import annotations

from engine.project import Project, TrialFailed, until

JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 100000, "seed": 1}


def run(laboratory: Project) -> None:
    """While a job trains: its stack, and itself in the list of jobs."""
    job = laboratory.order(JOB, trial="debug")
    laboratory.under_way(job, 10)
    laboratory.compose("--profile", "debug", "up", "--wait", "--no-deps", "debug")
    try:
        _must_say(laboratory, "10001", "id", "-u")
        _must_say(laboratory, job, "normcore", "ls")
        stacks = ("python", "-m", "worker.stacks")
        until(lambda: "(normcore/train.py:" in laboratory.compose("exec", "-T", "debug", *stacks), "the training shows")
    finally:
        laboratory.compose("--profile", "debug", "rm", "--stop", "--force", "debug")
    laboratory.asked(f"/v1/jobs/{job}/cancel", {})
    print("  the stack of a training is seen by a user without rights, and normcore ls shows its job")


def _must_say(laboratory: Project, expected: str, *command: str) -> None:
    said = laboratory.compose("exec", "-T", "debug", *command)
    if expected not in said:
        raise TrialFailed(f"{' '.join(command)} in the service debug must say {expected}, and says {said!r}")
