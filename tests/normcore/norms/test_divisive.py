import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.divisive import DivisiveNorm, window_mean
from normcore.norms.layer import LayerNorm
from normcore.refusal import Refusal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(num_features: int, **knobs: float) -> DivisiveNorm:
    return DivisiveNorm(num_features, affine=False, dtype=torch.float64, **knobs)


def slow(x: Tensor, mean_window: int, variance_window: int, sigma: float) -> Tensor:
    """Pixel by pixel, from the paper; at borders over the pixels that are there."""

    def around(values: Tensor, pixel: tuple[int, ...], window: int) -> Tensor:
        reach = window // 2
        there = [slice(max(0, place - reach), place + reach + 1) for place in pixel]
        return values[(slice(None), *there)].mean()

    y = torch.empty_like(x)
    for out, sample in zip(y, x, strict=True):
        pixels = list(itertools.product(*(range(side) for side in sample.shape[1:])))
        v = sample.clone()
        for pixel in pixels:
            v[(slice(None), *pixel)] -= around(sample, pixel, mean_window)
        for pixel in pixels:
            root = (sigma**2 + around(v.square(), pixel, variance_window)).sqrt()
            out[(slice(None), *pixel)] = v[(slice(None), *pixel)] / root
    return y


@pytest.mark.parametrize("windows", [(3, 5), (5, 1), (1, 3), (7, 7), (255, 3)])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 6), (2, 3, 5, 4), (1, 2, 3, 1, 4)])
def test_is_the_mean_and_the_deviation_of_the_pixels_around_one_by_one(shape, windows):
    norm, x = bare(shape[1], mean_window=windows[0], variance_window=windows[1], sigma=0.5), draw(*shape)
    torch.testing.assert_close(norm(x), slow(x, *windows, 0.5))


def test_gamma_and_beta_are_per_channel_and_sigma_is_one_for_the_layer():
    norm, x = DivisiveNorm(3, sigma=0.3, dtype=torch.float64), draw(2, 3, 4, 4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 5.0]))
        norm.sigma.fill_(0.7)
    expected = bare(3, sigma=0.7)(x) * norm.weight.view(3, 1, 1) + norm.bias.view(3, 1, 1)
    torch.testing.assert_close(norm(x), expected)
    assert {name: tuple(p.shape) for name, p in norm.named_parameters()} == {
        "weight": (3,),
        "bias": (3,),
        "sigma": (1,),
    }


def test_windows_that_cover_the_map_from_everywhere_make_it_layer_norm():
    norm, x = bare(3, mean_window=9, variance_window=11, sigma=0.1), draw(2, 3, 5, 4)
    torch.testing.assert_close(norm(x), LayerNorm(3, eps=0.01, affine=False)(x))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5, 4)])
def test_windows_of_one_pixel_and_vectors_make_it_layer_norm_over_channels(shape):
    window = 5 if len(shape) == 2 else 1
    norm, x = bare(3, mean_window=window, variance_window=window, sigma=0.1), draw(*shape)
    expected = functional.layer_norm(x.movedim(1, -1), (3,), eps=0.01).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_forgets_a_shift_of_the_whole_sample_and_is_odd():
    norm, x = bare(3), draw(2, 3, 6, 6)
    torch.testing.assert_close(norm(x + 5), norm(x))
    torch.testing.assert_close(norm(-x), -norm(x))
    assert not torch.allclose(norm(x + draw(3, 1, 1)), norm(x), rtol=0.1)


def test_is_the_same_in_evaluation_and_for_every_batch():
    norm, x = bare(3), draw(3, 3, 4, 4)
    assert torch.equal(norm.eval()(x), norm.train()(x))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])


@pytest.mark.parametrize("window", [1, 3, 5, 255])
def test_means_of_windows_are_torchs_average_pooling_without_the_padding(window):
    maps = draw(2, 1, 9, 7)
    side = min(window, 17)
    expected = functional.avg_pool2d(
        functional.pad(maps, (side // 2,) * 4), side, stride=1, padding=0
    ) / functional.avg_pool2d(functional.pad(torch.ones_like(maps), (side // 2,) * 4), side, stride=1)
    torch.testing.assert_close(window_mean(maps, window), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_whose_squares_overflow_or_underflow_in_half_come_out_right(dtype):
    for exact_x in (200 + 50 * draw(2, 3, 6, 6), 1e-4 * draw(2, 3, 6, 6)):
        x = exact_x.to(dtype)
        norm = DivisiveNorm(3, sigma=1e-6, affine=False)
        exact = bare(3, sigma=1e-6)(x.double())
        torch.testing.assert_close(norm(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("knob", ["mean_window", "variance_window"])
def test_even_windows_are_refused(knob):
    sentence = f"{knob} must be odd, so that a pixel stands in the middle of its window, got 4; take 3 or 5$"
    with pytest.raises(Refusal, match=sentence) as refused:
        DivisiveNorm(3, **{knob: 4})
    assert refused.value.code == "even-window"


@pytest.mark.parametrize(("shape", "window"), [((3, 1), 5), ((3, 1, 1, 1), 5), ((3, 1, 4, 4), 1)])
def test_a_mean_of_the_value_alone_is_refused(shape, window):
    sentence = f"got 1 channel, a mean_window of {window} and a map of .* pixels; take more channels$"
    with pytest.raises(Refusal, match=sentence) as refused:
        DivisiveNorm(1, mean_window=window)(torch.randn(shape))
    assert refused.value.code == "one-value-layer"
    assert DivisiveNorm(1, mean_window=3)(torch.randn(3, 1, 4, 4)).abs().max() > 0
