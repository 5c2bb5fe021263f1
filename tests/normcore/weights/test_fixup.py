import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.learner import Learner
from normcore.models.residual import ResidualBlock
from normcore.optimizers.parameter_groups import parameter_groups
from normcore.records import Checkpoint, Metrics
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.train import train
from normcore.weights.fixup import Scalar, ScalarBias, ScalarMultiplier
from normcore.weights.weight import maps
from tests.normcore.test_resume import assert_goes_on_like, through_the_wire, without_figures

BASIC = {"kind": "resnet", "depth": 8, "width": 0.25}
BOTTLENECK = {"kind": "resnet", "depth": 50, "width": 1 / 32}
FLAT = [{"kind": "mlp", "hidden": [12, 8], "init": "he"}, {"kind": "vgg", "width": 0.0625, "init": "he"}]
RESIDUAL = [
    model | {"activation_placement": placement} for model in (BASIC, BOTTLENECK) for placement in ("post", "pre")
]


def name_of(model):
    return JobSpec.model_validate({"model": model, "data": {"kind": "digits"}}).model.name


def job(model, weight="fixup", **parts):
    least = {"model": model, "data": {"kind": "digits"}, "norm": {"kind": "none"}, "weight": {"kind": weight}}
    return JobSpec.model_validate(least | {"batch_size": 8} | parts)


def blocks_of(model):
    return [module for module in model.modules() if isinstance(module, ResidualBlock)]


@pytest.mark.parametrize("model", [*RESIDUAL, *FLAT], ids=name_of)
def test_at_the_start_branches_and_logits_are_zero_and_the_loss_is_the_logarithm_of_the_classes(model):
    """Identity 11."""
    net, x = build_model(job(model)), torch.randn(8, 1, 32, 32)
    seen = []
    for block in blocks_of(net):
        block.branch.register_forward_hook(lambda *call: seen.append(call[-1]))
    logits = net(x)
    assert len(seen) == len(blocks_of(net))
    assert not any(y.any() for y in seen)
    assert not logits.any()
    assert functional.cross_entropy(logits, torch.arange(8)).item() == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("model", [*RESIDUAL, *FLAT], ids=name_of)
def test_weights_are_those_of_the_other_arms_by_the_papers_factors(model):
    plain, net = build_model(job(model, "none")), build_model(job(model))
    scaled, zero = {}, set()
    for path, block in net.named_modules():
        if isinstance(block, ResidualBlock):
            *first, last = maps(block.branch)
            factor = len(blocks_of(net)) ** (-1 / (2 * len(first)))
            scaled |= {f"{path}.branch.{name}": factor for name in first}
            zero.add(f"{path}.branch.{last}")
    assert {round(factor, 9) for factor in scaled.values()} <= {round(3**-0.5, 9), round(16**-0.25, 9)}
    assert len(zero) == len(blocks_of(net))
    for path, layer in maps(net).items():
        drawn = plain.get_submodule(path).weight
        expected = drawn * (0.0 if path in zero else scaled.get(path, 1.0))
        torch.testing.assert_close(layer.weight, expected, rtol=1e-6, atol=0)
        assert layer.bias is None
    assert not any(parameter.any() for parameter in net.classifier.parameters())


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_there_is_a_number_before_each_map_and_activation_and_one_times_each_branch(placement):
    net = build_model(job(BASIC | {"activation_placement": placement, "shortcut": "projection"}))
    scalars = [module for module in net.modules() if isinstance(module, ScalarBias)]
    places = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.ReLU)]
    assert len(scalars) == len(places) == 17
    assert sum(isinstance(module, ScalarMultiplier) for module in net.modules()) == 3
    assert all(parameter.dim() == 0 for module in scalars for parameter in module.parameters())


