import pytest
import torch
from torch import nn

from normcore.norms.layer import LayerNorm
from normcore.refusal import Refusal


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_on_features_without_pixels_it_is_torch_layer_norm():
    x, ours, theirs = randn(3, 6), LayerNorm(6, dtype=torch.float64), nn.LayerNorm(6).double()
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())


def test_on_maps_it_is_torch_layer_norm_over_channels_and_pixels():
    x = randn(3, 6, 4, 4)
    theirs = nn.LayerNorm((6, 4, 4), elementwise_affine=False)
    torch.testing.assert_close(LayerNorm(6, dtype=torch.float64)(x), theirs(x))


def test_on_maps_it_is_not_the_norm_of_each_pixel_by_its_channels():
    x = randn(3, 6, 4, 4)
    per_pixel = nn.LayerNorm(6, elementwise_affine=False)(x.movedim(1, -1)).movedim(-1, 1)
    assert (LayerNorm(6, dtype=torch.float64)(x) - per_pixel).abs().max() > 1


@pytest.mark.parametrize("shape", [(3, 1), (3, 1, 1, 1)])
def test_a_sample_of_a_single_value_is_refused(shape):
    sentence = "more than one value in a sample, got 1 channel of 1 pixel; take more channels"
    with pytest.raises(Refusal, match=sentence) as refused:
        LayerNorm(1)(torch.randn(shape))
    assert refused.value.code == "one-value-layer"
    assert LayerNorm(1)(torch.randn(3, 1, 2)).count_nonzero() > 0


def test_takes_a_mask():
    x, norm = randn(3, 6, 4), LayerNorm(6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    y = norm(x, mask)
    torch.testing.assert_close(y[0, :, :2], norm(x[:1, :, :2])[0])
    torch.testing.assert_close(y[1], norm(x)[1])
    assert (y[0, :, 2:] == 0).all()
    assert (y[2] == 0).all()


def test_scaling_and_shifting_a_sample_changes_nothing_but_shifting_a_channel_does():
    x, norm = randn(3, 6, 4, 4), LayerNorm(6, eps=1e-30, dtype=torch.float64)
    torch.testing.assert_close(norm(3 * x + 7), norm(x))
    torch.testing.assert_close(norm(-x), -norm(x))
    assert (norm(x + torch.arange(6.0).view(6, 1, 1)) - norm(x)).abs().max() > 1
