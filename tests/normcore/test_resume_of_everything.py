"""Killed at a random step, a training of whatever has a state of its own ends as if it had not been."""

import random
import signal
import subprocess
import sys

import pytest
import torch

from normcore.learner import Learner
from normcore.records import Checkpoint, Figure, Finished, Metrics, Remark
from normcore.snapshot import Past, restore, take
from normcore.spec import JobSpec
from normcore.train import train
from tests.normcore.test_resume import CLOCKS, through_the_wire
from worker.checkpoint import CorruptCheckpoint, load, save

STEPS = 6
COMMON = {
    "batch_size": 6,
    "steps": STEPS,
    "evaluate_every": 4,
    "checkpoint_every": 1,
    "record_every": 1,
    "deterministic": True,
    "schedule": {"kind": "cosine", "warmup_steps": 2},
    "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
}
IMAGES = {"kind": "digits", "size": 8, "crop_padding": 1}
MLP = {"model": {"kind": "mlp", "hidden": [8]}, "data": IMAGES, "norm": {"kind": "batch"}}
VGG = {"model": {"kind": "vgg", "width": 0.0625}, "data": {"kind": "digits"}, "norm": {"kind": "batch"}}
RESNET = {"model": {"kind": "resnet", "depth": 8, "width": 0.25}, "data": IMAGES, "norm": {"kind": "batch"}}
LSTM = {"model": {"kind": "lstm", "hidden": 6}, "data": {"kind": "digits", "arrange": "rows", "size": 8}}
TRANSFORMER = {
    "model": {"kind": "transformer", "depth": 1, "width": 8, "heads": 2},
    "data": {"kind": "digits", "arrange": "tokens"},
    "norm": {"kind": "layer"},
}
SANTURKAR = {"kind": "santurkar"}
ADAMW = {"kind": "adamw", "lr": 0.01}
MUON = {"kind": "muon", "lr": 0.02}
LANDSCAPE = {"kind": "landscape", "every": 2, "points": 3}
PLANE = {"kind": "plane", "every": 1, "points": 3, "keep": 4, "directions": "trajectory"}


def dropping(arm, **changes):
    return arm | {"model": arm["model"] | {"dropout": 0.25}} | changes


CASES = {
    "vgg, batch norm, noise, momentum, probe": VGG | {"noise": SANTURKAR, "probes": [LANDSCAPE]},
    "vgg, dropout, adamw, average": dropping(VGG, optimizer=ADAMW, ema=0.5),
    "vgg, float16": VGG | {"precision": "float16"},
    "resnet, noise, momentum": RESNET | {"noise": SANTURKAR},
    "resnet, dropout, bfloat16, average, probe": dropping(RESNET, precision="bfloat16", ema=0.9, probes=[LANDSCAPE]),
    "resnet, batch renorm": RESNET | {"norm": {"kind": "batch_renorm", "warmup_steps": 1, "r_steps": 4, "d_steps": 3}},
    "resnet, fixup": RESNET | {"norm": {"kind": "none"}, "weight": {"kind": "fixup"}},
    "lstm, batch norm, adamw": LSTM | {"norm": {"kind": "batch"}, "optimizer": ADAMW},
    "lstm, layer norm, dropout, average": dropping(LSTM, norm={"kind": "layer"}, ema=0.5),
    "lstm, tokens, float16": LSTM | {"data": TRANSFORMER["data"], "norm": {"kind": "batch"}, "precision": "float16"},
    "transformer, dropout, adamw, probe": dropping(TRANSFORMER, optimizer=ADAMW, probes=[LANDSCAPE]),
    "transformer, batch norm, muon, average": TRANSFORMER | {"norm": {"kind": "batch"}, "optimizer": MUON, "ema": 0.5},
    "transformer, float16": TRANSFORMER | {"precision": "float16"},
    "mlp, power norm, probes": MLP | {"norm": {"kind": "power", "warmup_steps": 1}, "probes": [LANDSCAPE, PLANE]},
    "mlp, whitening": MLP | {"norm": {"kind": "whitening", "channels_per_group": 4}},
    "mlp, iterative": MLP | {"norm": {"kind": "iterative", "channels_per_group": 4}},
    "mlp, ghost, adamw": MLP | {"norm": {"kind": "ghost", "virtual_batch_size": 3}, "optimizer": ADAMW},
    "mlp, spectral norm, muon": MLP | {"weight": {"kind": "spectral"}, "optimizer": MUON},
    "mlp, weight norm from data": MLP
    | {"norm": {"kind": "none"}, "weight": {"kind": "weight_norm", "data_dependent_init": True}},
    "mlp, float16, micro-batches, average": MLP | {"precision": "float16", "accumulation": 2, "ema": 0.5},
    "mlp, recomputed statistics": MLP | {"norm": {"kind": "batch", "estimator": "population"}, "noise": SANTURKAR},
    "mlp, clipped, smoothed, a step schedule": MLP
    | {
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.5, "nesterov": True, "clip_norm": 0.5},
        "label_smoothing": 0.1,
        "schedule": {"kind": "step", "milestones": [2, 4]},
    },
    "mlp, validation set": MLP | {"data": IMAGES | {"validation": 0.2}, "evaluate_every": 1},
}


