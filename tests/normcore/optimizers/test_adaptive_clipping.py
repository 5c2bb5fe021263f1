import math
from typing import Any

import pytest
import torch
from torch import nn

from normcore.learner import Learner
from normcore.optimizers.adaptive_clipping import AdaptiveClipping
from normcore.records import Checkpoint, Reading
from normcore.spec import JobSpec
from normcore.train import train
from tests.normcore.test_resume import assert_goes_on_like, through_the_wire, without_figures


def learner_of(**changes: Any) -> Learner:
    spec = {"model": {"kind": "vgg", "width": 0.0625}, "data": {"kind": "digits"}, "batch_size": 4}
    return Learner(JobSpec.model_validate(spec | changes), torch.device("cpu"))


def twin(weight, gradient, clipping):
    """Equation 3 of the paper, unit by unit, with plain numbers."""
    units = zip(weight, gradient, strict=True) if weight.dim() > 1 else [(weight, gradient)]
    out = []
    for w, g in units:
        w_norm, g_norm = (math.sqrt(sum(x * x for x in t.flatten().tolist())) for t in (w, g))
        limit = clipping * max(w_norm, 1e-3)
        out.append(g * (limit / g_norm) if g_norm > limit else g)
    return torch.stack(out) if weight.dim() > 1 else out[0]


class Net(nn.Module):
    """A layer of every sort, some weights at zero, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.classifier = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6, 5), nn.Linear(5, 3)
        self.scalar = nn.Parameter(torch.tensor(2.0))
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.linear.weight[0])


def net(scale: float) -> Net:
    torch.manual_seed(0)
    model = Net().double().to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("clipping", [0.01, 0.7])
@pytest.mark.parametrize("scale", [1e-4, 0.05, 3.0])
def test_is_the_papers_formula_unit_by_unit(clipping, scale):
    model = net(scale)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    AdaptiveClipping(model, clipping).clip()
    for name, parameter in model.named_parameters():
        expected = before[name] if name.startswith("classifier") else twin(parameter.detach(), before[name], clipping)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=0)


def test_gradients_within_the_limit_keep_their_bits():
    model = net(1.0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    AdaptiveClipping(model, 1e6).clip()
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


def test_gradients_that_are_zero_or_missing_stay_so():
    model = net(0.0)
    model.conv.weight.grad = None
    AdaptiveClipping(model, 0.01).clip()
    assert model.conv.weight.grad is None
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_update_is_that_of_the_clipped_gradients(kind):
    optimizer = {"kind": kind, "adaptive_clipping": 0.02}
    clipped, plain = learner_of(optimizer=optimizer), learner_of(optimizer={"kind": kind})
    for learner in (clipped, plain):
        loss, _, _ = learner.forward(1)
        learner.backward(loss)
    lengths = {}
    for name, parameter in plain.model.named_parameters():
        if not name.startswith("classifier"):
            length = parameter.grad.norm()
            parameter.grad.copy_(twin(parameter.detach(), parameter.grad, 0.02))
            lengths[name] = parameter.grad.norm() / length
    assert min(lengths.values()) < 0.5
    for learner in (clipped, plain):
        learner.update(loss, 0.1)
    for ours, theirs in zip(clipped.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


SPEC = {
    "model": {"kind": "mlp", "hidden": [12, 8]},
    "data": {"kind": "digits", "size": 8},
    "weight": {"kind": "scaled"},
    "optimizer": {"kind": "sgd", "momentum": 0.9, "adaptive_clipping": 0.01},
    "probes": [{"kind": "landscape", "every": 1, "points": 3}],
    "batch_size": 32,
    "steps": 5,
    "checkpoint_every": 3,
    "deterministic": True,
}


def test_a_training_that_clips_resumes_bit_for_bit():
    spec = JobSpec.model_validate(SPEC)
    whole = without_figures(train(spec))
    middle = next(record.snapshot for record in whole if isinstance(record, Checkpoint))
    assert_goes_on_like(whole, spec, None, through_the_wire(middle))


def test_a_probe_sees_the_gradient_before_it_is_clipped():
    unclipped = SPEC | {"optimizer": {"kind": "sgd", "momentum": 0.9}}
    first, second = (
        [record for record in without_figures(train(JobSpec.model_validate(spec))) if isinstance(record, Reading)]
        for spec in (SPEC, unclipped)
    )
    assert first[0] == second[0]
    assert first[1] != second[1]
