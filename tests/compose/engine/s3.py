"""Artifacts in a bucket: checkpoints and figures stand in it, come through MLflow, and a lost job goes on from one."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import moto

from engine.project import Project, TrialFailed, until

JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 20_000, "checkpoint_every": 1000,
       "record_every": 50, "evaluate_every": 1000, "deterministic": True, "seed": 1,
       "probes": [{"kind": "landscape", "every": 5000, "points": 2}]}  # fmt: skip
BUCKET = {
    "NORMCORE_MLFLOW_ARTIFACTS": "s3://normcore/laboratory",
    "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000",
    "AWS_ACCESS_KEY_ID": "trial",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# Run where MLflow runs, with what it was given.
IN_BUCKET = """
import boto3, json, os, sys
s3 = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
if sys.argv[1:] == ["make"]:
    s3.create_bucket(Bucket="normcore")
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="normcore")
print(json.dumps({item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}))
"""
FORGET = "import shutil, sys; shutil.rmtree(f'/var/lib/normcore/state/jobs/{sys.argv[1]}')"


def run(laboratory: Project) -> None:
    """The laboratory is set to keep its artifacts in a bucket, is tried, and is set back."""
    moved = replace(
        laboratory,
        files=(*laboratory.files, "tests/compose/engine/s3.yml"),
        environment={**laboratory.environment, **BUCKET, "MOTO": str(Path(moto.__file__).parents[1])},
    )
    try:
        print(f"  up with a bucket: {moved.up():.0f} s")
        in_bucket(moved, "make")
        undisturbed = moved.order(JOB, trial="bucket")
        expected = moved.finished(undisturbed)
        stands_in_the_bucket_and_comes_through_mlflow(moved, undisturbed)

        job = moved.order(JOB, trial="worker lost with its disk")
        moved.under_way(job, 1000)
        until(lambda: checkpoints(in_bucket(moved), run_id(moved, job)), "the bucket has a checkpoint of the job")
        moved.kill("worker")
        moved.compose("exec", "-T", "api", "python", "-c", FORGET, job)
        moved.compose("start", "worker")
        outcome = moved.finished(job)
        outcome.must_be(expected)
        resumed = moved.job(job)["attempts"][-1]["resumed_from"]
        if outcome.attempts != 2 or not resumed:
            raise TrialFailed(
                f"the second attempt must go on from a checkpoint, got {outcome.attempts}, from {resumed}"
            )
        print(f"  a worker lost with its disk: the second attempt went on from step {resumed} out of the bucket")
    finally:
        laboratory.up("--remove-orphans")


def stands_in_the_bucket_and_comes_through_mlflow(laboratory: Project, job: str) -> None:
    """Every artifact that MLflow shows of the job is in the bucket, and one of each kind is fetched.

    Raises:
        TrialFailed: if one is missing, or comes back with other bytes.
    """
    run = run_id(laboratory, job)
    until(
        lambda: f"{run}/artifacts/figures/" in " ".join(in_bucket(laboratory)), "the bucket has the figures of the job"
    )
    held = {key.partition(f"{run}/artifacts/")[2]: size for key, size in in_bucket(laboratory).items() if run in key}
    for folder in ("checkpoints", "figures"):
        if not any(key.startswith(folder) for key in held):
            raise TrialFailed(f"the bucket must hold {folder} of the job, got {sorted(held)}")
    weights = max(key for key in held if key.endswith("model.safetensors"))
    figure = next(key for key in held if key.startswith("figures/"))
    for path in (weights, figure):
        url = f"{laboratory.mlflow}/get-artifact?run_id={run}&path={urllib.request.quote(path)}"  # type: ignore[attr-defined]
        with urllib.request.urlopen(url, timeout=60) as answer:
            got = answer.read()
        if len(got) != held[path]:
            raise TrialFailed(f"{path} must come through MLflow as it is, {held[path]} bytes, got {len(got)}")
        print(f"  {path}: {len(got)} bytes through MLflow, sha256 {hashlib.sha256(got).hexdigest()[:12]}")
    print(f"  {len(held)} artifacts of the job in the bucket")


def in_bucket(laboratory: Project, *arguments: str) -> Mapping[str, int]:
    """The keys in the bucket and their sizes."""
    found: dict[str, int] = json.loads(
        laboratory.compose("exec", "-T", "mlflow", "python", "-c", IN_BUCKET, *arguments)
    )
    return found


def checkpoints(keys: Mapping[str, int], run: str) -> list[str]:
    """Those that are whole: the file that vouches for the others comes last."""
    return [key for key in keys if run in key and key.endswith("state.json")]


def run_id(laboratory: Project, job: str) -> str:
    """The job's run in MLflow."""
    return str(laboratory.job(job)["links"]["mlflow"]).partition("/runs/")[2].partition("?")[0]
