"""What the tests of surgery share."""

import pytest
import torch
from torch import Tensor, nn

from tests.normcore.surgery.nets import Net, lived


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return lived(Net(), 8, 3, 8, 8)
