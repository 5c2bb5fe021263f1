"""Optimizers on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.spec import Eps, Lr, NonNegative, Spec

Momentum = Annotated[float, Field(ge=0, lt=1)]
Longest = Annotated[float, Field(gt=0, le=1e6)] | None

DecayNormParameters = Annotated[
    bool,
    Field(
        description="Let weight decay shrink the scales and shifts of norms and the gains of weight methods too.",
    ),
]
AdaptiveClipping = Annotated[
    Longest,
    Field(
        description="Longest gradient of an output unit, as a multiple of its weights' length (Brock et al. 2021): "
        "none, or the\npaper's 0.01. The classifier is not clipped."
    ),
]
ClipNorm = Annotated[
    Longest,
    Field(
        description="Longest gradient of all parameters together: none, or a length. "
        "After adaptive_clipping, where both are set."
    ),
]


class SgdSpec(Spec):
    """Stochastic gradient descent with momentum; weight decay leaves norm parameters alone unless asked."""

    kind: Literal["sgd"] = "sgd"
    lr: Lr = 0.1
    momentum: Momentum = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    decay_norm_parameters: DecayNormParameters = False
    adaptive_clipping: AdaptiveClipping = None
    clip_norm: ClipNorm = None
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
    decay_norm_parameters: DecayNormParameters = False
    adaptive_clipping: AdaptiveClipping = None
    clip_norm: ClipNorm = None
    target: ClassVar[str] = "normcore.optimizers.adamw:build"


class MuonSpec(Spec):
    """Momentum made orthogonal for matrices between hidden layers (Jordan et al. 2024), AdamW for everything else."""

    kind: Literal["muon"] = "muon"
    lr: Lr = 0.02
    """Of the matrices."""
    momentum: Momentum = 0.95
    nesterov: bool = True
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """What a matrix's shape makes of lr: times sqrt(max(1, rows / columns)), or times 0.2 sqrt(max(rows, columns)),
    which suits an lr tuned for AdamW."""
    adamw_lr: Lr = 1e-3
    """Of all other parameters; both follow the schedule."""
    weight_decay: NonNegative = 0.01
    decay_norm_parameters: DecayNormParameters = False
    adaptive_clipping: AdaptiveClipping = None
    clip_norm: ClipNorm = None
    target: ClassVar[str] = "normcore.optimizers.muon:build"

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0; set momentum, or nesterov to false")
        return self


OptimizerSpec = SgdSpec | AdamWSpec | MuonSpec
