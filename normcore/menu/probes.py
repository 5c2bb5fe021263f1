"""Probes on the menu."""

from __future__ import annotations

from normcore.menu.closing_probes import InterpolationProbeSpec, LrRangeProbeSpec, PlaneProbeSpec
from normcore.menu.layer_probes import CovariateShiftProbeSpec, NormHealthProbeSpec, TrainEvalGapProbeSpec
from normcore.menu.smoothness_probes import CurvatureProbeSpec, LandscapeProbeSpec

ProbeSpec = (
    LandscapeProbeSpec
    | TrainEvalGapProbeSpec
    | CovariateShiftProbeSpec
    | NormHealthProbeSpec
    | CurvatureProbeSpec
    | LrRangeProbeSpec
    | PlaneProbeSpec
    | InterpolationProbeSpec
)
