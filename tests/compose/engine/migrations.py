"""Every step of the schema, forward and back on full tables, on the Postgres that compose brings."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time

from engine.project import ROOT, Project, TrialFailed

TESTS = ("tests/worker/test_migrations_populated.py", "tests/worker/test_migrate.py")
WAIT = "until pg_isready -h 127.0.0.1 -U postgres; do sleep 0.2; done"


def run(laboratory: Project) -> None:
    """The tests of the migrations, against a container of the laboratory's image that is published here alone."""
    image = docker("inspect", "--format", "{{.Config.Image}}", *laboratory.containers("postgres"))
    name, password = f"{laboratory.name}-migrations", secrets.token_hex()
    variables = {**os.environ, "POSTGRES_PASSWORD": password}
    options = ["--detach", "--rm", "--name", name, "--publish", "127.0.0.1::5432", "--env", "POSTGRES_PASSWORD"]
    subprocess.run(["docker", "run", *options, image], capture_output=True, check=True, env=variables)
    try:
        docker("exec", name, "sh", "-c", WAIT)
        address = docker("port", name, "5432")
        url = {"NORMCORE_TEST_DATABASE_URL": f"postgresql+psycopg://postgres:{password}@{address}/postgres"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "postgres", *TESTS]
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | url)
        if done.returncode != 0:
            raise TrialFailed(f"the migrations must hold on {image}, got\n{done.stdout[-4000:]}")
        print(f"  {done.stdout.strip().splitlines()[-1]} on {image}, {time.monotonic() - start:.0f} s")
    finally:
        docker("rm", "--force", name)


def docker(*arguments: str) -> str:
    """Run a command of the engine; what it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()
