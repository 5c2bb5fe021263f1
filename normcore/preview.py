"""What a job would be: its size and cost, and every reason why it could not be built, before it is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from normcore.build import build_model
from normcore.cost import flops_per_step
from normcore.data.dataset import find
from normcore.data.folders import DataFolders
from normcore.data.measure import measured
from normcore.data.order import check_batch_size
from normcore.data.shaped import shaped
from normcore.menu.datasets import DigitsSpec
from normcore.menu.noises import NoNoiseSpec
from normcore.menu.norms import NoNormSpec
from normcore.menu.spec import MAX_PARAMETERS
from normcore.menu.weights import NoWeightSpec
from normcore.norms.none import NoNorm
from normcore.norms.padding import check_padding
from normcore.optimizers.muon import matrices
from normcore.probes.probe import Demanding
from normcore.refusal import Refusal
from normcore.rehearsal import memory_mib
from normcore.spec import JobSpec

POINTERS = {
    "activation-after-sum": "/model/activation_placement",
    "batch-larger-than-data": "/batch_size",
    "batch-of-one": "/batch_size",
    "channels-per-group-do-not-divide": "/norm/channels_per_group",
    "dataset-changed": "/data",
    "dataset-layout": "/data/path",
    "dataset-not-found": "/data/kind",
    "even-window": "/norm",
    "fan-in-of-one": "/weight/kind",
    "groups-do-not-divide": "/norm/num_groups",
    "heads-do-not-divide": "/model/heads",
    "image-too-small": "/data/size",
    "maps-not-in-sequence": "/weight/kind",
    "model-takes-other-data": "/data/kind",
    "layers-are-square": "/model/width",
    "more-ranks-than-samples": "/norm/virtual_ranks",
    "no-activation-after-norm": "/norm/kind",
    "no-activation-to-replace": "/norm/kind",
    "no-branches": "/weight/kind",
    "no-such-layer": "/probes",
    "no-such-net": "/model/name",
    "norm-not-exchanged": "/norm/kind",
    "timm-not-installed": "/model/kind",
    "no-image-column": "/data/image",
    "no-label-column": "/data/label",
    "muon-without-matrices": "/optimizer/kind",
    "norm-activates": "/model/activation",
    "norm-after-zero": "/norm/kind",
    "norm-not-affine": "/norm/affine",
    "norm-not-in-cell": "/norm/kind",
    "norm-takes-no-mask": "/norm/kind",
    "one-pixel-map": "/norm/kind",
    "one-value-group": "/norm/num_groups",
    "one-value-layer": "/norm/kind",
    "one-value-virtual-batch": "/norm/virtual_batch_size",
    "outside-data-folder": "/data/path",
    "path-not-found": "/data/path",
    "steps-do-not-fit": "/epochs",
    "patch-does-not-divide": "/model/patch",
    "too-few-values-to-whiten": "/norm/channels_per_group",
    "too-many-parameters": "/model",
    "virtual-batch-does-not-divide": "/norm/virtual_batch_size",
    "weights-in-cell": "/weight/kind",
}
"""Where in the spec a refusal is to be mended, by its code; the whole spec for one that is not here."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job could not be built."""

    code: str
    """A stable word: the refusal's code, mostly one of the keys of `POINTERS`."""
    pointer: str
    """Where in the spec, as a JSON pointer."""
    layer: str | None
    """The first layer that it concerns, by its module path, where it concerns one."""
    detail: str
    """The invariant, both values and the remedy."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a job would be; where it cannot be built, what its model without norm, weight method and noise would be."""

    spec: JobSpec
    """The job, with the sizes of its data filled in."""
    num_parameters: int
    """Learned numbers; 0 where the model cannot be built at all."""
    flops_per_step: int
    """Floating point operations of a step, see `normcore.cost.flops_per_step`; 0 likewise."""
    memory_mib: float
    """Memory on the device, see `normcore.rehearsal.memory_mib`; 0 likewise."""
    num_steps: int
    """Optimizer updates in all; 0 where the data could not be measured."""
    steps_per_epoch: int
    """Whole batches in one pass over the training data; 0 likewise."""
    reasons: tuple[Reason, ...]
    """Every reason why the job could not be built, each said once; none where it can be."""


