from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normcore import learner
from normcore.build import build_model
from normcore.learner import Learner
from normcore.records import Checkpoint
from normcore.spec import JobSpec
from normcore.train import train
from normcore.weights.weight_norm import WeightNorm, apply, initialize_from_data

LAYERS = [partial(nn.Linear, 5, 3), partial(nn.Conv2d, 4, 6, 3, groups=2)]
VGG = {"kind": "vgg", "width": 0.0625}


def job(**parts):
    weight = {"kind": "weight_norm", "data_dependent_init": True}
    least = {"model": VGG, "data": {"kind": "digits"}, "norm": {"kind": "none"}, "weight": weight, "batch_size": 16}
    return JobSpec.model_validate(least | parts)


@pytest.mark.parametrize("make", LAYERS)
def test_equals_torch_in_value_and_gradients(make):
    torch.manual_seed(0)
    layer = make().double()
    ours = WeightNorm(layer.weight)
    torchs = parametrizations.weight_norm(layer, dim=0).parametrizations.weight
    gain, v = torch.rand(layer.weight.shape[0], dtype=torch.float64), torch.randn_like(torchs.original1)
    weight = v.clone().requires_grad_()
    with torch.no_grad():
        ours.gain.copy_(gain)
        torchs.original0.copy_(gain.view_as(torchs.original0))
        torchs.original1.copy_(v)
    probe = torch.randn_like(v)
    torch.testing.assert_close(ours(weight), layer.weight)
    (ours(weight) * probe).tanh().sum().backward()
    (layer.weight * probe).tanh().sum().backward()
    torch.testing.assert_close(weight.grad, torchs.original1.grad)
    torch.testing.assert_close(ours.gain.grad, torchs.original0.grad.flatten())


def test_a_layer_starts_as_it_was():
    layer, x = nn.Conv2d(3, 4, 3).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    y = layer(x)
    apply(nn.Sequential(layer))
    torch.testing.assert_close(layer(x), y)


def outputs_of_maps(model, run):
    seen = []
    handles = [
        module.register_forward_hook(lambda *call: seen.append(call[-1]))
        for path, module in model.named_modules()
        if path.endswith(("conv", "linear"))
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("model", [VGG, {"kind": "mlp", "hidden": [12, 8, 4]}], ids=lambda model: model["kind"])
def test_each_unit_starts_with_mean_zero_and_variance_one_on_the_first_batch(model):
    trained = Learner(job(model=model, precision="float64"), torch.device("cpu"))
    trained.begin()
    seen = outputs_of_maps(trained.model, trained.replay(1))
    assert len(seen) == 8 if model is VGG else 3
    for y in seen:
        values = y.transpose(0, 1).flatten(1)
        alive = values.std(1, correction=0) > 0
        assert alive.any()
        assert values.mean(1)[alive].abs().max() < 1e-10
        torch.testing.assert_close(values.var(1, correction=0)[alive], torch.ones_like(values[alive, 0]))


def test_only_lengths_and_biases_are_chosen_and_only_where_it_was_asked_for():
    for asked in (True, False):
        spec = job(weight={"kind": "weight_norm", "data_dependent_init": asked}, norm={"kind": "batch"})
        trained = Learner(spec, torch.device("cpu"))
        trained.begin()
        before, after = build_model(spec).state_dict(), trained.model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        chosen = {name for name in before if name.startswith("blocks") and name.endswith((".gain", "conv.bias"))}
        assert changed == (chosen if asked else set())


def test_a_unit_whose_output_is_constant_keeps_what_it_had():
    model = nn.Sequential(nn.Linear(2, 3))
    apply(model, data_dependent_init=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize_from_data(model, lambda: model(torch.ones(8, 2)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_units_of_a_linear_map_along_a_sequence_are_its_last_dimension():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5)), 2 + torch.randn(6, 4, 3)
    apply(model, data_dependent_init=True)
    initialize_from_data(model, lambda: model(x))
    y = model(x).detach().flatten(0, 1)
    torch.testing.assert_close(y.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(5))


def test_a_training_that_goes_on_does_not_begin_again(monkeypatch):
    spec = job(model={"kind": "mlp", "hidden": [4]}, steps=2, checkpoint_every=1)
    begun = []
    monkeypatch.setattr(learner, "initialize_from_data", lambda *called: begun.append(called))
    first = next(record for record in train(spec) if isinstance(record, Checkpoint))
    assert len(begun) == 1
    list(train(spec, resume=first.snapshot))
    assert len(begun) == 1
