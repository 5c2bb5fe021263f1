"""A second machine joins by an address and a key, takes jobs and is lost; the laboratory goes on, bit for bit."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.project import ROOT, Outcome, Project, TrialFailed, fetched, until

JOB = {"model": {"kind": "mlp", "hidden": [512, 512]}, "data": {"kind": "digits", "size": 8}, "steps": 4000,
       "checkpoint_every": 250, "deterministic": True, "seed": 1}  # fmt: skip
GATE_PORT = "18022"
SPOOLS = "from pathlib import Path; print(*Path('/var/lib/normcore/state/spool').glob('*.db'))"


def run(laboratory: Project) -> None:
    """Lost for good, stopped in good order, lost and back again, and removed."""
    # An address of this machine that containers of any network reach; nobody else does.
    bridge = ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    address = subprocess.run(bridge, capture_output=True, text=True, check=True).stdout.strip()
    gate = {"COMPOSE_PROFILES": "machines", "GATE_ADDRESS": address, "NORMCORE_GATE_PORT": GATE_PORT}
    laboratory = replace(laboratory, environment={**laboratory.environment, **gate})
    print(f"  up with a gate: {laboratory.up():.0f} s")
    undisturbed = laboratory.finished(laboratory.order(JOB, trial="undisturbed"))
    key = machines(laboratory, "add", "gpu-box").strip()
    machine = machine_of(laboratory, f"{address}:{GATE_PORT}", key)
    try:
        job = taken(laboratory, machine, "lost for good")
        machine.kill()
        machine.down("--volumes")
        gone_on_with(laboratory, job, undisturbed, "lost")

        job = taken(laboratory, machine, "stopped")
        machine.compose("stop")
        gone_on_with(laboratory, job, undisturbed, "released")

        job = taken(laboratory, machine, "lost and back again")
        machine.kill()
        gone_on_with(laboratory, job, undisturbed, "lost")
        machine.up("--no-build")
        until(lambda: not machine.compose("exec", "-T", "worker", "python", "-c", SPOOLS).split(), "its spool is empty")
        laboratory.finished(job).must_be(undisturbed)
        print("  it came back with what it had not sent, and MLflow has every point once")

        machines(laboratory, "remove", "gpu-box")
        until(lambda: "it was removed there" in machine.compose("logs", "worker"), "a removed machine is cut off")
        print("  it was removed, and said so")
    finally:
        machine.down("--volumes")
        laboratory.compose("rm", "--stop", "--force", "gate")


def machine_of(laboratory: Project, address: str, key: str) -> Project:
    """A project of its own, on a network of its own, with the settings of its example."""
    folder = laboratory.folder / "machine"
    folder.mkdir()
    example = (ROOT / ".env.worker.example").read_text()
    told = example.replace("\nNORMCORE_LABORATORY=\n", f"\nNORMCORE_LABORATORY={address}\n")
    (folder / ".env").write_text(told.replace("\nNORMCORE_MACHINE_KEY=\n", f"\nNORMCORE_MACHINE_KEY={key}\n"))
    return Project(
        f"{laboratory.name}-machine",
        folder,
        files=("docker-compose.worker.yml",),
        environment={name: value for name, value in laboratory.environment.items() if name == "NORMCORE_IMAGE"},
    )


def machines(laboratory: Project, *words: str) -> str:
    """What docker/machines does."""
    return laboratory.compose("run", "--rm", "--no-deps", "-T", "gate", "python", "-m", "worker.machines", *words)


def taken(laboratory: Project, machine: Project, trial: str) -> str:
    """The id of a job that trains on the machine, while the laboratory has no worker; MLflow has a checkpoint of it."""
    laboratory.up("--scale", "worker=0")
    print(f"  {trial}: the machine joins within {machine.up('--no-build'):.0f} s")
    job = laboratory.order(JOB, trial=trial)
    laboratory.under_way(job, 250)
    until(lambda: whole_checkpoints(laboratory, job), "MLflow has a checkpoint of the job")
    worker = laboratory.job(job)["attempts"][0]["worker"]
    if not worker.startswith("gpu-box/"):
        raise TrialFailed(f"the job must train on gpu-box, and does on {worker}")
    return job


def gone_on_with(laboratory: Project, job: str, undisturbed: Outcome, outcome: str) -> None:
    """The job ends on a worker of the laboratory, which went on where the machine's last checkpoint was.

    Raises:
        TrialFailed: if it began anew, or came to anything else than the undisturbed one.
    """
    laboratory.up("--scale", "worker=1")
    found = laboratory.finished(job)
    first, *others = laboratory.job(job)["attempts"]
    if len(others) != 1 or not others[0]["resumed_from"] or first["outcome"] != outcome:
        raise TrialFailed(f"the job must go on from the machine's checkpoint in one more attempt: {first}, {others}")
    (second,) = others
    if second["worker"].startswith("gpu-box/"):
        raise TrialFailed(f"the job must go on in the laboratory, and did on {second['worker']}")
    found.must_be(undisturbed)
    print(
        f"  {outcome} at step {first['last_step']}, gone on with at {second['resumed_from']}"
        f"{passed_over(laboratory, job)}: the same curves and weights"
    )


def passed_over(laboratory: Project, job: str) -> str:
    """Why newer checkpoints were passed over, as the events of an ended job say."""
    with urllib.request.urlopen(f"{laboratory.api}/v1/jobs/{job}/events", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    events = [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]
    reasons = [reason for event in events for reason in event.get("data", {}).get("passed_over", ())]
    return f" ({'; '.join(reasons)})" if reasons else ""


def whole_checkpoints(laboratory: Project, job: str) -> list[str]:
    """The checkpoints of a job that stand whole in MLflow."""
    link = re.search(r"/runs/([^/?]+)", laboratory.job(job)["links"]["mlflow"] or "")
    if link is None:
        return []
    found = [file["path"] for file in artifacts(laboratory, link[1], "checkpoints").get("files", ())]
    return [path for path in found if len(artifacts(laboratory, link[1], path).get("files", ())) == 3]


def artifacts(laboratory: Project, run_id: str, path: str) -> Mapping[str, Any]:
    """A folder of a run's artifacts."""
    return fetched(f"{laboratory.mlflow}/api/2.0/mlflow/artifacts/list?run_id={run_id}&path={path}")
