"""What every weight method owes, whatever model it works on."""

import copy
import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normcore.build import build_model
from normcore.divergence import first_nonfinite_layer
from normcore.norms.norm import Norm
from normcore.optimizers.parameter_groups import parameter_groups
from normcore.records import Checkpoint, Metrics
from normcore.spec import MENU, JobSpec, kind_of
from normcore.train import train
from normcore.weights.weight import Reparametrization, maps
from tests.normcore.test_resume import assert_goes_on_like, through_the_wire, without_figures

KINDS = [kind_of(spec) for spec in MENU["weight"]]
REPARAMETRIZED = [kind for kind in KINDS if kind not in {"none", "fixup"}]
MLP = {"kind": "mlp", "hidden": [12, 8]}
VGG = {"kind": "vgg", "width": 0.0625}

every = pytest.mark.parametrize("kind", REPARAMETRIZED)


def job(kind: str, **parts: Any) -> JobSpec:
    knobs = {"data_dependent_init": True} if kind == "weight_norm" else {}
    least = {"model": MLP, "data": {"kind": "digits", "size": 32 if parts.get("model") == VGG else 8}}
    return JobSpec.model_validate(least | {"norm": {"kind": "none"}, "weight": {"kind": kind} | knobs} | parts)


def double(kind: str, layer: nn.Module, **knobs: Any) -> nn.Module:
    """A layer in float64 that the method stands on."""
    spec = next(spec for spec in MENU["weight"] if kind_of(spec) == kind)
    model = nn.Sequential(layer.double())
    spec(**knobs).part()(model, **spec(**knobs).knobs())
    return model[0]


def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 2, groups=2)


@every
@pytest.mark.parametrize("model", [MLP, VGG], ids=lambda model: model["kind"])
def test_arms_learn_from_the_same_values_and_only_the_classifier_is_left_alone(kind, model):
    plain, arm = build_model(job("none", model=model)), build_model(job(kind, model=model))
    layers = maps(arm)
    assert layers
    assert arm.classifier not in layers.values()
    for path, layer in layers.items():
        assert torch.equal(layer.parametrizations.weight.original, plain.get_submodule(path).weight)
        assert torch.equal(layer.bias, plain.get_submodule(path).bias)
    assert torch.equal(arm.classifier.weight, plain.classifier.weight)
    assert not parametrize.is_parametrized(arm.classifier)


@every
def test_a_copy_a_state_dict_and_a_functional_call_are_the_same_model(kind):
    model, x = build_model(job(kind, model=VGG)), torch.randn(3, 1, 32, 32)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    other = build_model(job(kind, model=VGG, seed=1))
    assert not torch.equal(other(x), y)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert torch.equal(torch.func.functional_call(other, tensors, (x,)), y)


@every
def test_on_the_meta_device_it_is_the_same_model_without_values(kind):
    real, meta = build_model(job(kind, model=VGG)), build_model(job(kind, model=VGG), device="meta")
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (real, meta)]
    assert shapes[0] == shapes[1]
    assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}


@every
def test_a_plain_layer_computes_the_same_once_it_is_removed(kind):
    layer = double(kind, conv())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer(x), y)


@every
def test_weights_keep_their_dtype_and_memory_format_and_are_computed_in_float32(kind):
    torch.manual_seed(0)
    layer = double(kind, nn.Conv2d(8, 4, 3))
    exact = layer.weight
    layer.to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    (method,) = layer.parametrizations.weight
    # The squares of the larger ones, some thousand, are beyond float16.
    for factor in (1e-3, 2e4):
        half = (layer.parametrizations.weight.original.detach() * factor).half()
        y = method(half)
        assert y.dtype == torch.float16
        assert y.isfinite().all()
        # Its eps or floor makes small weights smaller, all alike; their directions are the same.
        scale = 1.0 if factor > 1 else y.double().norm() / exact.norm()
        torch.testing.assert_close(y.double(), exact * scale, rtol=0.02, atol=0.02)
        assert scale > 0.01


