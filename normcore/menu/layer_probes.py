"""Probes that look at a model layer by layer."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from normcore.menu.probe import RecurringProbeSpec

MAX_LAYERS = 1000
"""Layers that a probe may be asked for."""


class TrainEvalGapProbeSpec(RecurringProbeSpec):
    """How differently each layer with running statistics evaluates from how it trains, on the training batch."""

    kind: Literal["train_eval_gap"] = "train_eval_gap"
    target: ClassVar[str] = "normcore.probes.train_eval_gap:TrainEvalGapProbe"
    figure: ClassVar[str] = "normcore.probes.train_eval_gap_figure:draw"
    over_devices: ClassVar[bool] = False


def _some_layers(given: Any) -> Any:
    """What is neither of the three is refused in one sentence, and not in one for each of them."""
    count = isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= MAX_LAYERS
    paths = isinstance(given, list | tuple) and all(isinstance(path, str) for path in given)
    if not (count or given == "all" or (paths and 1 <= len(given) <= MAX_LAYERS)):
        raise ValueError(
            f"layers must be a number from 1 to {MAX_LAYERS:,}, all, or a list of as many module paths, got "
            f"{json.dumps(given, default=repr)[:60]}"
        )
    return tuple(given) if paths else given


class CovariateShiftProbeSpec(RecurringProbeSpec):
    """How the update of all layers before it changes a layer's gradient: internal covariate shift (Santurkar et al.
    2018, definition 2.1).
    """

    kind: Literal["covariate_shift"] = "covariate_shift"
    layers: Annotated[int | Literal["all"] | tuple[str, ...], BeforeValidator(_some_layers)] = 5
    """How many layers with weights, evenly spread over the depth; or all; or the module paths of some."""
    precision: Literal["training", "float64"] = "training"
    """What is computed in: as the training does, or in float64, where small shifts do not drown in rounding."""
    target: ClassVar[str] = "normcore.probes.covariate_shift:CovariateShiftProbe"
    figure: ClassVar[str] = "normcore.probes.covariate_shift_figure:draw"


class NormHealthProbeSpec(RecurringProbeSpec):
    """What each norm has learned (gamma, beta, tau, ...), how far it is from evaluation, and where eps decides."""

    kind: Literal["norm_health"] = "norm_health"
    target: ClassVar[str] = "normcore.probes.norm_health:NormHealthProbe"
    figure: ClassVar[str] = "normcore.probes.norm_health_figure:draw"
    over_devices: ClassVar[bool] = False


class ActivationsProbeSpec(RecurringProbeSpec):
    """What non-linearities are given, layer by layer: moments, percentiles, dead and saturated shares, correlation."""

    kind: Literal["activations"] = "activations"
    target: ClassVar[str] = "normcore.probes.activations:ActivationsProbe"
    figure: ClassVar[str] = "normcore.probes.activations_figure:draw"


class GradientsProbeSpec(RecurringProbeSpec):
    """Sizes of gradients and updates layer by layer, noise scale, and cosine with the next step's gradient."""

    kind: Literal["gradients"] = "gradients"
    batches: Annotated[int, Field(ge=2, le=64)] = 4
    """Consecutive batches that the gradient noise scale is estimated from."""
    target: ClassVar[str] = "normcore.probes.gradients:GradientsProbe"
    figure: ClassVar[str] = "normcore.probes.gradients_figure:draw"
    copies: ClassVar[int] = 5
