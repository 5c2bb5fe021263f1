"""The menu: what a user may ask for, as frozen, strict, torch-free pydantic specs.

One class per part, joined in unions by `kind` in `normcore.menu`; `JobSpec` composes them. A spec describes and a part
is built: `target` names the class that a spec builds, so nothing here imports torch and the door and the command line
start in about a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from normcore.menu.datasets import DataSpec
from normcore.menu.models import ModelSpec
from normcore.menu.noises import NoiseSpec, NoNoiseSpec
from normcore.menu.norms import BatchNormSpec, BatchRenormSpec, NormSpec, PowerNormSpec
from normcore.menu.occasions import BudgetSpec, EpochsSpec
from normcore.menu.optimizers import OptimizerSpec, SgdSpec
from normcore.menu.own_datasets import not_measured
from normcore.menu.probes import ProbeSpec
from normcore.menu.schedules import ConstantScheduleSpec, ScheduleSpec, StepScheduleSpec
from normcore.menu.spec import MAX_STEPS, Misfit, Spec
from normcore.menu.weights import NoWeightSpec, WeightSpec

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
    weight: Annotated[WeightSpec, Field(discriminator="kind")] = NoWeightSpec()
    noise: Annotated[NoiseSpec, Field(discriminator="kind")] = NoNoiseSpec()
    optimizer: Annotated[OptimizerSpec, Field(discriminator="kind")] = SgdSpec()
    schedule: Annotated[ScheduleSpec, Field(discriminator="kind")] = ConstantScheduleSpec()
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Samples of an update, on all devices together."""
    batch_size_per_device: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Samples of an update on each device, which norms of the batch see; instead of batch_size, which is then devices
    times as much, and else batch_size over devices."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices, each with a process, that share the job; on a CPU only processes."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Optimizer updates; 1,000 where neither steps nor epochs is given."""
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Passes over the training data, in whole batches; instead of steps."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seeds the streams of initial weights, data order, augmentation and noise, each its own."""
    precision: Literal["float32", "tf32", "bfloat16", "float16", "float64"] = "float32"
    """bfloat16 and float16 compute under autocast with float32 weights, float16 with a scaled loss; statistics stay in
    float32 or better. tf32 is float32 whose products a GPU may take with factors of 10 bits."""
    accumulation: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Micro-batches that a batch is computed in, one after the other, for less memory; norms of the batch see one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The part of a label that is spread evenly over all classes, in training; evaluations have none."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an average of the weights over the updates, which is evaluated beside them: none, or such as 0.999."""
    compile: bool = False
    """Train with the model compiled by torch.compile, where it can be; else the run says why not."""
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
    probes: Annotated[
        tuple[Annotated[ProbeSpec, Field(discriminator="kind")], ...], Field(strict=False, max_length=16)
    ] = ()
    labels: Annotated[dict[LabelKey, Label], Field(max_length=32)] = {}
    """Words of your own to find the job by; they become tags of the MLflow run."""

    @property
    def named_jobs(self) -> dict[int, str]:
        """The ids of the other jobs whose last weights probes ask for, by the probes' places."""
        named = ((place, getattr(probe, "job", None)) for place, probe in enumerate(self.probes))
        return {place: job for place, job in named if job is not None}

    @model_validator(mode="before")
    @classmethod
    def _batch_size_of_all_devices(cls, given: Any) -> Any:
        if isinstance(given, dict) and "batch_size" not in given:
            per_device, devices = given.get("batch_size_per_device"), given.get("devices", 1)
            if isinstance(per_device, int) and isinstance(devices, int):
                return given | {"batch_size": per_device * devices}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_devices()
        if self.steps is not None and self.epochs is not None:
            raise Misfit(f"give steps or epochs, not both, got steps {self.steps} and epochs {self.epochs}", "epochs")
        sized = self.epochs is None or self.data.num_train is not None
        if sized and self.num_steps > MAX_STEPS:
            raise Misfit(
                f"a job may have at most {MAX_STEPS:,} steps, got {self.num_steps:,} in {self.epochs:,} epochs of "
                f"{self.steps_per_epoch:,} steps; order fewer epochs",
                "epochs",
            )
        if getattr(self.model, "zero_last_gamma", False) and not getattr(self.norm, "affine", False):
            raise Misfit(
                f"zero_last_gamma needs a norm with a learned scale, got norm {self.norm.kind} without one; "
                f"take a norm with affine true, or zero_last_gamma false",
                *("model", "zero_last_gamma"),
            )
        for place, probe in enumerate(self.probes):
            if self.deterministic and isinstance(getattr(probe, "every", None), BudgetSpec):
                raise Misfit(
                    f"a deterministic job must read its probes at steps that no clock decides, got a budget for probe "
                    f"{probe.kind}; set every to a number of steps, or deterministic to false",
                    *("probes", place, "every"),
                )
        kinds = [probe.kind for probe in self.probes]
        if len(kinds) != len(set(kinds)):
            again = next(place for place, kind in enumerate(kinds) if kind in kinds[:place])
            raise Misfit(
                f"each kind of probe may stand once, got {kinds}; merge the probes of one kind", "probes", again
            )
        if self.batch_size % (self.devices * self.accumulation):
            raise Misfit(
                f"accumulation must divide the batch of a device, got accumulation {self.accumulation} and batch_size "
                f"{self.batch_size} on devices {self.devices}; take a divisor, or another batch_size",
                "accumulation",
            )
        if self.label_smoothing and self.data.task != "classification":
            raise Misfit(
                f"label_smoothing needs labels that are classes, got label_smoothing {self.label_smoothing:g} and data "
                f"{self.data.kind} of targets; set it to 0",
                "label_smoothing",
            )
        if sized:
            self._check_that_nothing_comes_too_late()
        return self

    def _check_devices(self) -> None:
        if self.batch_size % self.devices:
            near = max(1, self.batch_size // self.devices) * self.devices
            raise Misfit(
                f"devices must divide batch_size, so that each computes as much, got devices {self.devices} and "
                f"batch_size {self.batch_size:,}; take a batch_size of {near:,}",
                "batch_size",
            )
        per_device = self.batch_size // self.devices
        if self.batch_size_per_device is None:
            object.__setattr__(self, "batch_size_per_device", per_device)
        elif self.batch_size_per_device != per_device:
            raise Misfit(
                f"batch_size must be devices times batch_size_per_device, got batch_size {self.batch_size:,}, devices "
                f"{self.devices} and batch_size_per_device {self.batch_size_per_device:,}; give one of the two sizes",
                "batch_size_per_device",
            )
        for place, probe in enumerate(self.probes):
            if self.devices > 1 and not probe.over_devices:
                raise Misfit(
                    f"probe {probe.kind} would see one device's part of the batch, got devices {self.devices}; "
                    f"leave it out, or set devices to 1",
                    *("probes", place),
                )

    def _check_that_nothing_comes_too_late(self) -> None:
        """What would come after the last step would never come, and the job would say it did something it did not."""
        late: list[tuple[str, int, str, tuple[str | int, ...]]] = [
            (f"probe {probe.kind} first reads at step {first:,}", first, "lower every", ("probes", place, "every"))
            for place, probe in enumerate(self.probes)
            if (first := self._first_reading(probe)) is not None
        ]
        warmup = self.schedule.warmup_steps
        late.append((f"warmup_steps is {warmup:,}", warmup, "lower it", ("schedule", "warmup_steps")))
        if isinstance(self.schedule, StepScheduleSpec):
            last = self.schedule.milestones[-1]
            what, remedy = f"the last of the milestones is {last:,}", "set milestones within the job"
            late.append((what, last, remedy, ("schedule", "milestones", len(self.schedule.milestones) - 1)))
        if isinstance(self.norm, BatchRenormSpec | PowerNormSpec):
            # In training passes, of which an update has as many as micro-batches.
            warmup, passes = self.norm.warmup_steps, self.accumulation
            each = f", of which a step has {passes:,}" if passes > 1 else ""
            what = f"norm {self.norm.kind} is itself only after warmup_steps {warmup:,}{each}"
            late.append((what, warmup // passes + 1, "lower it", ("norm", "warmup_steps")))
        for what, step, remedy, at in late:
            if step > self.num_steps:
                raise Misfit(f"{what}, and the job has {self.num_steps:,} steps; {remedy}, or raise steps", *at)

    def _first_reading(self, probe: ProbeSpec) -> int | None:
        """The first step that a probe is sure to look at, where there is one."""
        match getattr(probe, "every", None):
            case int(every):
                return every
            case EpochsSpec(every=every):
                return every * self.steps_per_epoch if self.data.num_train is not None else None
            case _:
                return None

    @property
    def num_steps(self) -> int:
        """Optimizer updates in all; raises `Refusal` where they hang on data that was not measured yet."""
        if self.epochs is None:
            return 1000 if self.steps is None else self.steps
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the training data; raises `Refusal` where it was not measured yet."""
        return max(1, self.num_train // self.batch_size)

    @property
    def num_train(self) -> int:
        """Training samples; raises `Refusal` where they were not counted yet, see `normcore.data.measure`."""
        if self.data.num_train is None:
            raise not_measured(self.data)
        return self.data.num_train

    @property
    def name(self) -> str:
        """A name that a person can read: model with dropout, norm, weight method and noise, batch size, lr, seed."""
        weight = "" if self.weight.kind == "none" else f"+{self.weight.kind}"
        noise = "" if self.noise.kind == "none" else "+noise"
        dropout = f"+dropout{p:g}" if (p := getattr(self.model, "dropout", 0)) else ""
        arm = f"{self.model.name}{dropout} {self.norm.kind}{weight}{noise}"
        return f"{arm} bs{self.batch_size} lr{self.optimizer.lr:g} seed{self.seed}"


MENU: dict[str, tuple[type[Spec], ...]] = {
    "model": get_args(ModelSpec),
    "norm": get_args(NormSpec),
    "weight": get_args(WeightSpec),
    "noise": get_args(NoiseSpec),
    "data": get_args(DataSpec),
    "optimizer": get_args(OptimizerSpec),
    "schedule": get_args(ScheduleSpec),
    "probes": get_args(ProbeSpec),
}
"""Every family by the name of its field in `JobSpec`, and its parts in the order of the catalogue."""


def kind_of(spec: type[Spec]) -> str:
    """The `kind` a spec is asked for by.

    Example:
        >>> from normcore.menu.models import VggSpec
        >>> kind_of(VggSpec)
        'vgg'
    """
    return str(spec.model_fields["kind"].default)


def kinds_with(family: str, knob: str) -> list[str]:
    """The kinds of a family that have a knob, so that a refusal can say whose knob it is.

    Example:
        >>> kinds_with("norm", "num_groups")
        ['group', 'evonorm_s0']
    """
    return [kind_of(spec) for spec in MENU[family] if knob in spec.model_fields]
