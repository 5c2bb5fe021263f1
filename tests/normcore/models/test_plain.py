import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.models.plain import Plain
from normcore.models.resnet import ResNet
from normcore.noise.none import NoNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.none import NoNorm
from normcore.records import Metrics
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.train import train


def plain(shape=(3, 32, 32), norm=NoNorm, **knobs) -> Plain:
    return Plain(shape, 10, norm=norm, noise=NoNoise, seed=0, **knobs)


@pytest.mark.parametrize("depth", [8, 18, 50])
@pytest.mark.parametrize("norm", [NoNorm, BatchNorm])
def test_shares_every_initial_value_with_the_resnet_of_the_same_depth_bit_for_bit(depth, norm):
    knobs = {"depth": depth, "width": 1 / 16}
    mine = dict(plain(norm=norm, **knobs).named_parameters())
    theirs = ResNet((3, 32, 32), 10, norm=norm, noise=NoNoise, seed=0, shortcut="padding", **knobs)
    assert list(mine) == [name for name, _ in theirs.named_parameters()]
    assert all(torch.equal(mine[name], value) for name, value in theirs.named_parameters())


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110, 18, 34, 50])
def test_the_depth_counts_the_layers_with_weights(depth):
    layers = [m for m in plain(depth=depth, device="meta").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [8, 50], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_is_one_row_of_conv_norm_relu_then_a_mean_and_a_linear_classifier(depth, placement):
    def norm(channels):
        return LayerNorm(channels, dtype=torch.float64)

    model = plain(norm=norm, depth=depth, width=1 / 16, norm_placement=placement, dtype=torch.float64)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = x
    for part in (model.stem, *(part for block in model.blocks for part in block.branch)):
        conv = part.conv
        h = functional.conv2d(h, conv.weight, conv.bias, conv.stride, conv.padding)
        h = part.norm(h).relu() if placement == "before" else part.norm(h.relu())
    expected = h.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected)


def test_norms_that_hold_their_own_non_linearity_stand_after_every_convolution():
    model = plain(norm=FilterResponseNorm, depth=8, width=0.25)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert sum(isinstance(m, FilterResponseNorm) for m in model.modules()) == 7
    with pytest.raises(Refusal, match="got activation tanh with norm_placement before"):
        plain(norm=FilterResponseNorm, depth=8, activation="tanh")


def test_signals_die_with_depth_where_no_shortcut_carries_them():
    """Every relu of a net drawn with glorot halves the mean square; a shortcut keeps what it is given."""
    knobs = {"depth": 56, "width": 0.25, "init": "glorot"}
    x = torch.randn(4, 3, 16, 16)
    around = ResNet((3, 16, 16), 10, norm=NoNorm, noise=NoNoise, seed=0, **knobs)
    assert plain((3, 16, 16), **knobs)(x).square().mean() < 1e-9 * around(x).square().mean()


def test_fixup_is_refused_as_there_are_no_branches():
    spec = JobSpec.model_validate(
        {"model": {"kind": "plain"}, "data": {"kind": "digits"}, "norm": {"kind": "none"}, "weight": {"kind": "fixup"}}
    )
    with pytest.raises(Refusal, match="got a plain net, which has none; take the resnet of") as refused:
        build_model(spec, device="meta")
    assert refused.value.code == "no-branches"


def test_a_job_learns():
    model = {"kind": "plain", "depth": 8, "width": 0.25}
    job = {"model": model, "data": {"kind": "digits", "size": 16}, "steps": 40, "batch_size": 64, "record_every": 40}
    records = train(JobSpec.model_validate(job))
    points = [p for record in records if isinstance(record, Metrics) for p in record.points if p.step == 40]
    accuracy = {p.key: p.value for p in points}["test/accuracy"]
    assert accuracy > 0.5
