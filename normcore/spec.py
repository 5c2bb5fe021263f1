"""The menu: what a user may ask for, as frozen, strict, torch-free pydantic specs.

One class per part, joined in unions by `kind`; `JobSpec` composes them. Defaults and bounds live here and nowhere else.
A spec describes and a part is built: `target` names the class that a spec builds, so this module never imports torch
and the door and the command line start in about a second.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

MAX_PARAMETERS = 500_000_000
"""A model with more parameters than this is refused by the preview."""

MAX_STEPS = 100_000_000

Eps = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Lr = Annotated[float, Field(gt=0, le=1e6)]
Multiple = Annotated[float, Field(gt=0, le=1e30)]
Activation = Literal["relu", "sigmoid", "tanh"]
Init = Literal["glorot", "he"]
NormPlacement = Literal["before", "after"]


class Spec(BaseModel):
    """A frozen description of a part. Unknown fields, wrong types, infinities and NaN are refused, never swallowed.

    Example:
        >>> BatchNormSpec(eps=1e-3).model_dump()
        {'kind': 'batch', 'eps': 0.001, 'momentum': 0.1, 'affine': True}
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    target: ClassVar[str] = ""
    """`module:Class` that this spec builds."""

    def knobs(self) -> dict[str, Any]:
        """The fields that the part takes as keyword arguments: everything but `kind`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}

    def part(self) -> Any:
        """The class that `target` names, imported when asked for (most parts bring torch)."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


# --- norms ---------------------------------------------------------------------------------------------------------


class NoNormSpec(Spec):
    """No normalization: the identity, the control arm of every comparison."""

    kind: Literal["none"] = "none"
    target: ClassVar[str] = "normcore.norms.none:NoNorm"


class BatchNormSpec(Spec):
    """Batch norm (Ioffe & Szegedy 2015): each channel by its mean and variance over the batch and the pixels."""

    kind: Literal["batch"] = "batch"
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.batch:BatchNorm"


class GroupNormSpec(Spec):
    """Group norm (Wu & He 2018): each sample by groups of channels; independent of the batch size."""

    kind: Literal["group"] = "group"
    num_groups: Annotated[int, Field(ge=1, le=65536)] = 32
    """Groups of channels; must divide the channels of every layer."""
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.group:GroupNorm"


class LayerNormSpec(Spec):
    """Layer norm (Ba et al. 2016): each sample over all its channels and pixels; group norm with one group."""

    kind: Literal["layer"] = "layer"
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.layer:LayerNorm"


class InstanceNormSpec(Spec):
    """Instance norm (Ulyanov et al. 2016): each channel of each sample over its pixels; needs more than one pixel."""

    kind: Literal["instance"] = "instance"
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.instance:InstanceNorm"


NormSpec = NoNormSpec | BatchNormSpec | GroupNormSpec | LayerNormSpec | InstanceNormSpec


# --- weight methods ------------------------------------------------------------------------------------------------


class NoWeightSpec(Spec):
    """Weights as they are: no reparametrization."""

    kind: Literal["none"] = "none"


WeightSpec = NoWeightSpec


# --- noise ---------------------------------------------------------------------------------------------------------


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


# --- models --------------------------------------------------------------------------------------------------------


class MlpSpec(Spec):
    """Fully connected layers, each with a norm, then a linear classifier."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...], Field(strict=False, max_length=256)] = (
        128,
        128,
    )
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    norm_placement: NormPlacement = "before"
    """Whether the norm stands before or after the activation."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.mlp:Mlp"

    @property
    def name(self) -> str:
        """What a person calls it: `mlp128x128`."""
        widths = [str(width) for width in self.hidden]
        if len(widths) > 6:
            widths = [*widths[:3], f"({len(widths)} layers)"]
        return "mlp" + "x".join(widths)


