"""A laboratory is backed up while it trains, lost with its volumes and passwords, and restored: nothing is missing."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

from engine.project import ROOT, Project, TrialFailed, fetched

JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 12000, "checkpoint_every": 500,
       "record_every": 20, "evaluate_every": 1000, "deterministic": True, "seed": 1,
       "probes": [{"kind": "landscape", "every": 4000, "points": 2}]}  # fmt: skip


def run(laboratory: Project) -> None:
    """One job is done and one is under way; afterwards the one is as it was, and the other ends as the one did."""
    backup = Path("backups") / laboratory.name
    shutil.rmtree(ROOT / backup, ignore_errors=True)
    done = laboratory.order(JOB, trial="done before the backup")
    expected = laboratory.finished(done)
    job, files = laboratory.job(done), artifacts(laboratory, done)
    under_way = laboratory.order(JOB, trial="under way at the backup")
    laboratory.under_way(under_way, 1000)
    try:
        start = time.monotonic()
        laboratory.script("backup", laboratory.name)
        print(f"  backup of a laboratory that trains: {time.monotonic() - start:.0f} s, {size(ROOT / backup)} bytes")
        if laboratory.job(under_way)["state"] != "running":
            raise TrialFailed("the training was to be under way all the time of the backup, and had ended")
        refused(laboratory, backup, "has a database or files already")
        refused(laboratory, damaged(ROOT / backup), "nothing is restored: state.tar must hold", OVERWRITE="yes")

        laboratory.down("--volumes")
        (laboratory.folder / ".env").unlink()
        subprocess.run([laboratory.folder / "docker" / "make-env"], capture_output=True, check=True)
        start = time.monotonic()
        laboratory.script("restore", str(backup))
        print(f"  restore with other passwords, until all is healthy: {time.monotonic() - start:.0f} s")
    finally:
        for folder in (ROOT / backup, ROOT / f"{backup}.damaged"):
            shutil.rmtree(folder, ignore_errors=True)

    laboratory.finished(done).must_be(expected)
    if laboratory.job(done) != job:
        raise TrialFailed(f"the job that was done must be what it was, {job}, got {laboratory.job(done)}")
    if artifacts(laboratory, done) != files:
        raise TrialFailed("the artifacts of the job that was done must be what they were, and differ")
    outcome = laboratory.finished(under_way)
    outcome.must_be(expected)
    first, last = laboratory.job(under_way)["attempts"]
    if first["outcome"] != "released" or not last["resumed_from"]:
        raise TrialFailed(f"the job under way must go on from a checkpoint, uncharged, got {first} and {last}")
    print(f"  {len(files)} artifacts as they were; the other training went on from step {last['resumed_from']}")


def refused(laboratory: Project, backup: Path, why: str, **environment: str) -> None:
    """A restore that must not happen, and change nothing."""
    containers = laboratory.containers()
    try:
        laboratory.script("restore", str(backup), **environment)
    except TrialFailed as refusal:
        if why in str(refusal) and laboratory.containers() == containers:
            return
        raise
    raise TrialFailed(f"a restore must be refused because: {why}")


def damaged(backup: Path) -> Path:
    """A copy of a backup with one bit another."""
    copy = backup.with_name(f"{backup.name}.damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(backup, copy)
    with (copy / "state.tar").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    return copy


def artifacts(laboratory: Project, job_id: str, folder: str = "") -> dict[str, str]:
    """The sha256 of every artifact of a job's run, as MLflow hands it out."""
    run_id = laboratory.job(job_id)["links"]["mlflow"].split("/runs/")[1].split("?")[0]
    listed = fetched(
        f"{laboratory.mlflow}/api/2.0/mlflow/artifacts/list?run_id={run_id}&path={urllib.parse.quote(folder)}"
    )
    found: dict[str, str] = {}
    for item in listed.get("files", ()):
        if item["is_dir"]:
            found |= artifacts(laboratory, job_id, item["path"])
            continue
        address = f"{laboratory.mlflow}/get-artifact?run_uuid={run_id}&path={urllib.parse.quote(item['path'])}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            found[item["path"]] = hashlib.sha256(answer.read()).hexdigest()
    return found


def size(folder: Path) -> int:
    """The bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())
