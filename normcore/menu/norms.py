"""Norms on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.spec import MAX_STEPS, Divisibility, Eps, Momentum, NonNegative, Spec


class NoNormSpec(Spec):
    """No normalization: the identity, the control arm of every comparison."""

    kind: Literal["none"] = "none"
    target: ClassVar[str] = "normcore.norms.none:NoNorm"


class BatchNormSpec(Spec):
    """Batch norm (Ioffe & Szegedy 2015): each channel by its mean and variance over the batch and the pixels."""

    kind: Literal["batch"] = "batch"
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    estimator: Literal["ema", "paper", "population"] = "ema"
    """Statistics that evaluation uses: ema, running averages; paper, the mean of the batches' means and unbiased
    variances; population, mean and variance of all values together. The last two are gathered anew, over training
    batches, before each evaluation and checkpoint."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.batch:BatchNorm"


class GroupNormSpec(Spec):
    """Group norm (Wu & He 2018): each sample by groups of channels; independent of the batch size."""

    kind: Literal["group"] = "group"
    num_groups: Annotated[int, Field(ge=1, le=65536)] = 32
    """Groups of channels; must divide the channels of every layer."""
    channels_per_group: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Channels of a group, the same in every layer, in the place of num_groups."""
    divisibility: Divisibility = "error"
    """Where the groups do not divide the channels of a layer: error, or the nearest number that does."""
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


class GhostBatchNormSpec(Spec):
    """Ghost batch norm (Hoffer et al. 2017): batch norm over virtual batches, parts of the batch."""

    kind: Literal["ghost"] = "ghost"
    virtual_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Samples that are normalized together; must divide the batch."""
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.ghost:GhostBatchNorm"


class SyncBatchNormSpec(Spec):
    """Batch norm with one set of statistics over all processes of a training, or over virtual ranks of one."""

    kind: Literal["sync"] = "sync"
    virtual_ranks: Annotated[int, Field(ge=1, le=1024)] = 1
    """Shares into which one process splits its batch, each summed by itself as a rank would, then reduced."""
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.sync:SyncBatchNorm"


class BatchRenormSpec(Spec):
    """Batch renormalization (Ioffe 2017): batch norm drawn towards its running statistics, within widening bounds."""

    kind: Literal["batch_renorm"] = "batch_renorm"
    eps: Eps = 1e-3
    """Added to the standard deviation, outside the root."""
    momentum: Momentum = 0.05
    """Weight of the newest batch in the running statistics; the paper's 0.01."""
    r_max: Annotated[float, Field(ge=1, le=1e6)] = 3.0
    """Where the bound of the scale correction r ends."""
    d_max: NonNegative = 5.0
    """Where the bound of the shift correction d ends."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 100
    """Steps of plain batch norm, r = 1 and d = 0; the paper's, on ImageNet, 5,000."""
    r_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 800
    """Step at which the bound of r, rising linearly from 1, has reached r_max; the paper's 40,000."""
    d_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 500
    """Step at which the bound of d, rising linearly from 0, has reached d_max; the paper's 25,000."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.batch_renorm:BatchRenorm"

    @model_validator(mode="after")
    def _bounds_rise_after_the_warmup(self) -> Self:
        for knob, end in (("r_steps", self.r_steps), ("d_steps", self.d_steps)):
            if end < self.warmup_steps:
                raise ValueError(
                    f"{knob} must be at least warmup_steps, got {knob} {end} and warmup_steps {self.warmup_steps}; "
                    f"raise {knob}, or lower warmup_steps"
                )
        return self


class LpNormSpec(Spec):
    """Batch norm by the lp norm of a channel instead of its standard deviation (Santurkar et al. 2018, section 3.3)."""

    kind: Literal["lp"] = "lp"
    p: Literal["1", "2", "inf"] = "1"
    """Of the norm: 1, 2 or inf."""
    eps: Eps = 1e-5
    """Added to the norm."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.lp:LpNorm"


class LayerNormChannelsSpec(Spec):
    """Layer norm over the channels of each pixel, as in transformers and ConvNeXt; not over pixels."""

    kind: Literal["layer_channels"] = "layer_channels"
    eps: Eps = 1e-6
    """Added to the variance, inside the root."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.layer_channels:LayerNormChannels"


class RmsNormSpec(Spec):
    """Root mean square norm (Zhang & Sennrich 2019) over the channels of each pixel: layer norm without the mean."""

    kind: Literal["rms"] = "rms"
    eps: Eps = 1e-6
    """Added to the mean square, inside the root."""
    affine: bool = True
    """Learn a scale (gamma) per channel; there is no shift."""
    target: ClassVar[str] = "normcore.norms.rms:RmsNorm"


class LocalResponseNormSpec(Spec):
    """Local response norm (Krizhevsky et al. 2012, section 3.3): a value by its neighbour channels' squares."""

    kind: Literal["local_response"] = "local_response"
    size: Annotated[int, Field(ge=1, le=65536)] = 5
    """n: channels of a neighbourhood, the value's own in the middle."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 1e-4
    """Weight of the neighbourhood."""
    beta: Annotated[float, Field(gt=0, le=100)] = 0.75
    """Exponent of the denominator."""
    k: Annotated[float, Field(gt=0, le=1e6)] = 2.0
    """Constant in the denominator."""
    convention: Literal["alexnet", "torch"] = "alexnet"
    """alexnet weighs the sum of squares by alpha; torch by alpha / size."""
    target: ClassVar[str] = "normcore.norms.local_response:LocalResponseNorm"


class DivisiveNormSpec(Spec):
    """Divisive norm (Ren et al. 2017): each value by the local mean and variance over windows of all channels."""

    kind: Literal["divisive"] = "divisive"
    mean_window: Annotated[int, Field(ge=1, le=255)] = 5
    """Side in pixels of the window whose mean is subtracted; odd."""
    variance_window: Annotated[int, Field(ge=1, le=255)] = 5
    """Side in pixels of the window whose variance divides; odd."""
    sigma: Annotated[float, Field(gt=0, le=1e3)] = 1.0
    """Initial value of the learned smoothing sigma, squared in the denominator."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.divisive:DivisiveNorm"


