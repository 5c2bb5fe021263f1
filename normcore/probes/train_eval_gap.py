"""The gap between training and evaluation of layers with running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan
from typing import ClassVar

from torch import nn

from normcore.probes.moment import Moment
from normcore.probes.probe import Sees
from normcore.records import Reading
from normcore.statistics.gap import train_eval_gap
from normcore.statistics.layers import has_running_statistics

GAPS = ("output", "mean", "spread")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEvalGapProbe:
    """How differently each layer would do in evaluation what it does in training, on the training batch.

    Of every layer that evaluates with running statistics, `normcore.statistics.gap.train_eval_gap` gives three relative
    differences: `output`, of its output; `mean`, of the batch's mean from the running one, in standard deviations; and
    `spread`, of the batch's variance, or what else the layer divides by. The arrays hold a value per layer, in the
    order of `model.named_modules()`; NaN where a layer keeps no such statistic or is not reached. The scalars
    `output_max`, `mean_max` and `spread_max` are the largest finite values; a model without such layers has none.

    The running statistics are those that an evaluation right now would use: moving averages that this very batch has
    already moved once, or with `estimator` paper and population statistics that were gathered for the purpose.

    Costs a forward pass, another through the layers in question, sums in float64 (together about 1.2 training steps on
    a VGG-11), and a copy of the parameters.

    Example:
        >>> import torch
        >>> from normcore.probes.look import look
        >>> model, x = nn.Sequential(nn.BatchNorm1d(1)), torch.tensor([[2.0], [4.0]])
        >>> look(TrainEvalGapProbe(), model, lambda: model(x).sum(), lr=0.1).scalars
        {'output_max': 3.0, 'mean_max': 3.0, 'spread_max': 1.0}
    """

    kind: ClassVar[str] = "train_eval_gap"
    sees: ClassVar[Sees] = "step"
    evaluates: ClassVar[bool] = True

    def read(self, moment: Moment) -> Reading:
        """Measure at a step, between its backward pass and its update."""
        model, replay = moment.model, moment.plain()
        gaps = {gap.layer: gap for gap in train_eval_gap(model, None, infer=lambda _: replay())}
        layers = tuple(path for path, module in model.named_modules() if has_running_statistics(module))
        arrays = {name: tuple(getattr(gaps[path], name) if path in gaps else nan for path in layers) for name in GAPS}
        finite = {name: [value for value in values if isfinite(value)] for name, values in arrays.items()}
        scalars = {f"{name}_max": max(some) for name, some in finite.items() if some}
        return Reading(self.kind, moment.step, scalars, arrays, layers)

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """A forward pass, the layers in question once more, and norms and moments in float64: 1.2 on a VGG-11."""
        return 1.2