class VggSpec(Spec):
    """VGG (Simonyan & Zisserman 2015) for small images: 3x3 convolutions, five poolings, one linear classifier."""

    kind: Literal["vgg"] = "vgg"
    depth: Literal[11, 13, 16, 19] = 11
    """Layers with weights in the original net: configurations A, B, D, E."""
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Multiplier on the channels of every convolution."""
    activation: Activation = "relu"
    norm_placement: NormPlacement = "before"
    """Whether the norm stands before or after the activation."""
    init: Init = "glorot"
    """How weights are drawn: glorot (Glorot & Bengio 2010) or he (He et al. 2015); biases start at zero."""
    target: ClassVar[str] = "normcore.models.vgg:Vgg"

    @property
    def name(self) -> str:
        """What a person calls it: `vgg11` or, at a quarter of the width, `vgg11w0.25`."""
        return f"vgg{self.depth}" + (f"w{self.width:g}" if self.width != 1 else "")


ModelSpec = MlpSpec | VggSpec


# --- data ----------------------------------------------------------------------------------------------------------


class DigitsSpec(Spec):
    """Scikit-learn's handwritten digits: 1,797 real 8x8 grey images, ten classes; ships with the install.

    The last 360 images, by other writers than the first 1,437, are the test set.
    """

    kind: Literal["digits"] = "digits"
    size: Literal[8, 16, 32] = 32
    """Height and width in pixels: 8 is native; 16 and 32 are upsampled bilinearly, 32 is what a VGG needs."""
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is no augmentation."""
    target: ClassVar[str] = "normcore.data.digits:Digits"
    num_classes: ClassVar[int] = 10
    num_train: ClassVar[int] = 1437
    num_test: ClassVar[int] = 360

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (1, self.size, self.size)


class Cifar10Spec(Spec):
    """CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32, ten classes; `uoft-cs/cifar10` in parquet.

    Read from the data folder, or from the Hugging Face hub when it can be reached.
    """

    kind: Literal["cifar10"] = "cifar10"
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is none, 4 is usual."""
    flip: bool = False
    """Mirror each training image left to right with probability one half."""
    target: ClassVar[str] = "normcore.data.cifar10:Cifar10"
    num_classes: ClassVar[int] = 10
    num_train: ClassVar[int] = 50_000
    num_test: ClassVar[int] = 10_000
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)


DataSpec = DigitsSpec | Cifar10Spec


# --- optimizers ----------------------------------------------------------------------------------------------------


class SgdSpec(Spec):
    """Stochastic gradient descent with momentum; weight decay leaves norm parameters alone unless asked."""

    kind: Literal["sgd"] = "sgd"
    lr: Lr = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    decay_norm_parameters: bool = False
    """Let weight decay shrink the norms' scales and shifts too."""
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
    """Let weight decay shrink the norms' scales and shifts too."""
    target: ClassVar[str] = "normcore.optimizers.adamw:build"


OptimizerSpec = SgdSpec | AdamWSpec


# --- schedules -----------------------------------------------------------------------------------------------------


class ConstantScheduleSpec(Spec):
    """The same lr throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the lr rises linearly to its full value."""
    target: ClassVar[str] = "normcore.schedules.constant:ConstantSchedule"


class CosineScheduleSpec(Spec):
    """Half a cosine from the full lr down to a fraction of it at the last step (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the lr rises linearly to its full value."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The lr at the end, as a fraction of the full lr."""
    target: ClassVar[str] = "normcore.schedules.cosine:CosineSchedule"


class StepScheduleSpec(Spec):
    """The lr falls by `gamma` at each milestone."""

    kind: Literal["step"] = "step"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the lr rises linearly to its full value."""
    milestones: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=64)] = (500, 750)
    """Steps at which the lr falls; increasing."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    target: ClassVar[str] = "normcore.schedules.step:StepSchedule"

    @model_validator(mode="after")
    def _milestones_increase(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}; sort them, each once")
        return self


ScheduleSpec = ConstantScheduleSpec | CosineScheduleSpec | StepScheduleSpec


# --- probes --------------------------------------------------------------------------------------------------------


class LandscapeProbeSpec(Spec):
    """Loss and gradient along the negative gradient (Santurkar et al. 2018, section 3.1), on the training batch."""

    kind: Literal["landscape"] = "landscape"
    every: PositiveInt = 50
    """Steps between two readings."""
    low: Multiple = 0.5
    """Shortest step along the gradient, as a multiple of the current lr."""
    high: Multiple = 4.0
    """Longest step along the gradient, as a multiple of the current lr."""
    points: Annotated[int, Field(ge=2, le=256)] = 8
    """Step sizes, evenly spaced from low to high."""
    target: ClassVar[str] = "normcore.probes.landscape:LandscapeProbe"

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low {self.low:g} and high {self.high:g}; swap or widen them")
        return self


ProbeSpec = LandscapeProbeSpec


# --- the job -------------------------------------------------------------------------------------------------------

WITHOUT_NUL = r"^[^\x00]*$"
"""Postgres keeps no NUL in text."""

