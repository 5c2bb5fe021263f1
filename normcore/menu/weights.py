"""Weight methods on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from normcore.menu.spec import Eps, Spec


class NoWeightSpec(Spec):
    """Weights as they are: no reparametrization."""

    kind: Literal["none"] = "none"
    target: ClassVar[str] = "normcore.weights.none:apply"


class StandardizedWeightSpec(Spec):
    """Weight standardization (Qiao et al. 2019): each output unit's weights by their mean and deviation."""

    kind: Literal["standardized"] = "standardized"
    convention: Literal["qiao", "timm"] = "qiao"
    """qiao: unbiased deviation, 1e-5 added to it; timm: biased variance, 1e-6 added inside the root."""
    target: ClassVar[str] = "normcore.weights.standardized:apply"


class ScaledWeightSpec(Spec):
    """Scaled weight standardization (Brock et al. 2021): keeps the variance of signals in nets without norms."""

    kind: Literal["scaled"] = "scaled"
    eps: Eps = 1e-4
    """Floor of the variance times the number of a unit's weights."""
    target: ClassVar[str] = "normcore.weights.scaled:apply"


class WeightNormSpec(Spec):
    """Weight norm (Salimans & Kingma 2016): length and direction of each output unit's weights, learned apart."""

    kind: Literal["weight_norm"] = "weight_norm"
    data_dependent_init: bool = False
    """Choose lengths and biases so that each unit starts with mean zero and variance one on the first batch."""
    target: ClassVar[str] = "normcore.weights.weight_norm:apply"


class SpectralNormSpec(Spec):
    """Spectral norm (Miyato et al. 2018): each layer's weights by their largest singular value."""

    kind: Literal["spectral"] = "spectral"
    iterations: Annotated[int, Field(ge=1, le=1000)] = 1
    """Power iterations after each update."""
    eps: Annotated[float, Field(gt=0, le=1e-3)] = 1e-12
    """Shortest length that a singular vector is divided by; above a layer's largest singular value it shrinks it."""
    target: ClassVar[str] = "normcore.weights.spectral:apply"


class FixupSpec(Spec):
    """Fixup (Zhang et al. 2019): no norm, but branches that start at zero, scaled weights and scalar biases."""

    kind: Literal["fixup"] = "fixup"
    target: ClassVar[str] = "normcore.weights.fixup:apply"


WeightSpec = NoWeightSpec | StandardizedWeightSpec | ScaledWeightSpec | WeightNormSpec | SpectralNormSpec | FixupSpec
