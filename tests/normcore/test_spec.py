from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from normcore.menu.norms import BatchNormSpec
from normcore.menu.spec import MAX_STEPS, Spec
from normcore.spec import MENU, JobSpec, kind_of, kinds_with

PARTS = [pytest.param(family, part, id=f"{family}-{kind_of(part)}") for family, parts in MENU.items() for part in parts]
MUST_BE_GIVEN = {"imagefolder": {"path": "mine"}, "parquet": {"path": "mine"}}
"""Knobs that have no default, of the kinds that have such."""
LEAST: dict[str, Any] = {"model": {"kind": "mlp"}, "data": {"kind": "digits"}}


def job(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(LEAST | changes)


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_every_part_can_be_ordered_by_its_kind_alone(family: str, part: type[Spec]) -> None:
    given = MUST_BE_GIVEN.get(kind_of(part), {})
    chosen = {"kind": kind_of(part)} | given
    ordered = getattr(job(**{family: [chosen] if family == "probes" else chosen}), family)
    assert (ordered[0] if family == "probes" else ordered) == part(**given)


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_every_part_and_every_knob_is_documented(family: str, part: type[Spec]) -> None:
    assert part.__doc__
    self_evident = {"kind", "lr", "momentum", "nesterov", "weight_decay", "gamma", "activation", "depth"}
    self_evident |= {"beta1", "beta2", "eps"}
    for name, field in part.model_fields.items():
        assert field.description or name in self_evident, f"{part.__name__}.{name} has no docstring"


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_every_target_is_there(family: str, part: type[Spec]) -> None:
    assert callable(part(**MUST_BE_GIVEN.get(kind_of(part), {})).part())


def test_a_job_survives_json() -> None:
    spec = job(
        probes=[{"kind": "landscape", "every": 10}], labels={"a": "b"}, schedule={"kind": "step", "milestones": [1, 2]}
    )
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BatchNormSpec().eps = 1.0


def test_the_menu_never_meets_torch() -> None:
    code = "import sys, normcore.spec, worker.book; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_kinds_with_names_the_owners_of_a_knob() -> None:
    assert kinds_with("model", "hidden") == ["mlp", "lstm"]
    assert kinds_with("optimizer", "lr") == ["sgd", "adamw", "muon"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 5, "epochs": 1}, "give steps or epochs, not both, got steps 5 and epochs 1"),
        ({"epochs": 1_000_000, "batch_size": 1}, f"at most {MAX_STEPS:,} steps, got 1,437,000,000 in 1,000,000 epochs"),
        ({"steps": -1}, "greater than or equal to 1"),
        ({"batch_size": "128"}, "valid integer"),
        ({"seed": 1.5}, "valid integer"),
        ({"optimizer": {"kind": "sgd", "lr": float("nan")}}, "finite"),
        ({"optimizer": {"kind": "sgd", "lr": float("inf")}}, "finite"),
        ({"optimizer": {"kind": "sgd", "nesterov": True}}, "nesterov needs a momentum above 0, got momentum 0"),
        ({"schedule": {"kind": "step", "milestones": [5, 3]}}, r"milestones must increase, got \[5, 3\]"),
        (
            {"probes": [{"kind": "landscape", "low": 4.0, "high": 0.5}]},
            "low must be below high, got low 4 and high 0.5",
        ),
        ({"probes": [{"kind": "landscape"}] * 2}, "each kind of probe may stand once"),
        ({"norm": {"kind": "btach"}}, "'none', 'batch', 'ghost', 'sync'"),
        ({"norm": {"kind": "batch", "num_groups": 4}}, "Extra inputs are not permitted"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_refused_in_a_sentence(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        job(**changes)


def test_epochs_are_whole_batches() -> None:
    spec = job(epochs=3, batch_size=128)
    assert (spec.steps_per_epoch, spec.num_steps) == (11, 33)


def test_a_name_tells_the_arms_apart() -> None:
    noisy = job(noise={"kind": "santurkar"}, optimizer={"kind": "adamw", "lr": 0.003}, seed=7, batch_size=2)
    assert noisy.name == "mlp128x128 batch+noise bs2 lr0.003 seed7"
    assert job(weight={"kind": "scaled"}).name == "mlp128x128 batch+scaled bs128 lr0.1 seed0"
    assert job(weight={"kind": "scaled"}, noise={"kind": "santurkar"}).name.startswith("mlp128x128 batch+scaled+noise ")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            {"probes": [{"kind": "landscape", "every": 101}]},
            "probe landscape first reads at step 101, and the job has 100 steps; lower every, or raise steps",
        ),
        (
            {"schedule": {"kind": "cosine", "warmup_steps": 101}},
            "warmup_steps is 101, and the job has 100 steps; lower it, or raise",
        ),
        (
            {"schedule": {"kind": "step", "milestones": [50, 101]}},
            "the last of the milestones is 101, and the job has 100 steps; set milestones within the job, or raise",
        ),
        (
            {"norm": {"kind": "batch_renorm", "warmup_steps": 100}},
            "norm batch_renorm is itself only after warmup_steps 100, and the job has 100 steps; lower it, or raise",
        ),
    ],
    ids=["probe", "warm-up", "milestone", "norm"],
)
def test_what_would_come_after_the_last_step_is_refused(parts, sentence):
    plain = {"model": {"kind": "mlp"}, "data": {"kind": "digits"}}
    with pytest.raises(ValidationError, match=sentence):
        JobSpec.model_validate(plain | {"steps": 100} | parts)
    JobSpec.model_validate(plain | {"steps": 101} | parts)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "per_device"),
    [
        ({}, 128, 128),
        ({"devices": 4}, 128, 32),
        ({"devices": 4, "batch_size_per_device": 8}, 32, 8),
        ({"devices": 2, "batch_size": 6, "batch_size_per_device": 3}, 6, 3),
    ],
)
def test_the_batch_is_that_of_all_devices(sizes, batch_size, per_device):
    spec = JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits"}} | sizes)
    assert (spec.batch_size, spec.batch_size_per_device) == (batch_size, per_device)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"devices": 3}, "devices must divide batch_size, .* got devices 3 and batch_size 128; take .* of 126"),
        (
            {"devices": 2, "batch_size": 8, "batch_size_per_device": 8},
            "got batch_size 8, devices 2 and batch_size_per_device 8; give one of the two sizes",
        ),
        (
            {"devices": 2, "probes": [{"kind": "train_eval_gap", "every": 5}]},
            "probe train_eval_gap would see one device's part of the batch, got devices 2; leave it out",
        ),
    ],
)
def test_what_devices_cannot_share_is_refused(parts, sentence):
    with pytest.raises(ValidationError, match=sentence):
        JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits"}} | parts)
