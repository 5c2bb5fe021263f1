"""What the probes see of batch norm, of noisy batch norm, and of no norm: trains all three and draws `docs/figures/`.

Run `make figures`, or `.venv/bin/python docs/figures.py`: a VGG-11 of quarter width learns CIFAR-10, which is read from
`NORMCORE_DATA_DIR` or fetched from the hub, as in `ARMS` and `JOB` below; some ten minutes on one core, and one thread,
so that the numbers are the same again on the same machine. The readings are kept beside the figures, a file per probe
and training; `--redraw` draws them again without training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from normcore.data.folders import DataFolders
from normcore.probes.archive import pack, unpack
from normcore.probes.sheet import THEMES
from normcore.records import Metrics, Reading, Record, Remark
from normcore.spec import MENU, JobSpec, kind_of
from normcore.train import train
from worker.child import environment
from worker.settings import Settings

FOLDER = Path(__file__).with_suffix("")

ARMS: dict[str, dict[str, Any]] = {
    "no norm": {"norm": {"kind": "none"}},
    "batch norm": {"norm": {"kind": "batch"}},
    "batch norm + noise": {"norm": {"kind": "batch"}, "noise": {"kind": "santurkar"}},
}
PROBES: tuple[dict[str, Any], ...] = (
    {"kind": "landscape", "every": 20, "preset": "vgg"},
    {"kind": "covariate_shift", "every": 20},
    {"kind": "activations", "every": 20},
    {"kind": "gradients", "every": 20},
)
JOB: dict[str, Any] = {
    "model": {"kind": "vgg", "depth": 11, "width": 0.25},
    "data": {"kind": "cifar10"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "batch_size": 128,
    "steps": 300,
    "seed": 0,
    "deterministic": True,
    "evaluate_every": 300,
    "probes": PROBES,
}


def main() -> None:
    """Train, unless told to redraw; draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="draw the readings that are there, without training")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where readings and figures lie")
    parser.add_argument("--change", type=json.loads, default={}, help="fields of the job to try with, as JSON")
    arguments = parser.parse_args()
    if not arguments.redraw:
        become_a_trainer()
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for arm, differs in ARMS.items():
            keep(arguments.folder, arm, JobSpec.model_validate(JOB | differs | arguments.change))
    draw(arguments.folder)


def become_a_trainer() -> None:
    """Start this script anew in the environment that a worker gives its trainer, on one thread of the CPU."""
    made = environment(Settings(device="cpu", threads=1), os.environ)
    if made != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], made)  # noqa: S606
    torch.set_num_threads(1)


def keep(folder: Path, arm: str, spec: JobSpec) -> None:
    """Train an arm, write down what its probes saw, and print where it came to."""
    settings = Settings()
    folders = DataFolders(settings.data_dir, settings.state_dir / "cache", hub=settings.hub)
    records = list(said(arm, train(spec, folders=folders)))
    for probe in spec.probes:
        readings = [each for each in records if isinstance(each, Reading) and each.probe == probe.kind]
        file(folder, probe.kind, arm).write_bytes(pack(readings))


def said(arm: str, records: Iterator[Record]) -> Iterator[Record]:
    """The records of a training, whose remarks and last values are printed in passing."""
    last: dict[str, float] = {}
    for record in records:
        if isinstance(record, Remark):
            print(f"{arm}: step {record.step}: {record.detail}", flush=True)
        if isinstance(record, Metrics):
            last |= {point.key: point.value for point in record.points}
        yield record
    shown = {key: value for key, value in last.items() if key.startswith(("train/", "test/", "time/", "probe/"))}
    print(f"{arm}: " + ", ".join(f"{key} {value:.4g}" for key, value in shown.items()), flush=True)


def draw(folder: Path) -> None:
    """Draw the figure of every probe whose readings are kept, in light and dark."""
    for part in MENU["probes"]:
        kind = kind_of(part)
        kept = {arm: file(folder, kind, arm) for arm in ARMS if file(folder, kind, arm).exists()}
        arms = {arm: unpack(path.read_bytes()) for arm, path in kept.items()}
        if arms:
            for theme, suffix in (("light", ""), ("dark", "-dark")):
                png = part.model_construct().drawing()(arms, THEMES[theme])
                # 256 colours are enough, and take a third of the bytes.
                Image.open(BytesIO(png)).quantize(256).save(folder / f"{kind}{suffix}.png", optimize=True)


def file(folder: Path, kind: str, arm: str) -> Path:
    """Where the readings of a probe in one arm are kept."""
    return folder / f"{kind}-{arm.replace(' + ', ' ').replace(' ', '-')}.npz"


if __name__ == "__main__":
    main()
