import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.models.resnet import ResNet
from normcore.noise.none import NoNoise
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.group import GroupNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.none import NoNorm
from normcore.norms.norm import Norm
from normcore.records import Metrics
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.train import train


def resnet(shape=(3, 32, 32), num_classes=10, norm=NoNorm, **knobs) -> ResNet:
    return ResNet(shape, num_classes, norm=norm, noise=NoNoise, seed=0, **knobs)


def num_parameters_without_conv_biases(model):
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith("conv.bias"))


@pytest.mark.parametrize("activation_placement", ["post", "pre"])
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_numbers_of_parameters_for_cifar10_are_those_of_table_6_of_the_paper(depth, millions, activation_placement):
    model = resnet(norm=BatchNorm, depth=depth, device="meta", activation_placement=activation_placement)
    assert num_parameters_without_conv_biases(model) / 1e6 == pytest.approx(millions, rel=0.025)


@pytest.mark.parametrize(("depth", "number"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_numbers_of_parameters_for_imagenet_are_torchvisions(depth, number):
    model = resnet((3, 224, 224), 1000, norm=BatchNorm, depth=depth, stem="large", device="meta")
    assert num_parameters_without_conv_biases(model) == number


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110, 18, 34, 50])
def test_the_depth_counts_the_layers_with_weights_but_not_projections(depth):
    model = resnet(depth=depth, device="meta")
    paths = [path for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum("shortcut" not in path for path in paths) == depth
    assert any("shortcut" in path for path in paths) == (depth in {18, 34, 50})


@pytest.mark.parametrize(
    ("knobs", "sides"),
    [
        ({}, [32, 32, 16, 8]),
        ({"depth": 18}, [32, 32, 16, 8, 4]),
        ({"depth": 50}, [32, 32, 16, 8, 4]),
        ({"depth": 18, "stem": "large"}, [8, 8, 4, 2, 1]),
    ],
)
def test_each_stage_but_the_first_halves_the_side(knobs, sides):
    model, x = resnet(width=1 / 16, **knobs), torch.randn(2, 3, 32, 32)
    seen = [model.stem(x)]
    for block in model.blocks:
        seen.append(block(seen[-1]))
    assert [side for side, _ in itertools.groupby(y.shape[-1] for y in seen[1:])] == sides[1:]
    assert seen[0].shape[-1] == sides[0]


def conv(layer, x):
    return functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)


def around(block, x, after, *, projection):
    """Option A or option B of section 3.3."""
    if projection is not None:
        return projection(block, x)
    stride = x.shape[-1] // after.shape[-1]
    subsampled = x[:, :, ::stride, ::stride]
    zeros = torch.zeros(len(x), after.shape[1] - x.shape[1], *after.shape[2:], dtype=x.dtype)
    return torch.cat([subsampled, zeros], 1)


@pytest.mark.parametrize("depth", [8, 50], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["padding", "projection"])
def test_post_is_conv_norm_relu_conv_norm_add_relu(depth, shortcut):
    torch.manual_seed(0)
    knobs = {"depth": depth, "shortcut": shortcut, "width": 1 / 16, "dtype": torch.float64}
    model, x = (
        resnet(norm=partial(LayerNorm, dtype=torch.float64), **knobs),
        torch.randn(2, 3, 16, 16, dtype=torch.float64),
    )
    h = torch.relu(model.stem.norm(conv(model.stem.conv, x)))
    for block in model.blocks:
        y = h
        for index, part in enumerate(block.branch):
            y = part.norm(conv(part.conv, y))
            if index < len(block.branch) - 1:
                y = torch.relu(y)
        if y.shape != h.shape:
            project = (lambda b, v: b.shortcut.norm(conv(b.shortcut.conv, v))) if shortcut == "projection" else None
            h = around(block, h, y, projection=project)
        h = torch.relu(h + y)
    expected = h.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("depth", [8, 50], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["padding", "projection"])
def test_pre_is_norm_relu_conv_norm_relu_conv_add(depth, shortcut):
    """The appendix of the second paper: the first block shares the stem's activation, the last sum has an extra one."""
    torch.manual_seed(0)
    knobs = {"depth": depth, "shortcut": shortcut, "width": 1 / 16, "dtype": torch.float64}
    model = resnet(norm=partial(LayerNorm, dtype=torch.float64), activation_placement="pre", **knobs)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = conv(model.stem.conv, x)
    norm = model.stem.norm
    *blocks, last = model.blocks
    for index, block in enumerate(blocks):
        first = torch.relu(norm(h) if index == 0 else block.entry.norm(h))
        y = first
        for part, following in itertools.pairwise([*block.branch, None]):
            y = conv(part.conv, y)
            if following is not None:
                y = torch.relu(part.norm(y))
        if index == 0:
            h = first
        if y.shape != h.shape:
            project = (lambda b, v: conv(b.shortcut.conv, v)) if shortcut == "projection" else None
            h = around(block, first if shortcut == "projection" else h, y, projection=project)
        h = h + y
    expected = torch.relu(last.norm(h)).mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("depth", [8, 18, 50])
