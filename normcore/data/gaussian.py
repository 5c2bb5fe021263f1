"""The regression of the paper's deep linear nets."""

from __future__ import annotations

import torch

from normcore.data.arrays import Arrays
from normcore.data.folders import DataFolders
from normcore.seeds import generator


class Gaussian:
    """Targets `y = A x` of standard normal vectors `x`, with one standard normal matrix `A` (Santurkar et al. 2018,
    appendix A).

    A linear net can learn it without error, and its summed loss at the start is about `size^2` for each sample. Drawn
    in float64 from the streams `(data_seed, "gaussian", ...)` and nowhere kept.

    Args:
        size: Numbers in a vector, and in its target.
        num_samples: Training samples, and as many of the test set.
        data_seed: Of the task; jobs with other seeds share it.

    Example:
        >>> arrays = Gaussian(size=2, num_samples=3).arrays(DataFolders())
        >>> arrays.train_inputs.shape, arrays.test_labels.shape
        ((3, 2), (3, 2))
    """

    def __init__(self, *, size: int = 10, num_samples: int = 1000, data_seed: int = 0) -> None:
        self.size, self.num_samples, self.data_seed = size, num_samples, data_seed

    def find(self, folders: DataFolders) -> None:
        """Nothing is needed."""

    def arrays(self, folders: DataFolders) -> Arrays:  # noqa: ARG002 (nothing is read or kept)
        """Vectors and targets in float64."""
        matrix = self._draw("matrix", self.size)
        train, test = self._draw("train", self.num_samples), self._draw("test", self.num_samples)
        return Arrays(train.numpy(), (train @ matrix.T).numpy(), test.numpy(), (test @ matrix.T).numpy())

    def _draw(self, name: str, count: int) -> torch.Tensor:
        stream = generator("cpu", self.data_seed, "gaussian", name)
        return torch.randn(count, self.size, generator=stream, dtype=torch.float64)