class FilterResponseNormSpec(Spec):
    """Filter response norm with thresholded linear unit (Singh & Krishnan 2020): no mean, no batch."""

    kind: Literal["filter_response"] = "filter_response"
    eps: Eps = 1e-6
    """Added to the mean square, inside the root."""
    learned_eps: bool = False
    """Learn an addition to eps per channel, as the paper does where maps are of one pixel."""
    tlu: bool = True
    """End in max(y, tau) with tau learned, in the place of the activation."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.filter_response:FilterResponseNorm"


class WhiteningSpec(Spec):
    """Decorrelated batch norm (Huang et al. 2018): channels of a group whitened by an eigendecomposition."""

    kind: Literal["whitening"] = "whitening"
    method: Literal["zca", "pca"] = "zca"
    """zca turns back to the channels' own axes; pca does not, and its axes may swap from batch to batch."""
    channels_per_group: Annotated[int, Field(ge=1, le=4096)] = 16
    """Channels that are whitened together."""
    divisibility: Divisibility = "error"
    """Where channels_per_group does not divide the channels of a layer: error, or the nearest number that does."""
    eps: Eps = 1e-5
    """Added to the diagonal of the covariance."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.whitening:Whitening"


class IterativeNormSpec(Spec):
    """IterNorm (Huang et al. 2019): channels of a group whitened by Newton iterations."""

    kind: Literal["iterative"] = "iterative"
    iterations: Annotated[int, Field(ge=1, le=32)] = 5
    """T: Newton iterations."""
    channels_per_group: Annotated[int, Field(ge=1, le=4096)] = 64
    """Channels that are whitened together."""
    divisibility: Divisibility = "error"
    """Where channels_per_group does not divide the channels of a layer: error, or the nearest number that does."""
    eps: Eps = 1e-5
    """Added to the diagonal of the covariance."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.iterative:IterativeNorm"


class SwitchableNormSpec(Spec):
    """Switchable norm (Luo et al. 2019): learned mixtures of instance, layer and batch statistics."""

    kind: Literal["switchable"] = "switchable"
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.switchable:SwitchableNorm"


class PowerNormSpec(Spec):
    """Power norm (Shen et al. 2020): running mean squares in training too, with an approximate backward pass."""

    kind: Literal["power"] = "power"
    eps: Eps = 1e-5
    """Added to the mean square, inside the root."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running mean square and in its gradient's."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 200
    """Steps that divide by the batch's own mean square while the running one is gathered; the authors' 10,000."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.power:PowerNorm"


class EvoNormB0Spec(Spec):
    """EvoNorm-B0 (Liu et al. 2020): norm and activation in one, by batch variance or instance variance."""

    kind: Literal["evonorm_b0"] = "evonorm_b0"
    eps: Eps = 1e-3
    """Added to the variances, inside the roots."""
    momentum: Momentum = 0.1
    """Weight of the newest batch in the running statistics."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.evonorm_b0:EvoNormB0"


class EvoNormS0Spec(Spec):
    """EvoNorm-S0 (Liu et al. 2020): norm and activation in one, a swish by the variance of a group of channels."""

    kind: Literal["evonorm_s0"] = "evonorm_s0"
    num_groups: Annotated[int, Field(ge=1, le=65536)] = 32
    """Groups of channels."""
    divisibility: Divisibility = "error"
    """Where num_groups does not divide the channels of a layer: error, or the nearest number that does."""
    eps: Eps = 1e-5
    """Added to the variance, inside the root."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.evonorm_s0:EvoNormS0"


class DynamicTanhSpec(Spec):
    """Dynamic tanh (Zhu et al. 2025): gamma tanh(alpha x) + beta, no statistics at all."""

    kind: Literal["dyt"] = "dyt"
    alpha: Annotated[float, Field(gt=0, le=1e3)] = 0.5
    """Initial value of the learned slope, one per layer."""
    affine: bool = True
    """Learn a scale (gamma) and a shift (beta) per channel."""
    target: ClassVar[str] = "normcore.norms.dyt:DynamicTanh"


NormSpec = (
    NoNormSpec
    | BatchNormSpec
    | GhostBatchNormSpec
    | SyncBatchNormSpec
    | BatchRenormSpec
    | LpNormSpec
    | SwitchableNormSpec
    | PowerNormSpec
    | LayerNormSpec
    | LayerNormChannelsSpec
    | RmsNormSpec
    | GroupNormSpec
    | InstanceNormSpec
    | FilterResponseNormSpec
    | LocalResponseNormSpec
    | DivisiveNormSpec
    | EvoNormB0Spec
    | EvoNormS0Spec
    | WhiteningSpec
    | IterativeNormSpec
    | DynamicTanhSpec
)