@every
@pytest.mark.parametrize("layer", [conv, partial(nn.Linear, 5, 3)], ids=["conv", "linear"])
def test_first_and_second_derivatives_are_exact(kind, layer):
    torch.manual_seed(1)
    (method,) = double(kind, layer()).parametrizations.weight
    weight = torch.randn_like(double(kind, layer()).weight).requires_grad_()
    assert torch.autograd.gradcheck(method, weight)
    assert torch.autograd.gradgradcheck(method, weight)
    probe, direction = torch.randn_like(weight), torch.randn_like(weight)

    def loss(w):
        return (method(w) * probe).tanh().sum()

    (_, forward_over_reverse) = torch.func.jvp(torch.func.grad(loss), (weight,), (direction,))
    (grad,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    (reverse_over_reverse,) = torch.autograd.grad((grad * direction).sum(), weight)
    torch.testing.assert_close(forward_over_reverse, reverse_over_reverse)


@every
def test_the_scale_of_a_weight_is_not_seen_and_its_gradient_is_orthogonal_to_it(kind):
    """Identity 3, exact but for eps."""
    torch.manual_seed(0)
    (method,) = double(kind, nn.Linear(30, 4)).parametrizations.weight
    weight = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    rel = 1e-4 if kind == "standardized" else 1e-13
    torch.testing.assert_close(method(7.0 * weight), method(weight), rtol=rel, atol=0)
    (grad,) = torch.autograd.grad((method(weight) * torch.randn(4, 30, dtype=torch.float64)).tanh().sum(), weight)
    units = () if kind == "spectral" else (1,)
    inner = (grad * weight).sum(units) if units else (grad * weight).sum()
    assert (inner.abs() <= rel * grad.norm() * weight.norm()).all()
    assert grad.norm() > 0.01


@every
def test_torch_can_trace_and_export_it(kind):
    layer, x = double(kind, conv()), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    exported = torch.export.export(layer.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


# Standardized weights have unit variance, not unit norm: without a norm the net diverges.
LEARNING = set(itertools.product(REPARAMETRIZED, ("none", "batch"))) - {("standardized", "none")}


@pytest.mark.parametrize(("kind", "norm"), sorted(LEARNING))
def test_a_training_learns(kind, norm):
    spec = job(kind, norm={"kind": norm}, steps=40, optimizer={"kind": "sgd", "lr": 0.2})
    losses = [p.value for r in train(spec) if isinstance(r, Metrics) for p in r.points if p.key == "train/loss"]
    assert losses[-1] < 0.9 * losses[0]


MODELS = [MLP, VGG, {"kind": "resnet", "depth": 8, "width": 0.25, "activation_placement": "pre"}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["kind"])
def test_every_model_trains_with_every_method(kind, model):
    size = 32 if model == VGG else 8
    spec = job(kind, model=model, norm={"kind": "batch"}, data={"kind": "digits", "size": size}, steps=3, batch_size=16)
    losses = [p.value for r in train(spec) if isinstance(r, Metrics) for p in r.points if p.key == "train/loss"]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))


RESUMED = {
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "model": {"kind": "mlp", "hidden": [24, 16]},
    "noise": {"kind": "santurkar"},
    "norm": {"kind": "batch"},
    "optimizer": {"kind": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-3},
    "probes": [{"kind": "landscape", "every": 2, "points": 3}],
    "batch_size": 48,
    "steps": 5,
    "checkpoint_every": 3,
    "deterministic": True,
}
IN_VGG = {"model": VGG, "data": {"kind": "digits"}, "batch_size": 8, "steps": 4, "noise": {"kind": "none"}}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
@pytest.mark.parametrize("changes", [{}, IN_VGG], ids=["mlp", "vgg"])
def test_a_resumed_training_is_bit_identical_and_probes_leave_no_footprints(kind, changes):
    spec = job(kind, **RESUMED | changes)
    whole = without_figures(train(spec))
    first, *_, last = (record.snapshot for record in whole if isinstance(record, Checkpoint))
    assert first.step == 3
    assert_goes_on_like(whole, spec, None, through_the_wire(first))
    unseen = [r.snapshot for r in train(spec.model_copy(update={"probes": ()})) if isinstance(r, Checkpoint)][-1]
    seen = {name: tensor for name, tensor in last.tensors.items() if not name.startswith("readings.")}
    assert seen.keys() == unseen.tensors.keys()
    assert all(torch.equal(tensor, unseen.tensors[name]) for name, tensor in seen.items())


@every
@pytest.mark.parametrize("decay_norm_parameters", [False, True])
def test_what_a_method_learns_besides_is_decayed_only_when_asked(kind, decay_norm_parameters):
    model = build_model(job(kind, norm={"kind": "batch"}))
    groups = parameter_groups(model, 0.1, decay_norm_parameters=decay_norm_parameters)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    owners = itertools.chain.from_iterable(
        ((module, p) for p in module.parameters(recurse=False)) for module in model.modules()
    )
    for module, parameter in owners:
        spared = isinstance(module, Norm | Reparametrization) and not decay_norm_parameters
        assert (id(parameter) in decayed) is not spared


@every
def test_a_layer_that_is_not_finite_is_named_as_without_the_method(kind):
    model, x = build_model(job(kind)), torch.randn(2, 1, 8, 8)
    assert first_nonfinite_layer(model, lambda: model(x)) is None
    with torch.no_grad():
        model.blocks[1].linear.parametrizations.weight.original[0, 0] = torch.nan
    assert first_nonfinite_layer(model, lambda: model(x)) == "blocks.1.linear"


@every
@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_every_precision_trains(kind, precision):
    spec = job(kind, norm={"kind": "batch"}, steps=2, precision=precision, batch_size=8)
    *_, checkpoint, _ = train(spec)
    kept = torch.float64 if precision == "float64" else torch.float32
    assert {t.dtype for name, t in checkpoint.snapshot.tensors.items() if "parametrizations" in name} == {kept}
