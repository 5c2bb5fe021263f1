"""Evaluation against the test set in one piece."""

import pytest
import torch
from torch.nn import functional

from normcore.evaluation import evaluate
from normcore.learner import Learner
from normcore.spec import JobSpec


@pytest.fixture
def learner(folders):
    spec = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "noise": {"kind": "santurkar"}}
    return Learner(JobSpec.model_validate(spec), torch.device("cpu"), folders)


def test_loss_and_accuracy_are_those_of_the_whole_test_set(learner):
    learner.forward(1)
    found = evaluate(learner, learner.data.test_batches())
    learner.model.eval()
    logits = learner.model(learner.data.normalization(learner.data.test_inputs))
    loss = functional.cross_entropy(logits.double(), learner.data.test_labels)
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    assert found.accuracy == (logits.argmax(1) == learner.data.test_labels).sum().item() / 360


def test_the_model_is_in_training_again_and_its_statistics_as_before(learner):
    before = {name: buffer.clone() for name, buffer in learner.model.named_buffers()}
    evaluate(learner, learner.data.test_batches())
    assert all(module.training for module in learner.model.modules())
    assert all(torch.equal(before[name], buffer) for name, buffer in learner.model.named_buffers())
