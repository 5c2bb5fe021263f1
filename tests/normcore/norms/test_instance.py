import pytest
import torch
from torch import nn

from normcore.norms.instance import InstanceNorm
from normcore.refusal import Refusal


def test_equals_torch_in_training_and_in_evaluation():
    x = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = InstanceNorm(6, dtype=torch.float64), nn.InstanceNorm2d(6, affine=True).double()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs(x))


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 1), (3, 6, 1, 1)])
def test_a_map_of_one_pixel_is_refused_also_in_evaluation(shape):
    sentence = "more than one pixel in a map, got 1; take layer or group norm"
    for norm in (InstanceNorm(6), InstanceNorm(6).eval()):
        with pytest.raises(Refusal, match=sentence) as refused:
            norm(torch.randn(shape))
        assert refused.value.code == "one-pixel-map"


def test_is_batch_norm_in_training_of_one_sample_at_a_time():
    x = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one_by_one = torch.cat([nn.BatchNorm2d(6).double()(sample) for sample in x.split(1)])
    torch.testing.assert_close(InstanceNorm(6, dtype=torch.float64)(x), one_by_one)


def test_keeps_channels_last_which_torch_drops():
    x = torch.randn(3, 6, 4, 4).to(memory_format=torch.channels_last)
    assert not nn.InstanceNorm2d(6)(x).is_contiguous(memory_format=torch.channels_last)
    assert InstanceNorm(6)(x).is_contiguous(memory_format=torch.channels_last)


def test_scaling_and_shifting_a_channel_changes_nothing():
    x, norm = torch.randn(3, 6, 4, 4, dtype=torch.float64), InstanceNorm(6, eps=1e-30, dtype=torch.float64)
    scale, shift = 1 + torch.rand(6, 1, 1, dtype=torch.float64), torch.randn(6, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(norm(scale * x + shift), norm(x))
    torch.testing.assert_close(norm(-x), -norm(x))
