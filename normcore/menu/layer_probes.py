"""Probes that look at a model layer by layer."""

from __future__ import annotations

from typing import ClassVar, Literal

from normcore.menu.probe import RecurringProbeSpec


class TrainEvalGapProbeSpec(RecurringProbeSpec):
    """How differently each layer with running statistics evaluates from how it trains, on the training batch."""

    kind: Literal["train_eval_gap"] = "train_eval_gap"
    target: ClassVar[str] = "normcore.probes.train_eval_gap:TrainEvalGapProbe"
    figure: ClassVar[str] = "normcore.probes.train_eval_gap_figure:draw"
    over_devices: ClassVar[bool] = False
