"""Loss and accuracy on samples that are not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

import torch
from torch.nn import functional

from normcore.data.batch import Batch
from normcore.learner import Learner
from normcore.objective import hits, squared_error
from normcore.records import Point

BATCH = 256
"""Samples in a batch; their number changes no result but by rounding."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model does on a set."""

    loss: float
    """Mean cross entropy, or the squared error summed over the set."""
    accuracy: float | None
    """Share of samples whose largest output is that of their class; none in a regression."""

    def points(self, step: int, which: str, suffix: str = "") -> tuple[Point, ...]:
        """As points of curves.

        Example:
            >>> [point.key for point in Evaluation(0.5, 0.75).points(3, "test", "_recomputed")]
            ['test/loss_recomputed', 'test/accuracy_recomputed']
        """
        loss = Point(f"{which}/loss{suffix}", step, self.loss)
        return (loss,) if self.accuracy is None else (loss, Point(f"{which}/accuracy{suffix}", step, self.accuracy))


def evaluate(learner: Learner, batches: Iterable[Batch]) -> Evaluation:
    """Evaluate in evaluation mode, and leave the model in training mode. Of several ranks the first does it for all.

    Args:
        learner: Its model, and how it infers.
        batches: The whole set, in batches.
    """
    mine = _evaluate(learner, batches) if learner.ranks.rank == 0 else Evaluation(nan, nan)
    loss, accuracy = learner.ranks.agree(mine.loss, nan if mine.accuracy is None else mine.accuracy)
    return Evaluation(loss, accuracy if learner.classifies else None)


def _evaluate(learner: Learner, batches: Iterable[Batch]) -> Evaluation:
    learner.model.eval()
    losses, correct, count = [], [], 0
    with torch.no_grad():
        for batch in batches:
            outputs, labels = learner.infer(batch), batch.labels
            count += len(labels)
            if learner.classifies:
                losses.append(functional.cross_entropy(outputs, labels, reduction="sum").double())
                correct.append(hits(outputs, labels).sum())
            else:
                losses.append(squared_error(outputs, labels).double())
    learner.model.train()
    loss = torch.stack(losses).sum().item()
    if not learner.classifies:
        return Evaluation(loss, None)
    return Evaluation(loss / count, torch.stack(correct).sum().item() / count)
