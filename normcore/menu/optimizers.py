"""Optimizers on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.spec import Eps, Lr, NonNegative, Spec

AdaptiveClipping = Annotated[float, Field(gt=0, le=1e6)] | None


class SgdSpec(Spec):
    """Stochastic gradient descent with momentum; weight decay leaves norm parameters alone unless asked."""

    kind: Literal["sgd"] = "sgd"
    lr: Lr = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    decay_norm_parameters: bool = False
    """Let weight decay shrink the scales and shifts of norms and the gains of weight methods too."""
    adaptive_clipping: AdaptiveClipping = None
    """Longest gradient of an output unit, as a multiple of its weights' length (Brock et al. 2021): none, or the
    paper's 0.01. The classifier is not clipped."""
    target: ClassVar[str] = "normcore.optimizers.sgd:build"

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0; set momentum, or nesterov to false")
        return self


class AdamWSpec(Spec):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: Lr = 1e-3
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Eps = 1e-8
    weight_decay: NonNegative = 0.01
    decay_norm_parameters: bool = False
    """Let weight decay shrink the scales and shifts of norms and the gains of weight methods too."""
    adaptive_clipping: AdaptiveClipping = None
    """Longest gradient of an output unit, as a multiple of its weights' length (Brock et al. 2021): none, or the
    paper's 0.01. The classifier is not clipped."""
    target: ClassVar[str] = "normcore.optimizers.adamw:build"


OptimizerSpec = SgdSpec | AdamWSpec
