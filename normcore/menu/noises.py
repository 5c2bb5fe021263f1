"""Noise on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from normcore.menu.spec import NonNegative, Spec


class NoNoiseSpec(Spec):
    """No noise."""

    kind: Literal["none"] = "none"
    target: ClassVar[str] = "normcore.noise.none:NoNoise"


class SanturkarNoiseSpec(Spec):
    """Non-stationary noise after every norm (Santurkar et al. 2018, Algorithm 1): drifting means and scales."""

    kind: Literal["santurkar"] = "santurkar"
    mean_range: NonNegative = 0.5
    """n_mu: each step draws a channel's mean shift from U(-n_mu, n_mu)."""
    scale_max: Annotated[float, Field(ge=1, le=1e6)] = 1.25
    """n_sigma: each step draws a channel's scale from U(1, n_sigma)."""
    mean_jitter: NonNegative = 0.1
    """r_mu: each value's shift is drawn from U(mu - r_mu, mu + r_mu)."""
    scale_jitter: NonNegative = 0.1
    """r_sigma: each value's scale is drawn from N(sigma, r_sigma), r_sigma a standard deviation."""
    target: ClassVar[str] = "normcore.noise.santurkar:SanturkarNoise"


NoiseSpec = NoNoiseSpec | SanturkarNoiseSpec
