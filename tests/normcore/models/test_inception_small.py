import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.models.dropout import Dropout
from normcore.models.inception_small import PLANS, InceptionSmall
from normcore.noise.none import NoNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.none import NoNorm
from normcore.preview import preview
from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.train import train


def inception(norm=NoNorm, **knobs) -> InceptionSmall:
    return InceptionSmall((3, 16, 16), 10, norm=norm, noise=NoNoise, seed=0, **knobs)


def test_blocks_give_a_quarter_of_the_channels_of_the_papers():
    made = [block.num_features for block in inception(device="meta").blocks]
    assert [4 * n for n in made] == [256, 320, 576, 576, 576, 1024, 1024, 1024]


def test_the_map_is_halved_by_the_two_blocks_without_a_1x1_branch():
    model, h = inception(width=0.125), torch.randn(2, 3, 32, 32)
    h = model.stem(h)
    sides = []
    for block in model.blocks:
        h = block(h)
        assert h.shape[1] == block.num_features
        sides.append(h.shape[-1])
    assert sides == [32, 32, 16, 16, 16, 8, 8, 8]
    assert [plan.halves for plan in PLANS] == [False, False, True, False, False, True, False, False]


@pytest.mark.parametrize("placement", ["before", "after"])
def test_is_branches_of_conv_norm_relu_side_by_side(placement):
    def norm(channels):
        return LayerNorm(channels, dtype=torch.float64)

    model = inception(norm, width=0.25, norm_placement=placement, dtype=torch.float64)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def site(part, h, stride=1):
        h = functional.conv2d(h, part.conv.weight, part.conv.bias, stride, part.conv.weight.shape[-1] // 2)
        return part.norm(h).relu() if placement == "before" else part.norm(h.relu())

    h = site(model.stem, x)
    for number, block in enumerate(model.blocks):
        b, stride = block.branches, 2 if number in {2, 5} else 1
        three = site(b["three"][1], site(b["three"][0], h), stride)
        double = site(b["five"][2], site(b["five"][1], site(b["five"][0], h)), stride)
        if stride == 2:
            h = torch.cat([three, double, functional.max_pool2d(h, 3, 2, 1)], 1)
        else:
            pool = functional.max_pool2d if number == 7 else functional.avg_pool2d
            h = torch.cat([site(b["one"], h), three, double, site(b["project"][1], pool(h, 3, 1, 1))], 1)
    torch.testing.assert_close(model(x), h.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias)


def test_arms_share_the_values_of_every_convolution_and_dropout_adds_none():
    plain = dict(inception(width=0.25).named_parameters())
    arm = dict(inception(BatchNorm, width=0.25, dropout=0.5).named_parameters())
    assert all(torch.equal(arm[name], value) for name, value in plain.items())
    assert all("norm" in name for name in arm.keys() - plain.keys())


def test_dropout_stands_before_the_classifier_alone():
    model = inception(width=0.25, dropout=0.5)
    assert [path for path, m in model.named_modules() if isinstance(m, Dropout)] == ["dropout"]
    assert not any(isinstance(m, Dropout) for m in inception(width=0.25).modules())
    with pytest.raises(RuntimeError, match="must know its step"):
        model(torch.randn(2, 3, 16, 16))


def test_norms_that_hold_their_own_non_linearity_stand_after_every_convolution():
    model = inception(FilterResponseNorm, width=0.25)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_job_learns():
    model = {"kind": "inception_small", "width": 0.25, "dropout": 0.1}
    job = {"model": model, "data": {"kind": "digits", "size": 8}, "steps": 40, "batch_size": 64}
    spec = JobSpec.model_validate(job)
    assert not preview(spec).reasons
    points = [p for record in train(spec) if isinstance(record, Metrics) for p in record.points if p.step == 40]
    assert {p.key: p.value for p in points}["test/accuracy"] > 0.5
