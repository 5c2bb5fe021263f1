"""A synthetic image task that a linear model cannot learn and a small convolutional net can."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normcore.data.arrays import Arrays
from normcore.data.folders import DataFolders
from normcore.seeds import generator

ORIENTATIONS = 4
CELLS = 4
CHUNK = 1000
"""Images that are drawn at a time: memory stays small."""


class Patches:
    """Colour images of four textured quarters; the class is which quarter has stripes of which orientation.

    A class is an arrangement: one of four orientations, 45 degrees apart, in each quarter of the image, so that classes
    share their textures and differ in where they stand. The phase of stripes is uniform, so the mean image is the same
    grey for every class and a linear model stays near chance, while a few layers of filters suffice. What makes it hard
    is in every image and says nothing: stripes of any orientation over the whole of it, noise, quarters that meet
    elsewhere, and random contrast, colour and brightness. Contrasts differ by a factor of eight, which is what norms
    are for: by default a thin VGG-11 learns it in 200 steps with batch norm and not at all without a norm.

    Made from the streams `(data_seed, "patches", ...)` and nowhere kept; 50,000 images of 32x32 take some seconds.

    Args:
        size: Height and width in pixels.
        num_samples: Training images.
        num_test: Test images.
        num_classes: Arrangements, of the 256 that there are; the classes are equally large.
        noise: Standard deviation of the noise in each pixel, where the strongest stripes have an amplitude of 1.
        data_seed: Of the task.

    Example:
        >>> arrays = Patches(size=16, num_samples=6, num_test=4, num_classes=3).arrays(DataFolders())
        >>> arrays.train_inputs.shape, arrays.train_labels.tolist()
        ((6, 3, 16, 16), [0, 1, 2, 0, 1, 2])
    """

    def __init__(
        self,
        *,
        size: int = 32,
        num_samples: int = 10_000,
        num_test: int = 2000,
        num_classes: int = 10,
        noise: float = 1.0,
        data_seed: int = 0,
    ) -> None:
        self.size, self.num_samples, self.num_test = size, num_samples, num_test
        self.num_classes, self.noise, self.data_seed = num_classes, noise, data_seed

    def find(self, folders: DataFolders) -> None:
        """Nothing is needed."""

    def arrays(self, folders: DataFolders) -> Arrays:  # noqa: ARG002 (nothing is read or kept)
        """Images in uint8, `(N, 3, size, size)`, and their classes."""
        train, test = self._set("train", self.num_samples), self._set("test", self.num_test)
        return Arrays(train[0].numpy(), train[1].numpy(), test[0].numpy(), test[1].numpy())

    def arrangements(self) -> Tensor:
        """The orientation of each quarter, 0 to 3, in each class: `(num_classes, 4)`, no two rows the same."""
        stream = generator("cpu", self.data_seed, "patches", "classes")
        chosen = torch.randperm(ORIENTATIONS**CELLS, generator=stream)[: self.num_classes]
        return chosen[:, None] // ORIENTATIONS ** torch.arange(CELLS) % ORIENTATIONS

    def _set(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % self.num_classes
        images = torch.empty(count, 3, self.size, self.size, dtype=torch.uint8)
        for number, (some, classes) in enumerate(
            zip(torch.split(images, CHUNK), torch.split(labels, CHUNK), strict=True)
        ):
            some.copy_(self._draw(classes, generator("cpu", self.data_seed, "patches", name, number)))
        return images, labels

    def _draw(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        count, size = len(labels), self.size

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=stream)

        angles = (self.arrangements()[labels] + uniform(-0.2, 0.2, CELLS)) * (math.pi / ORIENTATIONS)
        quarters = self._quarters(uniform(-size / 8, size / 8, 2))
        textures = uniform(0.3, 1, CELLS).gather(1, quarters) * self._stripes(
            *(knob.gather(1, quarters) for knob in (angles, uniform(4, 6, CELLS), uniform(0, 2 * math.pi, CELLS)))
        )
        clutter = self._stripes(uniform(0, math.pi, 1), uniform(4, 12, 1), uniform(0, 2 * math.pi, 1))
        drawn = (textures + uniform(0, 1, 1) * clutter).view(count, 1, size, size)
        seen = drawn + self.noise * torch.randn(count, 3, size, size, generator=stream)
        contrast = uniform(0.25, 1, 1, 1, 1) * uniform(0.5, 1, 3, 1, 1)
        brightness = uniform(0.3, 0.7, 1, 1, 1)
        return seen.mul_(0.15 * contrast).add_(brightness).clamp_(0, 1).mul_(255).round_()

    def _quarters(self, shifts: Tensor) -> Tensor:
        """The number of the quarter that each pixel lies in: `(N, size * size)`."""
        places = torch.arange(self.size) + 0.5 - self.size / 2
        low, right = (places > shifts[:, 0, None]).long(), (places > shifts[:, 1, None]).long()
        return (2 * low[:, :, None] + right[:, None, :]).flatten(1)

    def _stripes(self, angle: Tensor, period: Tensor, phase: Tensor) -> Tensor:
        """Waves across the image, `(N, size * size)`, of knobs that may differ from pixel to pixel."""
        y, x = (place.flatten().float() for place in torch.meshgrid(*[torch.arange(self.size)] * 2, indexing="ij"))
        return torch.sin((x * angle.cos() + y * angle.sin()) * (2 * math.pi / period) + phase)
