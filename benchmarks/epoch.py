"""An epoch of CIFAR-10 by our loop, and by the loop and the `DataLoader` that one would write by hand.

Run `NORMCORE_DATA_DIR=... .venv/bin/python benchmarks/epoch.py`. VGG-11 and ResNet-20 with batch norm, batch 128,
random crops and flips, SGD with momentum. Ours is `normcore.train.train` with loss, accuracy and lr of every step
recorded. The plain loop is what tutorials show: torch modules in torch's own memory format, a `Dataset` that cuts,
mirrors and normalizes one image at a time, a `DataLoader` with 0 or 2 workers, `loss.item()` at every step.

The arms take turns within one process, each some steps at a time, in the environment of a worker's trainer, whose
allocator serves all of them; the clock is the wall's, since a `DataLoader`'s workers have cores of their own to use.
Printed are seconds per epoch (390 steps) and, turn by turn, how many times faster ours is.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import describe, summary
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from normcore.data.arrays import Arrays
from normcore.data.cifar10 import Cifar10
from normcore.data.folders import DataFolders
from normcore.data.images import mean_and_std
from normcore.models.vgg import STAGES
from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.train import train
from worker.child import environment
from worker.settings import Settings

BATCH, LR, MOMENTUM, PADDING = 128, 0.1, 0.9, 4
MODELS = {"vgg11": {"kind": "vgg", "depth": 11, "init": "he"}, "resnet20": {"kind": "resnet", "depth": 20}}


def main() -> None:
    """Measure both nets against both loaders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns of each arm")
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn")
    arguments = parser.parse_args()
    made = environment(Settings(device="cpu"), os.environ)
    if made != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], made)
    print(describe())
    folders = DataFolders(Path(os.environ.get("NORMCORE_DATA_DIR", "data")))
    arrays = Cifar10().arrays(folders)
    for name in MODELS:
        print(name)
        arms: dict[str, Callable[[int], int]] = {
            "ours": Ours(name, folders).steps,
            "plain, 0 workers": Plain(name, arrays, workers=0).steps,
            "plain, 2 workers": Plain(name, arrays, workers=2).steps,
        }
        measure(arms, arguments.turns, arguments.steps)


def measure(arms: dict[str, Callable[[int], int]], turns: int, steps: int) -> None:
    """Let the arms take turns; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for name, go in arms.items():
            began = time.perf_counter()
            done = go(steps)
            if turn > 0:
                seconds[name].append((time.perf_counter() - began) / done * (50_000 // BATCH))
    for name, values in seconds.items():
        print(f"  {name + ', s per epoch:':34}{summary(values)}")
    for name in list(arms)[1:]:
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"], strict=True)]
        print(f"  {'ours over ' + name + ', in speed:':34}{summary(ratios)}")


class Ours:
    """The laboratory's loop."""

    def __init__(self, name: str, folders: DataFolders) -> None:
        job = {
            "model": MODELS[name],
            "data": {"kind": "cifar10", "crop_padding": PADDING, "flip": True},
            "optimizer": {"kind": "sgd", "lr": LR, "momentum": MOMENTUM},
            "batch_size": BATCH,
            "steps": 100_000_000,
            "evaluate_every": 100_000_000,
            "checkpoint_every": 100_000_000,
        }
        self._records = train(JobSpec.model_validate(job), folders=folders)
        self._done = 0

    def steps(self, count: int) -> int:
        """Go on for at least so many steps, to the record after; how many they were."""
        before = self._done
        while self._done < before + count:
            record = next(self._records)
            if isinstance(record, Metrics):
                self._done = record.step
        return self._done - before


class Plain:
    """The loop of a tutorial."""

    def __init__(self, name: str, arrays: Arrays, *, workers: int) -> None:
        torch.manual_seed(0)
        self._model = PlainResNet20() if name == "resnet20" else nn.Sequential(*vgg11())
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=LR, momentum=MOMENTUM)
        self._loader = DataLoader(
            Augmented(arrays), BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        self._batches = self._forever()

    def steps(self, count: int) -> int:
        """Go on for some steps."""
        running_loss = 0.0
        for _ in range(count):
            x, y = next(self._batches)
            self._optimizer.zero_grad()
            loss = functional.cross_entropy(self._model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            running_loss += loss.item()
        return count

    def _forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self._loader


class Augmented(Dataset[tuple[Tensor, int]]):
    """One image at a time: a random crop after padding, a mirror, channels normalized."""

    def __init__(self, arrays: Arrays) -> None:
        self._images, self._labels = torch.from_numpy(arrays.train_inputs), arrays.train_labels.tolist()
        self._mean, self._std = (s.float().view(3, 1, 1) for s in mean_and_std(self._images))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = functional.pad(self._images[index], (PADDING,) * 4)
        top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self._mean) / self._std, self._labels[index]


def vgg11() -> Iterator[nn.Module]:
    """The layers of VGG-11."""
    channels = 3
    for stage in STAGES[11]:
        for after in stage:
            yield from (nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            channels = after
        yield nn.MaxPool2d(2)
    yield from (nn.Flatten(), nn.Linear(channels, 10))


class PlainBlock(nn.Module):
    """Two convolutions and a shortcut of zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, activated."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return functional.relu(x + y)


class PlainResNet20(nn.Sequential):
    """ResNet-20."""

    def __init__(self) -> None:
        blocks = [
            PlainBlock(a, b) for a, b in ((16, 16),) * 3 + ((16, 32), (32, 32), (32, 32), (32, 64)) + ((64, 64),) * 2
        ]
        stem = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


if __name__ == "__main__":
    main()
