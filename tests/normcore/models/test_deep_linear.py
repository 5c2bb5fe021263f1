import math
from functools import reduce

import pytest
import torch

from normcore.build import build_model
from normcore.models.deep_linear import DeepLinear
from normcore.noise.none import NoNoise
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.evonorm_s0 import EvoNormS0
from normcore.norms.none import NoNorm
from normcore.preview import preview
from normcore.records import Metrics
from normcore.refusal import Refusal
from normcore.spec import MENU, JobSpec, kind_of
from normcore.train import train


def net(norm=NoNorm, **knobs) -> DeepLinear:
    return DeepLinear((10,), 10, norm=norm, noise=NoNoise, seed=0, dtype=torch.float64, **knobs)


def test_without_a_norm_it_is_the_product_of_its_25_matrices():
    model, x = net(), torch.randn(7, 10, dtype=torch.float64)
    weights = [p for p in model.parameters() if p.requires_grad]
    assert [w.shape for w in weights] == [(10, 10)] * 25
    product = reduce(lambda below, w: w @ below, weights)
    torch.testing.assert_close(model(x), x @ product.T)


def test_norms_and_noises_stand_after_all_but_the_last_layer():
    model = DeepLinear((10,), 10, norm=BatchNorm, noise=SanturkarNoise, seed=0, depth=3)
    assert [[name for name, _ in block.named_children()] for block in model.blocks] == [["linear", "norm", "noise"]] * 2
    quiet, x = net(norm=lambda n: BatchNorm(n, dtype=torch.float64), depth=3), torch.randn(50, 10, dtype=torch.float64)
    h = x
    for block in quiet.blocks:
        h = h @ block.linear.weight.T
        h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(quiet(x), h @ quiet.classifier.weight.T)


def test_arms_share_glorots_uniform_weights():
    one, other = net(), net(norm=BatchNorm)
    assert all(torch.equal(one.blocks[i].linear.weight, other.blocks[i].linear.weight) for i in range(24))
    values = torch.cat([w.flatten() for w in one.parameters()])
    bound = math.sqrt(6 / 20)
    assert 0.99 * bound < values.abs().max() <= bound
    torch.testing.assert_close(values.var().item(), bound**2 / 3, rtol=0.06, atol=0)


@pytest.mark.parametrize(("shape", "num_outputs"), [((8,), 8), ((10,), 8)])
def test_data_of_another_size_are_refused(shape, num_outputs):
    sentence = f"got width 10, vectors of {shape[0]} and targets of {num_outputs}; set width to the data's size"
    with pytest.raises(Refusal, match=sentence) as refused:
        DeepLinear(shape, num_outputs, norm=NoNorm, noise=NoNoise, seed=0)
    assert refused.value.code == "layers-are-square"


def test_a_norm_with_a_non_linearity_is_refused():
    with pytest.raises(Refusal, match="has no activations, got EvoNormS0, which holds its own") as refused:
        net(norm=lambda n: EvoNormS0(n, num_groups=2))
    assert (refused.value.code, refused.value.layer) == ("no-activation-to-replace", "blocks.0.norm")


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_loss_of_the_papers_regression_falls_in_float64(norm):
    job = {
        "model": {"kind": "deep_linear"},
        "data": {"kind": "gaussian"},
        "norm": {"kind": norm},
        "precision": "float64",
        "batch_size": 1000,
        "optimizer": {"kind": "sgd", "lr": 1e-6, "momentum": 0.0},
        "steps": 60,
        "evaluate_every": 60,
    }
    spec = JobSpec.model_validate(job)
    assert not preview(spec).reasons
    points = [p for record in train(spec) if isinstance(record, Metrics) for p in record.points]
    losses = [p.value for p in points if p.key == "train/loss"]
    # E |Ax|^2 summed over 1000 samples of 10 targets, each a sum of 10 products of standard normal numbers.
    assert 0.5e5 < losses[0] < 2e5
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("weight", [kind_of(spec) for spec in MENU["weight"]])
def test_it_takes_every_weight_method(weight):
    job = {"model": {"kind": "deep_linear", "depth": 4}, "data": {"kind": "gaussian"}, "norm": {"kind": "none"}}
    model = build_model(JobSpec.model_validate(job | {"weight": {"kind": weight}}))
    model(torch.randn(5, 10)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
