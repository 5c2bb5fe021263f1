import itertools

import pytest
import torch
from torch import nn

from normcore.models.vgg import Vgg
from normcore.noise.none import NoNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.none import NoNorm
from normcore.refusal import Refusal


def vgg(shape=(3, 32, 32), norm=NoNorm, **knobs) -> Vgg:
    return Vgg(shape, 10, norm=norm, noise=NoNoise, seed=0, **knobs)


@pytest.mark.parametrize(
    ("depth", "rows"),
    [
        (11, "64 M 128 M 256 256 M 512 512 M 512 512 M"),
        (13, "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M"),
        (16, "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"),
        (19, "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M"),
    ],
)
def test_layers_are_those_of_table_1_of_the_paper(depth, rows):
    model = vgg(depth=depth, device="meta")
    parts = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    assert " ".join("M" if isinstance(m, nn.MaxPool2d) else str(m.out_channels) for m in parts) == rows
    assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) for m in parts if isinstance(m, nn.Conv2d))


def test_number_of_parameters_of_vgg11_with_batch_norm_for_cifar10():
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convs = sum(9 * a * b + b for a, b in itertools.pairwise(channels))
    model = vgg(norm=BatchNorm, device="meta")
    assert sum(p.numel() for p in model.parameters()) == convs + 2 * sum(channels[1:]) + 512 * 10 + 10


def test_is_conv_norm_activation_with_a_pooling_at_the_end_of_each_stage():
    model, x = vgg(norm=BatchNorm, width=1 / 16, depth=13), torch.randn(4, 3, 32, 32)
    h = x
    for index, block in enumerate(model.blocks):
        h = torch.relu(block.norm(nn.functional.conv2d(h, block.conv.weight, block.conv.bias, padding=1)))
        if index % 2:
            h = nn.functional.max_pool2d(h, 2)
    torch.testing.assert_close(model(x), h.flatten(1) @ model.classifier.weight.T + model.classifier.bias)


@pytest.mark.parametrize(("width", "channels"), [(0.25, 16), (0.01, 1), (0.5, 32), (0.49, 31), (2, 128)])
def test_width_multiplies_the_channels_and_leaves_at_least_one(width, channels):
    assert vgg(width=width, device="meta").blocks[0].conv.out_channels == channels


def test_larger_images_leave_more_features_to_the_classifier():
    model = vgg((1, 64, 96), width=1 / 64)
    assert model.classifier.in_features == 8 * 2 * 3
    assert model(torch.randn(2, 1, 64, 96)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 31, 32)])
def test_an_image_too_small_for_five_poolings_is_refused(shape):
    sentence = f"at least 32x32 pixels, got {shape[1]}x{shape[2]}; set data.size to 32, or take the mlp"
    with pytest.raises(Refusal, match=sentence) as refused:
        vgg(shape)
    assert refused.value.code == "image-too-small"
