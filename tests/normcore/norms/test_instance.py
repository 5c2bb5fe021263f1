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