def spec_of(case):
    return JobSpec.model_validate(COMMON | CASES[case])


def told(records, after=0):
    """What was told of the steps after one: every curve, reading and checkpoint, in bits, and the end."""
    for record in records:
        if isinstance(record, Metrics):
            yield from (point for point in record.points if point.key not in CLOCKS and point.step > after)
        elif isinstance(record, Checkpoint):
            tensors = record.snapshot.tensors
            bits = {
                name: (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes()) for name, tensor in tensors.items()
            }
            yield record.step, record.last, record.best, record.snapshot.facts, bits
        elif not isinstance(record, Remark | Figure):
            yield record


def of_later_steps(items, step):
    return [item for item in items if (item[0] if type(item) is tuple else item.step) > step]


def remarks_of(records):
    return [record.code for record in records if isinstance(record, Remark) and record.code.startswith("resume")]


@pytest.mark.parametrize("case", CASES)
def test_killed_at_a_random_step_it_ends_as_if_it_had_not_been(case, folders, tmp_path):
    spec = spec_of(case)
    whole = list(train(spec, folders=folders))
    killed_after = random.Random(case).randrange(1, STEPS)
    newest = next(r.snapshot for r in whole if isinstance(r, Checkpoint) and r.step == killed_after)
    torch.manual_seed(0)  # another process would not be in the same state either
    again = list(train(spec, folders=folders, resume=load(save(tmp_path, through_the_wire(newest)).path)))
    assert remarks_of(again) == ["resume_verified"]
    assert list(told(again)) == of_later_steps(told(whole), killed_after)
    assert isinstance(again[-1], Finished)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from normcore.data.folders import DataFolders
from normcore.records import Checkpoint
from normcore.spec import JobSpec
from normcore.train import train
from worker.checkpoint import save

torch.set_num_threads(int(sys.argv[5]))
folders = DataFolders(Path(sys.argv[3]), Path(sys.argv[4]), hub=False)
for record in train(JobSpec.model_validate_json(sys.argv[1]), folders=folders):
    if isinstance(record, Checkpoint):
        save(Path(sys.argv[2]), record.snapshot)
        if record.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_was_killed_and_whose_newest_checkpoint_is_torn_goes_on_from_the_one_before(folders, tmp_path):
    spec = spec_of("vgg, batch norm, noise, momentum, probe")
    where = [str(tmp_path), str(folders.data_dir), str(folders.cache_dir), str(torch.get_num_threads())]
    process = subprocess.run([sys.executable, "-c", KILLED, spec.model_dump_json(), *where], check=False)
    assert process.returncode == -signal.SIGKILL
    before, newest = sorted(tmp_path.glob("step_*"))[-2:]
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpoint, match="go on from the checkpoint before"):
        load(newest)
    again = list(train(spec, folders=folders, resume=load(before)))
    assert remarks_of(again) == ["resume_verified"]
    assert list(told(again)) == of_later_steps(told(train(spec, folders=folders)), 3)


def tensors_within(thing, path="learner", seen=None):
    """Every tensor that can be reached from a thing, by the path to it; data, which no step changes, is left out."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type) or path.endswith(tuple(FOLLOWING)):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield path, thing
    elif isinstance(thing, dict):
        for number, (key, value) in enumerate(thing.items()):
            yield from tensors_within(value, f"{path}[{key if isinstance(key, str) else number}]", seen)
    elif isinstance(thing, list | tuple | set):
        for number, value in enumerate(thing):
            yield from tensors_within(value, f"{path}[{number}]", seen)
    elif type(thing).__module__.startswith(("normcore", "torch.nn", "torch.optim")):
        yield from tensors_within(getattr(thing, "__dict__", {}), path, seen)


FOLLOWING = {
    "learner[data]": "a function of the job's seed",
    "[_one]": "one",
    "[_overflown]": "computed in each step before it is read",
    "[_blocked]": "computed in each step before it is read",
    "[found_inf]": "the same tensor",
    "[_seed]": "of noise and dropout: set at the start of each step",
    "[newton_residual]": "of a norm's own arithmetic in the last step, which is told and not gone on from",
    "[values_tracked]": "counted anew whenever statistics are gathered",
    "[positions]": "a function of the model's shape",
}
"""What need not be put back, by the end of its path, and why."""


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_that_a_learner_holds_is_put_back(case, folders):
    """So that what a training comes to hold one day cannot be forgotten in its snapshots."""
    spec = spec_of(case)
    learner = Learner(spec, torch.device("cpu"), folders)
    learner.begin()
    for step in (1, 2):
        loss, _, _ = learner.forward(step)
        learner.backward(loss)
        learner.update(loss, 0.01)
    snapshot = take(spec, 2, learner, Past())
    for parameter in learner.model.parameters():
        parameter.grad = None
    held = dict(tensors_within(learner))
    before = {path: tensor.detach().clone() for path, tensor in held.items()}
    assert len(held) > 4
    with torch.no_grad():
        for tensor in held.values():
            tensor.copy_(torch.ones_like(tensor) if tensor.dtype == torch.bool else tensor + 1)
    restore(snapshot, spec, learner)
    after = dict(tensors_within(learner))
    lost = [path for path in before if path not in after or not torch.equal(before[path], after[path])]
    assert lost == []