def moved(model):
    """A net in float64 whose every parameter is somewhere else than at its start."""
    net = build_model(job(model, precision="float64"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def conv(part, x):
    layer = part.conv
    return functional.conv2d(x + part.before_conv.bias, layer.weight, None, layer.stride, layer.padding)


def test_a_block_after_the_paper_is_figure_1_of_it():
    torch.manual_seed(0)
    net, h = moved(BASIC), torch.randn(2, 4, 8, 8, dtype=torch.float64).relu()
    for block in net.blocks[:3]:
        first, second = block.branch
        y = torch.relu(conv(first, h) + first.before_activation.bias)
        y = conv(second, y) * second.multiplier.scale + second.before_activation.bias
        around = h
        if y.shape != h.shape:
            subsampled = h[:, :, ::2, ::2]
            around = torch.cat([subsampled, torch.zeros_like(subsampled)], 1)
        y = torch.relu(around + y)
        torch.testing.assert_close(block(h), y)
        h = y


def test_a_block_with_activations_first_has_the_same_numbers_in_other_places():
    torch.manual_seed(0)
    net, h = moved(BASIC | {"activation_placement": "pre"}), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    h = net.blocks[0](h)
    block = net.blocks[1]
    first, second = block.branch
    y = torch.relu(h + block.entry.before_activation.bias)
    y = conv(second, torch.relu(conv(first, y) + first.before_activation.bias)) * second.multiplier.scale
    subsampled = h[:, :, ::2, ::2]
    torch.testing.assert_close(block(h), y + torch.cat([subsampled, torch.zeros_like(subsampled)], 1))


@pytest.mark.parametrize("model", [BASIC, *FLAT], ids=name_of)
def test_the_number_before_the_classifier_is_added_to_each_of_its_inputs(model):
    net, x = moved(model), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    seen = []
    net.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(x)
    bias = net.blocks.before_classifier.bias.clone()
    nn.init.zeros_(net.blocks.before_classifier.bias)
    net(x)
    torch.testing.assert_close(seen[0], seen[1] + bias)


def test_numbers_learn_at_a_tenth_of_the_lr_and_are_not_decayed():
    spec = job(BASIC, optimizer={"kind": "sgd", "weight_decay": 0.1})
    learner = Learner(spec, torch.device("cpu"))
    with torch.no_grad():
        learner.model.classifier.weight.normal_()
    scalars = {id(p) for m in learner.model.modules() if isinstance(m, Scalar) for p in m.parameters()}
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    loss, _, _ = learner.forward(1)
    learner.backward(loss)
    learner.update(loss, 0.2)
    moved_scalars = 0
    for parameter, start in zip(learner.model.parameters(), before, strict=True):
        is_scalar = id(parameter) in scalars
        step = 0.02 * parameter.grad if is_scalar else 0.2 * (parameter.grad + 0.1 * start)
        torch.testing.assert_close(parameter.detach(), start - step)
        moved_scalars += is_scalar and bool(parameter.grad)
    assert moved_scalars > 2
    decayed = parameter_groups(learner.model, 0.1, decay_norm_parameters=True)
    assert sorted((g["weight_decay"], g["lr_multiple"]) for g in decayed) == [(0.1, 0.1), (0.1, 1.0)]


def test_a_norm_after_zeros_is_refused_and_one_before_them_is_not():
    sentence = "no norm may follow it, got BatchNorm; take norm none, or activation_placement pre"
    with pytest.raises(Refusal, match=sentence) as refused:
        build_model(job(BASIC, norm={"kind": "batch"}))
    assert (refused.value.code, refused.value.layer) == ("norm-after-zero", "blocks.0.branch.1.norm")
    build_model(job(BASIC | {"activation_placement": "pre"}, norm={"kind": "batch"}))
    build_model(job(FLAT[1], norm={"kind": "batch"}))


def test_it_is_copied_traced_and_exported_as_any_model():
    net, x = build_model(job(BASIC)), torch.randn(2, 1, 16, 16)
    nn.init.normal_(net.classifier.weight)
    y = net(x)
    assert torch.equal(copy.deepcopy(net)(x), y)
    other = build_model(job(BASIC, seed=1))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), y)
    assert torch.equal(torch.func.functional_call(other, dict(net.named_parameters()), (x,)), y)
    torch.testing.assert_close(torch.export.export(net.eval(), (x,)).module()(x), y)
    meta = build_model(job(BASIC), device="meta").state_dict()
    assert {name: t.shape for name, t in meta.items()} == {name: t.shape for name, t in net.state_dict().items()}


def test_a_deep_net_without_norms_learns_with_it_and_not_without():
    model = {"kind": "resnet", "depth": 20, "width": 0.25}
    last = {}
    for weight in ("none", "fixup"):
        spec = job(model, weight, data={"kind": "digits", "size": 8}, steps=70, batch_size=32)
        spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"momentum": 0.9})})
        losses = [p.value for r in train(spec) if isinstance(r, Metrics) for p in r.points if p.key == "train/loss"]
        last[weight] = sum(losses[-5:]) / 5
    assert last["none"] > 2.2
    assert last["fixup"] < 1.5


def test_a_resumed_residual_net_is_bit_identical():
    probes = [{"kind": "landscape", "every": 2, "points": 2}]
    knobs = {"steps": 4, "checkpoint_every": 2, "deterministic": True, "probes": probes}
    spec = job(BASIC, data={"kind": "digits", "size": 8}, **knobs)
    whole = without_figures(train(spec))
    middle = next(record.snapshot for record in whole if isinstance(record, Checkpoint))
    assert middle.step == 2
    assert_goes_on_like(whole, spec, None, through_the_wire(middle))
