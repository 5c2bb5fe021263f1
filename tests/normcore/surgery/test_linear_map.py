import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from normcore.surgery.evaluation_affine import ScaleShift
from normcore.surgery.linear_map import refused, times

GENERATOR = torch.Generator().manual_seed(0)
AFFINE = ScaleShift(*torch.randn(2, 6, generator=GENERATOR, dtype=torch.float64))

MAPS = [
    (nn.Linear(4, 6), (3, 4)),
    (nn.Conv1d(4, 6, 3), (3, 4, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (3, 4, 7, 7)),
    (nn.Conv2d(4, 6, 3, groups=2, stride=2), (3, 4, 7, 7)),
    (nn.Conv3d(2, 6, 2), (3, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, groups=2), (3, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), (3, 4, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2), (3, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 6, 2), (3, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("linear", "shape"), MAPS, ids=lambda value: str(value)[:24])
def test_a_folded_map_is_the_map_then_the_scale_and_shift(linear, shape):
    linear = linear.double()
    x = torch.randn(shape, generator=GENERATOR, dtype=torch.float64)
    y = linear(x)
    scale, shift = (t.view(-1, *(1,) * (y.dim() - 2)) for t in (AFFINE.scale, AFFINE.shift))
    torch.testing.assert_close(times(linear, AFFINE)(x), y * scale + shift, rtol=0, atol=1e-13)


def test_products_are_taken_in_float64_and_rounded_once_to_the_layer_s_dtype():
    linear = nn.Conv2d(4, 6, 3).bfloat16()
    folded = times(linear, AFFINE)
    exact = linear.weight.double() * AFFINE.scale.view(-1, 1, 1, 1)
    assert torch.equal(folded.weight, exact.bfloat16())
    assert torch.equal(folded.bias, (linear.bias.double() * AFFINE.scale + AFFINE.shift).bfloat16())


def test_memory_format_and_frozenness_are_kept_and_the_original_too():
    linear = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last).requires_grad_(requires_grad=False)
    before = linear.weight.clone()
    folded = times(linear, AFFINE)
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded.weight.requires_grad
    assert not folded.bias.requires_grad
    assert linear.bias is None
    assert torch.equal(linear.weight, before)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


def hooked() -> nn.Module:
    conv = nn.Conv2d(4, 6, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("linear", "why"),
    [
        (nn.ReLU(), "ReLU is no linear map"),
        (Standardized(4, 6, 3), "Standardized does not use its weight as it is"),
        (weight_norm(nn.Conv2d(4, 6, 3)), "its weight is parametrized"),
        (hooked(), "Conv2d carries hooks"),
        (nn.Conv2d(4, 5, 3), "Conv2d gives 5 channels and the norm takes 6"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_folded_says_why(linear, why):
    assert refused(linear, 6).startswith(why)
    assert refused(nn.Conv2d(4, 6, 3), 6) is None
