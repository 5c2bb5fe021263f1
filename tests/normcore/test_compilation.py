"""Trainings that compile, and those that say why they do not."""

import shutil

import pytest
import torch

from normcore.compilation import Compiled
from normcore.divergence import first_nonfinite_layer
from normcore.learner import Learner
from normcore.records import Checkpoint, Metrics, Remark
from normcore.spec import JobSpec
from normcore.statistics import recompute_statistics
from normcore.train import train
from tests.normcore.test_resume import assert_goes_on_like, through_the_wire, without_figures

SPEC = {
    "model": {"kind": "mlp", "hidden": [12]},
    "data": {"kind": "digits", "size": 8},
    "batch_size": 32,
    "steps": 6,
    "checkpoint_every": 3,
    "deterministic": True,
    "compile": True,
}


def learner_of(folders, backend="aot_eager", **changes):
    learner = Learner(JobSpec.model_validate(SPEC | changes), torch.device("cpu"), folders)
    learner._compiled = Compiled(learner.model, backend)
    return learner


def step(learner, number):
    loss, _, _ = learner.forward(number)
    learner.backward(loss)
    learner.update(loss, 0.1)
    return loss


def test_compiling_leaves_no_trace_and_keeps_the_names(folders):
    learner = learner_of(folders)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    (remark,) = learner.compile(0)
    assert remark.code == "compiled"
    assert before.keys() == learner.model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())
    assert learner._compiled.callable() is not learner.model


def test_a_compiled_training_is_the_training(folders):
    plain = Learner(JobSpec.model_validate(SPEC | {"compile": False}), torch.device("cpu"), folders)
    learner = learner_of(folders)
    list(learner.compile(0))
    for number in range(1, 4):
        torch.testing.assert_close(step(learner, number), step(plain, number))
    for ours, theirs in zip(learner.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_hooks_are_called_all_the_same(folders):
    learner = learner_of(folders)
    list(learner.compile(0))
    step(learner, 1)
    assert recompute_statistics(learner.model, [1], infer=lambda number: learner.replay(number)()).layers
    torch.nn.init.constant_(learner.model.blocks[0].linear.weight, torch.inf)
    assert first_nonfinite_layer(learner.model, learner.replay(2)) == "blocks.0.linear"


def test_what_the_compiler_refuses_trains_uncompiled_and_is_remarked(folders):
    def refusing(*_):
        raise NotImplementedError("no such\ninstruction")

    learner = learner_of(folders, refusing)
    (remark,) = learner.compile(4)
    assert (remark.step, remark.code) == (4, "compile-fell-back")
    assert "no such" in remark.detail
    assert "\n" not in remark.detail
    assert learner._compiled.callable() is learner.model
    assert step(learner, 1).isfinite()


@pytest.mark.parametrize(
    "said",
    [
        "No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')",
        "Failed to find C compiler. Please specify via CC environment variable",
    ],
)
def test_where_there_is_no_compiler_the_remark_says_what_to_install(folders, said):
    def refusing(*_):
        raise RuntimeError(said)

    (remark,) = learner_of(folders, refusing).compile(0)
    assert said in remark.detail
    assert remark.detail.endswith(
        "; install g++ where the worker runs, which Docker's image leaves out, or leave compile out"
    )


def test_layers_that_draw_are_not_compiled(folders):
    noisy = JobSpec.model_validate(SPEC | {"noise": {"kind": "santurkar"}, "steps": 1})
    (remark,) = [record for record in train(noisy, folders=folders) if isinstance(record, Remark)]
    assert remark.code == "compile-fell-back"
    assert remark.detail.endswith("its layers SanturkarNoise draw other numbers each step")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_a_compiled_training_resumes_bit_for_bit(folders):
    spec = JobSpec.model_validate(SPEC | {"probes": [{"kind": "landscape", "every": 2, "points": 3}]})
    whole = without_figures(train(spec, folders=folders))
    assert [record.code for record in whole if isinstance(record, Remark)] == ["compiled"]
    middle = next(record.snapshot for record in whole if isinstance(record, Checkpoint))
    assert_goes_on_like(whole, spec, folders, through_the_wire(middle))
    points = [point for record in whole if isinstance(record, Metrics) for point in record.points]
    assert [point.step for point in points if point.key == "train/loss"] == [1, 2, 3, 4, 5, 6]
