"""`make gpus` on what `nvidia-smi -L` says of machines with whole GPUs, divided ones, and none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The second is divided (MIG), as NVIDIA's user guide of it shows the list.
THREE_GPUS = """\
GPU 0: NVIDIA H200 (UUID: GPU-1f2a0001-aaaa-bbbb-cccc-000000000001)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1f2a0002-aaaa-bbbb-cccc-000000000002)
  MIG 3g.20gb     Device  0: (UUID: MIG-1f2a0003-aaaa-bbbb-cccc-000000000003)
  MIG 3g.20gb     Device  1: (UUID: MIG-1f2a0004-aaaa-bbbb-cccc-000000000004)
GPU 2: NVIDIA H200 (UUID: GPU-1f2a0005-aaaa-bbbb-cccc-000000000005)
"""
UUIDS = [
    "GPU-1f2a0001-aaaa-bbbb-cccc-000000000001",
    "MIG-1f2a0003-aaaa-bbbb-cccc-000000000003",
    "MIG-1f2a0004-aaaa-bbbb-cccc-000000000004",
    "GPU-1f2a0005-aaaa-bbbb-cccc-000000000005",
]


def test_each_gpu_and_each_part_of_a_divided_one_has_a_worker(tmp_path: Path) -> None:
    done = make_gpus(tmp_path, f"cat <<'END'\n{THREE_GPUS}END\n")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "docker-compose.gpus.yml").read_text()
    assert [line.split("[")[1].split("]")[0] for line in written.splitlines() if "device_ids" in line] == UUIDS
    assert "COMPOSE_FILE=docker-compose.yml:docker-compose.gpus.yml\nCOMPOSE_PROFILES=gpu\nCPU_WORKERS=0" in done.stdout
    assert "docker-compose.gpus.yml" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("nvidia_smi", "found"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.' >&2; exit 9",
            "has failed",
        ),
        ("echo 'No devices found.'", "No devices found."),
    ],
)
def test_a_machine_without_a_gpu_is_told_what_is_missing(tmp_path: Path, nvidia_smi: str, found: str) -> None:
    done = make_gpus(tmp_path, nvidia_smi)
    assert done.returncode == 1
    assert "make-gpus: nvidia-smi -L must list" in done.stderr
    assert found in done.stderr
    assert not (tmp_path / "docker-compose.gpus.yml").exists()


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="needs docker compose, without an engine",
)
@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.worker.yml"])
def test_compose_takes_what_was_written(tmp_path: Path, file: str) -> None:
    shutil.copy(ROOT / file, tmp_path)
    lines = make_gpus(tmp_path, f"cat <<'END'\n{THREE_GPUS}END\n", file).stdout.splitlines()[-3:]
    asked = [f"{name}=x" for name in re.findall(r"\$\{([A-Z_]+):\?", (ROOT / file).read_text())]
    (tmp_path / ".env").write_text("\n".join([*asked, "NORMCORE_SLOTS=2", *lines, ""]))
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    workers = [services.pop(f"worker-gpu-{number}") for number in range(4)]
    assert "worker-gpu" not in services
    assert services["worker"]["scale"] == 0
    for worker, uuid in zip(workers, UUIDS, strict=True):
        devices = worker["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "device_ids": [uuid], "capabilities": ["gpu"]}]
        assert worker["environment"]["NORMCORE_DEVICE"] == "cuda"
        assert worker["image"] == "normcore:0.1.0-cuda"
        assert worker["scale"] == 2
        assert worker["read_only"] is True
    assert ["build" in worker for worker in workers] == [True, False, False, False]


def make_gpus(folder: Path, nvidia_smi: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder, where `nvidia-smi` does as is said."""
    (folder / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "make-gpus", folder / "docker")
    smi = folder / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\n[ "$*" = -L ] || exit 64\n{nvidia_smi}\n')
    smi.chmod(0o755)
    return subprocess.run(
        [folder / "docker" / "make-gpus", *arguments],
        env={"PATH": os.environ["PATH"], "NVIDIA_SMI": str(smi)},
        capture_output=True,
        text=True,
        check=False,
    )
