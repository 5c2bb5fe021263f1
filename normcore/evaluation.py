"""Loss and accuracy on the test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.data.dataset import Resident

BATCH = 256
"""Test images in a batch; their number changes no result but by rounding."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model does on the test set."""

    loss: float
    """Mean cross entropy."""
    accuracy: float
    """Share of images whose largest logit is that of their class."""


def evaluate(model: nn.Module, infer: Callable[[Tensor], Tensor], data: Resident) -> Evaluation:
    """Evaluate in evaluation mode, and leave the model in training mode.

    Args:
        model: The model.
        infer: Its logits for images, in float32 or better.
        data: Its test set counts.
    """
    model.eval()
    losses, correct = [], []
    with torch.no_grad():
        for images, labels in data.test_batches(BATCH):
            logits = infer(images)
            losses.append(functional.cross_entropy(logits, labels, reduction="sum").double())
            correct.append((logits.argmax(1) == labels).sum())
    model.train()
    return Evaluation(
        loss=torch.stack(losses).sum().item() / data.num_test,
        accuracy=torch.stack(correct).sum().item() / data.num_test,
    )