def test_arms_share_the_values_of_every_convolution(depth):
    knobs = {"depth": depth, "width": 1 / 16, "shortcut": "projection"}
    plain = {name: p for name, p in resnet(**knobs).named_parameters() if "norm" not in name}
    for norm, placement, noise in itertools.product((BatchNorm, NoNorm), ("post", "pre"), (NoNoise, SanturkarNoise)):
        model = ResNet((3, 32, 32), 10, norm=norm, noise=noise, seed=0, activation_placement=placement, **knobs)
        arm = dict(model.named_parameters())
        assert all(torch.equal(arm[name], value) for name, value in plain.items())
        assert all("norm" in name for name in arm.keys() - plain.keys())
        norms = [m for m in model.modules() if isinstance(m, Norm)]
        noises = [m for m in model.modules() if isinstance(m, noise)]
        assert [m.num_features for m in noises] == [m.num_features for m in norms]


def test_zero_last_gamma_starts_every_block_without_its_branch():
    model = resnet(norm=BatchNorm, depth=8, width=0.25, zero_last_gamma=True)
    x = torch.randn(4, 4, 8, 8).relu()
    assert torch.equal(model.blocks[0](x), x)
    gammas = {name: p for name, p in model.named_parameters() if name.endswith("norm.weight")}
    zero = {name for name, p in gammas.items() if not p.any()}
    assert zero == {f"blocks.{index}.branch.1.norm.weight" for index in range(3)}


@pytest.mark.parametrize("norm", [{"kind": "none"}, {"kind": "batch", "affine": False}], ids=["none", "batch"])
def test_a_norm_without_a_scale_cannot_start_it_at_zero(norm):
    job = {"model": {"kind": "resnet", "zero_last_gamma": True}, "data": {"kind": "digits"}, "norm": norm}
    with pytest.raises(ValueError, match=r"a learned scale, got norm .* without one; take a norm with affine true"):
        JobSpec.model_validate(job)


def test_zero_last_gamma_does_not_go_with_pre():
    model = {"kind": "resnet", "zero_last_gamma": True, "activation_placement": "pre"}
    with pytest.raises(ValueError, match=r"got activation_placement pre, .* a relu that would never open; take post"):
        JobSpec.model_validate({"model": model, "data": {"kind": "digits"}})


def test_a_norm_that_activates_stands_in_pre_and_is_refused_in_post():
    sentence = "got activation_placement post, where an addition stands between them; take pre"
    with pytest.raises(Refusal, match=sentence) as refused:
        resnet(norm=FilterResponseNorm, depth=8)
    assert (refused.value.code, refused.value.layer) == ("activation-after-sum", "blocks.0.branch.1.norm")
    model = resnet(norm=FilterResponseNorm, depth=8, width=0.25, activation_placement="pre")
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()
    # A norm whose non-linearity is left out is a norm as any other.
    resnet(norm=lambda channels: FilterResponseNorm(channels, tlu=False), depth=8)


def test_maps_stay_channels_last():
    model = resnet(norm=partial(GroupNorm, num_groups=4), depth=8, width=0.25).to(memory_format=torch.channels_last)
    h = model.stem(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))
    for block in model.blocks:
        h = block(h)
        assert h.is_contiguous(memory_format=torch.channels_last)


def test_an_image_smaller_than_the_strides_still_passes():
    assert resnet((1, 8, 8), depth=18, stem="large", width=1 / 16)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("activation_placement", ["post", "pre"])
def test_it_learns_digits(activation_placement):
    model = {"kind": "resnet", "depth": 8, "width": 0.25, "activation_placement": activation_placement}
    spec = {"model": model, "data": {"kind": "digits", "size": 8}, "steps": 80, "batch_size": 64}
    records = train(JobSpec.model_validate(spec | {"evaluate_every": 80, "checkpoint_every": 80}))
    points = [point for record in records if isinstance(record, Metrics) for point in record.points]
    assert [point.value for point in points if point.key == "test/accuracy"][-1] > 0.6


def test_names_tell_depth_width_and_placement():
    names = [
        JobSpec.model_validate({"model": {"kind": "resnet"} | knobs, "data": {"kind": "digits"}}).model.name
        for knobs in ({}, {"depth": 18, "width": 0.5}, {"activation_placement": "pre"})
    ]
    assert names == ["resnet20", "resnet18w0.5", "preresnet20"]


def test_a_job_builds_what_its_knobs_say():
    model = {"kind": "resnet", "depth": 18, "width": 1 / 16, "activation": "tanh", "shortcut": "padding"}
    built = build_model(JobSpec.model_validate({"model": model, "data": {"kind": "digits"}}))
    assert isinstance(built, ResNet)
    assert len(built.blocks) == 8
    assert isinstance(built.blocks[0].activation, nn.Tanh)
    assert not any("shortcut" in name for name, _ in built.named_parameters())
