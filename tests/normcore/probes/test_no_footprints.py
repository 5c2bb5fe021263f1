"""Every probe on the menu, in every kind of model: the training is bit for bit the one that no probe saw."""

from functools import cache

import pytest

from normcore.records import Checkpoint, Figure, Metrics, Reading, Remark
from normcore.spec import MENU, JobSpec, kind_of
from normcore.train import train
from tests.normcore.test_resume import CLOCKS

STEPS = 4
COMMON = {
    "batch_size": 8,
    "steps": STEPS,
    "evaluate_every": 4,
    "checkpoint_every": 2,
    "deterministic": True,
    "schedule": {"kind": "cosine"},
    "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "clip_norm": 1.0},
    "ema": 0.5,
}
VGG = {"model": {"kind": "vgg", "width": 0.0625}, "data": {"kind": "digits", "crop_padding": 1}}
MODELS = {
    "vgg, batch": VGG,
    "vgg, batch, noise, dropout": VGG
    | {"model": {"kind": "vgg", "width": 0.0625, "dropout": 0.25}, "noise": {"kind": "santurkar"}},
    "resnet, group": {
        "model": {"kind": "resnet", "depth": 8, "width": 0.25},
        "data": {"kind": "digits", "size": 8},
        "norm": {"kind": "group", "num_groups": 2},
    },
    "lstm": {
        "model": {"kind": "lstm", "hidden": 6},
        "data": {"kind": "digits", "arrange": "rows", "size": 8},
    },
    "transformer": {
        "model": {"kind": "transformer", "depth": 1, "width": 8, "heads": 2, "dropout": 0.25},
        "data": {"kind": "digits", "arrange": "tokens"},
        "norm": {"kind": "layer"},
    },
}
SMALL = {"points": 3, "steps": 10, "every": 2, "iterations": 4, "samples": 2, "batches": 2}
"""Knobs of any probe with which it has little to do."""


@cache
def training(model, *kinds):
    """The records of a training with these probes, without the figures, which take longer than all the rest."""
    menu = {kind_of(part): part for part in MENU["probes"]}
    knobs = {kind: {name: value for name, value in SMALL.items() if name in menu[kind].model_fields} for kind in kinds}
    spec = JobSpec.model_validate(COMMON | MODELS[model] | {"probes": [{"kind": k} | knobs[k] for k in kinds]})
    records, told = train(spec), []
    with pytest.MonkeyPatch.context() as patch:
        # At the end of a noisy training: a hundred batches would take longer than it.
        patch.setattr("normcore.step_evaluation.RECOMPUTE_BATCHES", 4)
        for record in records:
            if isinstance(record, Figure):
                break
            told.append(record)
        records.close()
    return told


def of_the_training(records):
    """All that a training says of itself: every point, and every tensor and fact of its checkpoints."""
    of_probes = (*CLOCKS, *(f"{kind_of(part)}/" for part in MENU["probes"]))
    for record in records:
        if isinstance(record, Metrics):
            yield from (point for point in record.points if not point.key.startswith(of_probes))
        elif isinstance(record, Checkpoint):
            for name, tensor in sorted(record.snapshot.tensors.items()):
                if not name.startswith(("readings.", "watched.")):
                    yield record.step, name, tensor.dtype, tensor.shape, tensor.numpy().tobytes()


@pytest.mark.parametrize("kind", [kind_of(part) for part in MENU["probes"]])
@pytest.mark.parametrize("model", MODELS)
def test_a_training_that_was_seen_is_bit_for_bit_the_one_that_was_not(model, kind):
    seen = training(model, kind)
    assert [record for record in seen if isinstance(record, Remark)] == []
    readings = [record.step for record in seen if isinstance(record, Reading)]
    assert readings == ([2, 4] if reads_on_the_way(kind) else [STEPS])
    assert list(of_the_training(seen)) == list(of_the_training(training(model)))


def reads_on_the_way(kind):
    return next(part for part in MENU["probes"] if kind_of(part) == kind)().part().sees != "end"


def test_so_is_one_that_all_probes_saw_at_once():
    model, kinds = "vgg, batch, noise, dropout", [kind_of(part) for part in MENU["probes"]]
    seen = training(model, *kinds)
    assert [record for record in seen if isinstance(record, Remark)] == []
    assert {record.probe for record in seen if isinstance(record, Reading)} == set(kinds)
    assert list(of_the_training(seen)) == list(of_the_training(training(model)))


def test_the_walk_sees_every_tensor_that_a_training_has():
    told = list(of_the_training(training("vgg, batch")))
    names = {item[1] for item in told if item[0] == STEPS}
    for start in ("model.", "optimizer.", "learner.ema.", "rng.", "next.loss"):
        assert any(name.startswith(start) for name in names), start
    assert {"train/loss", "test/loss", "test/loss_ema"} <= {item.key for item in told if hasattr(item, "key")}
