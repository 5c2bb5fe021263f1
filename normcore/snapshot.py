"""Everything that a training needs to go on, taken and put back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from normcore.best import Best
from normcore.foresight import NEXT_LOSS, next_loss
from normcore.learner import Learner
from normcore.records import Reading, Snapshot
from normcore.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Past:
    """What a training knows of its own past."""

    readings: list[Reading] = field(default_factory=list)
    """What the probes have seen, by step."""
    best: Best | None = None
    """The best evaluation so far, where there is a validation set."""
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    """What probes that read at the end have watched, by `<probe>.<name>`."""
    failed: tuple[str, ...] = ()
    """The probes that raised, which are asked no more."""


def take(spec: JobSpec, step: int, learner: Learner, past: Past) -> Snapshot:
    """The state of a training after `step` updates, copied to the CPU.

    Streams of data order, augmentation and noise are functions of seed and step and have no state to keep; schedules
    have none either. Tensors are named

    - `model.<name>`: parameters and buffers;
    - `optimizer.<parameter>.<state>`: momentum and the like;
    - `learner.<name>`: what the learner changes besides, see `Learner.state`;
    - `rng.cpu`, `rng.cuda`: torch's global generators;
    - `readings.<probe>.step`, `.scalars.<name>`, `.arrays.<name>`: what the probes have seen, a row per reading; NaN
      stands for a scalar that a reading does not have;
    - `watched.<probe>.<name>`: what probes that read at the end have seen on the way;
    - `next.loss`, where the training is deterministic: what the next step's loss will be, see `normcore.foresight`.

    The facts are the spec, torch's version, what the probes' readings have in common and, where there are any, the best
    evaluation so far and the probes that failed.
    """
    model, optimizer = learner.model, learner.optimizer
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items() if value is not None}
    tensors |= {f"learner.{name}": value for name, value in learner.state().items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    tensors |= _readings_to_tensors(past.readings)
    tensors |= {f"watched.{name}": value for name, value in past.watched.items()}
    if spec.deterministic:
        tensors[NEXT_LOSS] = next_loss(learner, step + 1)
    # In plain memory order, so that equal values are equal bytes whatever the memory format they were computed in.
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    facts: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "torch": torch.__version__}
    facts["readings"] = {
        reading.probe: {"layers": list(reading.layers), "facts": dict(reading.facts)} for reading in past.readings
    }
    if past.failed:
        facts["failed"] = list(past.failed)
    return Snapshot(step, copies, facts if past.best is None else facts | {"best": past.best.facts()})


def restore(snapshot: Snapshot, spec: JobSpec, learner: Learner) -> Past:
    """Put a snapshot into a learner built from `spec`, and set torch's global generators.

    Values are copied into tensors of the parameters' memory format: fused kernels walk parameter, gradient and
    momentum in the order of memory, and would mix up two formats.

    Raises:
        ValueError: The snapshot is of another training.
    """
    tensors = snapshot.tensors
    _check_same_training(snapshot, spec)
    model, optimizer = learner.model, learner.optimizer
    _check_fits(_under("model.", tensors), model.state_dict(), "model")
    # Older snapshots have nothing of the learner's where all of it stands as it began.
    began = {name: value for name, value in learner.state().items() if name == "diverged"}
    theirs = began | _under("learner.", tensors)
    _check_fits(theirs, learner.state(), "learner")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(tensors[f"model.{name}"])
        for name, value in learner.state().items():
            value.copy_(theirs[name])
    parameters = dict(model.named_parameters())
    for path, value in _under("optimizer.", tensors).items():
        name, _, key = path.rpartition(".")
        parameter = parameters[name].detach()
        like = parameter if value.shape == parameter.shape else value
        own = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
        optimizer.state[parameters[name]][key] = own.copy_(value)
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"], next(model.parameters()).device)
    best, failed = Best.of(snapshot.facts.get("best")), tuple(snapshot.facts.get("failed", ()))
    return Past(readings_of(snapshot), best, _under("watched.", tensors), failed)


MAY_CHANGE = {"steps", "epochs", "device", "checkpoint_every", "evaluate_every", "record_every", "labels"}
"""What may be ordered otherwise when a training is resumed; longer, for one."""


def _check_same_training(snapshot: Snapshot, spec: JobSpec) -> None:
    taken, wanted = _with_defaults(snapshot.facts["spec"]), spec.model_dump(mode="json")
    for key in sorted((taken.keys() | wanted.keys()) - MAY_CHANGE):
        if taken.get(key) != wanted.get(key):
            raise ValueError(
                f"a snapshot must be of the training it resumes, got {key} {taken.get(key)} in the snapshot and "
                f"{wanted.get(key)} in the spec; resume with the spec it was taken with"
            )


def _with_defaults(taken: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of a snapshot with the knobs that came after it, which stand at what it did without them."""
    try:
        return JobSpec.model_validate(taken).model_dump(mode="json")
    except ValidationError:
        # Of a menu that has other parts by now: compared as it stands.
        return taken


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_fits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    shapes = {name: tuple(value.shape) for name, value in wanted.items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if differing := sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)):
        name = differing[0]
        raise ValueError(
            f"a snapshot must be of the {what} it resumes, got {name} with shape {given.get(name, 'missing')} in the "
            f"snapshot and {shapes.get(name, 'missing')} in the {what}; resume with the spec it was taken with"
        )


def _readings_to_tensors(readings: Sequence[Reading]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for probe in dict.fromkeys(reading.probe for reading in readings):
        mine = [reading for reading in readings if reading.probe == probe]
        tensors[f"readings.{probe}.step"] = torch.tensor([reading.step for reading in mine])
        for name in dict.fromkeys(name for reading in mine for name in reading.scalars):
            column = [reading.scalars.get(name, math.nan) for reading in mine]
            tensors[f"readings.{probe}.scalars.{name}"] = torch.tensor(column, dtype=torch.float64)
        for name in mine[0].arrays:
            rows = [reading.arrays[name] for reading in mine]
            tensors[f"readings.{probe}.arrays.{name}"] = torch.tensor(rows, dtype=torch.float64)
    return tensors


def readings_of(snapshot: Snapshot) -> list[Reading]:
    """What the probes had seen when a snapshot was taken, by step."""
    tensors, common = _under("readings.", snapshot.tensors), snapshot.facts.get("readings", {})
    readings = []
    for probe in dict.fromkeys(name.partition(".")[0] for name in tensors):
        steps = tensors[f"{probe}.step"].tolist()
        scalars = {name: column.tolist() for name, column in _under(f"{probe}.scalars.", tensors).items()}
        arrays = {name: rows.tolist() for name, rows in _under(f"{probe}.arrays.", tensors).items()}
        layers = tuple(common.get(probe, {}).get("layers", ()))
        facts = common.get(probe, {}).get("facts", {})
        readings += [
            Reading(
                probe,
                step,
                {name: column[row] for name, column in scalars.items() if not math.isnan(column[row])},
                {name: tuple(rows[row]) for name, rows in arrays.items()},
                layers,
                facts,
            )
            for row, step in enumerate(steps)
        ]
    return sorted(readings, key=lambda reading: reading.step)
