"""Probes on the menu."""

from __future__ import annotations

from normcore.menu.closing_probes import InterpolationProbeSpec, LrRangeProbeSpec, PlaneProbeSpec
from normcore.menu.layer_probes import (
    ActivationsProbeSpec,
    CovariateShiftProbeSpec,
    GradientsProbeSpec,
    NormHealthProbeSpec,
    TrainEvalGapProbeSpec,
)
from normcore.menu.smoothness_probes import CurvatureProbeSpec, LandscapeProbeSpec

ProbeSpec = (
    LandscapeProbeSpec
    | TrainEvalGapProbeSpec
    | CovariateShiftProbeSpec
    | NormHealthProbeSpec
    | ActivationsProbeSpec
    | GradientsProbeSpec
    | CurvatureProbeSpec
    | LrRangeProbeSpec
    | PlaneProbeSpec
    | InterpolationProbeSpec
)