def preview(spec: JobSpec, folders: DataFolders | None = None) -> Preview:
    """Size, cost and feasibility of a job. Reads no data, allocates no parameters, and takes some tens of
    milliseconds for a VGG, two seconds for the deepest MLP.

    The first preview of a process takes about a second more, for torch's shape functions; that of a dataset which is
    not in the data folder up to two seconds more, for the hub.

    Args:
        spec: The job.
        folders: Where datasets lie; `data` and `var/cache` below the working directory when not given.

    Example:
        >>> job = {"model": {"kind": "vgg", "width": 0.25}, "norm": {"kind": "group"}, "data": {"kind": "digits"}}
        >>> for reason in preview(JobSpec.model_validate(job)).reasons:
        ...     print(reason.pointer, reason.layer)
        ...     print(reason.detail)
        /norm/num_groups blocks.0.norm
        num_groups must divide num_features, got num_groups 32 and num_features 16; take a divisor of 16, such as 16
    """
    reasons: list[Reason] = []
    sized = _attempt(reasons, None, partial(measured, spec, folders))
    if sized is None:
        return Preview(spec, 0, 0, 0.0, 0, 0, tuple(reasons))
    spec = sized
    _attempt(reasons, None, partial(find, spec.data, folders))
    _attempt(reasons, None, partial(check_batch_size, spec.batch_size, spec.num_train))

    plain = spec.model_copy(update={"norm": NoNormSpec(), "weight": NoWeightSpec(), "noise": NoNoiseSpec()})
    model = _attempt(reasons, None, partial(build_model, plain, device="meta"))
    # A norm that cannot stand in this model is named even if the model cannot stand on this image.
    images = "images" in spec.model.takes
    on_any_image = plain.model_copy(update={"data": DigitsSpec()}) if model is None and images else plain
    elsewhere = (
        _attempt([], None, partial(build_model, on_any_image, device="meta")) if model is None and images else None
    )
    stands = model is not None or elsewhere is not None
    norms_fit = True
    parts = 1 if spec.norm.kind == "sync" else spec.devices
    for shape, layer in (_norm_inputs(on_any_image, parts) if stands else {}).items():
        norms_fit &= _attempt(reasons, layer, partial(_normalize, spec, shape)) is not None

    if spec.weight.kind != "none" and stands:
        weighed = on_any_image.model_copy(update={"weight": spec.weight})
        _attempt(reasons, None, partial(build_model, weighed, device="meta"))

    if model is None:
        return Preview(spec, 0, 0, 0.0, spec.num_steps, spec.steps_per_epoch, tuple(reasons))
    whole = _attempt(reasons, None, partial(build_model, spec, device="meta")) if norms_fit else None
    built = model if whole is None else whole
    _attempt(reasons, _largest_layer(built), partial(_check_size, built))
    if spec.optimizer.kind == "muon":
        _attempt(reasons, None, partial(matrices, built))
    for probe in [each.part()(**each.knobs()) for each in spec.probes]:
        if whole is not None and isinstance(probe, Demanding):
            _attempt(reasons, None, partial(probe.check, whole))
    # What no layer refuses when it is built, it may refuse when it is used: norms inside an LSTM see batches only here.
    memory = None if whole is None else _attempt(reasons, None, partial(memory_mib, spec))
    return Preview(
        spec=spec,
        num_parameters=_num_parameters(built),
        flops_per_step=flops_per_step(model, shaped(spec.data, spec.batch_size, next(model.parameters()).dtype)),
        memory_mib=round(memory_mib(plain) if memory is None else memory, 1),
        num_steps=spec.num_steps,
        steps_per_epoch=spec.steps_per_epoch,
        reasons=tuple(reasons),
    )


def _attempt(reasons: list[Reason], layer: str | None, build: Callable[[], T]) -> T | None:
    """What `build` gives; or none, and the reason is kept unless the same was said before."""
    try:
        return build()
    except Refusal as refusal:
        if str(refusal) not in {reason.detail for reason in reasons}:
            reasons.append(Reason(refusal.code, POINTERS.get(refusal.code, ""), refusal.layer or layer, str(refusal)))
        return None


def _norm_inputs(plain: JobSpec, parts: int) -> dict[torch.Size, str]:
    """The shapes that norms will be given of a batch in so many parts, each with the path of the first given it."""
    layers: dict[torch.Size, str] = {}

    def remember(path: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        layers.setdefault(inputs[0].shape, path)

    model = build_model(plain, device="meta")
    for path, module in model.named_modules():
        if isinstance(module, NoNorm):
            module.register_forward_pre_hook(partial(remember, path))
    with torch.no_grad():
        size = plain.batch_size // (parts * plain.accumulation)
        shaped(plain.data, size, next(model.parameters()).dtype).through(model)
    return layers


def _normalize(spec: JobSpec, shape: torch.Size) -> Tensor:
    norm = spec.norm.part()(shape[1], **spec.norm.knobs(), device="meta")
    x = torch.empty(shape, device="meta")
    if spec.data.form != "tokens":
        return norm(x)  # type: ignore[no-any-return]
    check_padding(norm)
    mask = torch.empty(shape[:1] + shape[2:], device="meta", dtype=torch.bool)
    return norm(x, mask) if norm.takes_mask else norm(x)  # type: ignore[no-any-return]


def _check_size(model: nn.Module) -> None:
    if (count := _num_parameters(model)) > MAX_PARAMETERS:
        raise Refusal(
            "too-many-parameters",
            f"a model may have at most {MAX_PARAMETERS:,} parameters, got {count:,}; make it narrower",
        )


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _largest_layer(model: nn.Module) -> str:
    holder = max(model.named_parameters(), key=lambda named: named[1].numel())[0].rpartition(".")[0]
    return holder.removesuffix(".parametrizations.weight")