LabelKey = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00:]*$")]
"""Without a colon, which stands between key and value where a label is searched for."""
Label = Annotated[str, Field(max_length=200, pattern=WITHOUT_NUL)]


class JobSpec(Spec):
    """One training, as ordered: a model on data, and everything that a comparison may vary.

    Only `model` and `data` must be given.

    Example:
        >>> spec = JobSpec.model_validate({"model": {"kind": "vgg"}, "data": {"kind": "digits"}})
        >>> spec.name, spec.num_steps
        ('vgg11 batch bs128 lr0.1 seed0', 1000)
    """

    model: Annotated[ModelSpec, Field(discriminator="kind")]
    data: Annotated[DataSpec, Field(discriminator="kind")]
    norm: Annotated[NormSpec, Field(discriminator="kind")] = BatchNormSpec()
    weight: WeightSpec = NoWeightSpec()
    noise: Annotated[NoiseSpec, Field(discriminator="kind")] = NoNoiseSpec()
    optimizer: Annotated[OptimizerSpec, Field(discriminator="kind")] = SgdSpec()
    schedule: Annotated[ScheduleSpec, Field(discriminator="kind")] = ConstantScheduleSpec()
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Optimizer updates; 1,000 where neither steps nor epochs is given."""
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Passes over the training data, in whole batches; instead of steps."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seeds the streams of initial weights, data order, augmentation and noise, each its own."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """bfloat16 computes under autocast with float32 weights; statistics stay in float32 or better."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the worker's device."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time: a resumed run equals an uninterrupted one."""
    checkpoint_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 500
    """Steps between checkpoints; there is always one at the end."""
    evaluate_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 100
    """Steps between evaluations on the test set; there is always one at the end."""
    record_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1
    """Steps between points of the training curves."""
    probes: Annotated[tuple[ProbeSpec, ...], Field(strict=False, max_length=16)] = ()
    labels: Annotated[dict[LabelKey, Label], Field(max_length=32)] = {}
    """Words of your own to find the job by; they become tags of the MLflow run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"give steps or epochs, not both, got steps {self.steps} and epochs {self.epochs}")
        if self.num_steps > MAX_STEPS:
            raise ValueError(
                f"a job may have at most {MAX_STEPS:,} steps, got {self.num_steps:,} in {self.epochs:,} epochs of "
                f"{self.steps_per_epoch:,} steps; order fewer epochs"
            )
        kinds = [probe.kind for probe in self.probes]
        if len(kinds) != len(set(kinds)):
            raise ValueError(f"each kind of probe may stand once, got {kinds}; merge the probes of one kind")
        return self

    @property
    def num_steps(self) -> int:
        """Optimizer updates in all."""
        if self.epochs is None:
            return 1000 if self.steps is None else self.steps
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training data."""
        return max(1, self.data.num_train // self.batch_size)

    @property
    def name(self) -> str:
        """A name that a person can read: model, norm and noise, batch size, lr, seed."""
        noise = "" if self.noise.kind == "none" else "+noise"
        return f"{self.model.name} {self.norm.kind}{noise} bs{self.batch_size} lr{self.optimizer.lr:g} seed{self.seed}"


MENU: dict[str, tuple[type[Spec], ...]] = {
    "model": (MlpSpec, VggSpec),
    "norm": (NoNormSpec, BatchNormSpec, GroupNormSpec, LayerNormSpec, InstanceNormSpec),
    "weight": (NoWeightSpec,),
    "noise": (NoNoiseSpec, SanturkarNoiseSpec),
    "data": (DigitsSpec, Cifar10Spec),
    "optimizer": (SgdSpec, AdamWSpec),
    "schedule": (ConstantScheduleSpec, CosineScheduleSpec, StepScheduleSpec),
    "probes": (LandscapeProbeSpec,),
}
"""Every family by the name of its field in `JobSpec`, and its parts in the order of the catalogue."""


def kind_of(spec: type[Spec]) -> str:
    """The `kind` a spec is asked for by.

    Example:
        >>> kind_of(VggSpec)
        'vgg'
    """
    return str(spec.model_fields["kind"].default)


def kinds_with(family: str, knob: str) -> list[str]:
    """The kinds of a family that have a knob, so that a refusal can say whose knob it is.

    Example:
        >>> kinds_with("norm", "num_groups")
        ['group']
    """
    return [kind_of(spec) for spec in MENU[family] if knob in spec.model_fields]
