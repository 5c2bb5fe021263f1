"""Against the moments that Algorithm 1 of Santurkar et al. 2018 implies."""

import math

import pytest
import torch
from torch import Tensor

from normcore.noise.noise import start_step
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm


def disturb(noise: SanturkarNoise, x: Tensor, step: int = 0) -> Tensor:
    start_step(noise, 0, step)
    return noise(x)


def means_and_scales(num_features: int, step: int) -> tuple[Tensor, Tensor]:
    """mu_j and sigma_j of a step: without jitter the noise is x -> sigma x + mu."""
    noise = SanturkarNoise(num_features, mean_jitter=0, scale_jitter=0)
    zero, one = torch.zeros(1, num_features, dtype=torch.float64), torch.ones(1, num_features, dtype=torch.float64)
    mean = disturb(noise, zero, step)
    return mean[0], (disturb(noise, one, step) - mean)[0]


def test_after_batch_norm_mean_and_variance_of_each_channel_are_the_steps():
    n, r_mu, r_sigma = 400_000, 0.4, 0.3
    x = BatchNorm(4, affine=False, dtype=torch.float64)(torch.rand(n, 4, dtype=torch.float64))
    v = x.var(0, correction=0)
    noise = SanturkarNoise(4, mean_jitter=r_mu, scale_jitter=r_sigma)
    y = disturb(noise, x, step=3)
    mu, sigma = means_and_scales(4, step=3)
    expected = (sigma**2 + r_sigma**2) * v + r_mu**2 / 3
    # Six standard errors; the fourth moment of these bounded values is below three variances squared.
    torch.testing.assert_close(y.mean(0), mu, rtol=0, atol=6 * math.sqrt(expected.max() / n))
    torch.testing.assert_close(y.var(0), expected, rtol=6 * math.sqrt(2 / n), atol=0)


def test_per_step_draws_are_uniform_in_the_ranges_of_the_paper():
    mu, sigma = means_and_scales(100_000, step=0)
    assert -0.5 <= mu.min() < -0.499
    assert 0.499 < mu.max() <= 0.5
    assert 1 <= sigma.min() < 1.001
    assert 1.249 < sigma.max() <= 1.25
    torch.testing.assert_close(mu.var().item(), 1 / 12, rtol=0.02, atol=0)
    torch.testing.assert_close(sigma.var().item(), 0.25**2 / 12, rtol=0.02, atol=0)


def test_the_mean_moves_by_two_thirds_of_its_range_from_step_to_step():
    moves = (means_and_scales(100_000, step=1)[0] - means_and_scales(100_000, step=0)[0]).abs()
    torch.testing.assert_close(moves.mean().item(), 2 / 3 * 0.5, rtol=0.02, atol=0)


def test_jitter_is_uniform_in_the_mean_and_normal_in_the_scale():
    shifts = disturb(SanturkarNoise(1, mean_range=0, scale_max=1, scale_jitter=0), torch.zeros(200_000, 1))
    assert shifts.abs().max() <= 0.1
    torch.testing.assert_close(shifts.var().item(), 0.1**2 / 3, rtol=0.02, atol=0)
    scales = disturb(SanturkarNoise(1, mean_range=0, scale_max=1, mean_jitter=0), torch.ones(200_000, 1)) - 1
    torch.testing.assert_close(scales.std().item(), 0.1, rtol=0.02, atol=0)
    within = [(scales.abs() < 0.1 * k).double().mean().item() for k in (1, 2, 3)]
    torch.testing.assert_close(within, [math.erf(k / math.sqrt(2)) for k in (1, 2, 3)], rtol=0, atol=0.005)


def test_every_pixel_has_its_own_jitter_and_a_channel_one_mean():
    x = torch.zeros(2, 3, 40, 40)
    y = disturb(SanturkarNoise(3), x)
    assert y.unique().numel() > 0.99 * y.numel()
    flat = disturb(SanturkarNoise(3, mean_jitter=0), x)
    assert flat.unique().numel() == 3


def test_without_ranges_it_is_the_identity():
    x = torch.randn(5, 3, 4, 4)
    quiet = SanturkarNoise(3, mean_range=0, scale_max=1, mean_jitter=0, scale_jitter=0)
    assert torch.equal(disturb(quiet, x), x)


def test_evaluation_is_the_identity_and_needs_no_step():
    x = torch.randn(5, 3)
    assert SanturkarNoise(3).eval()(x) is x


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 2), (5, 3, 2, 4, 2)])
def test_any_number_of_pixel_dimensions(shape):
    y = disturb(SanturkarNoise(3), torch.zeros(shape))
    assert y.shape == shape
    means = y.movedim(1, 0).flatten(1).mean(1)
    torch.testing.assert_close(means, means_and_scales(3, 0)[0].float(), rtol=0, atol=0.1)


def test_derivative_is_the_scale_and_there_is_no_second_one():
    noise = SanturkarNoise(2)
    start_step(noise, 0, 0)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(noise, (x,))
    assert torch.autograd.gradgradcheck(noise, (x,))
    (scale,) = torch.autograd.grad(noise(x).sum(), x)
    torch.testing.assert_close(scale, (noise(x) - noise(torch.zeros_like(x))) / x)


def test_channels_last_stays_and_has_the_same_channel_draws():
    noise, x = SanturkarNoise(3, mean_jitter=0), torch.zeros(5, 3, 4, 4)
    y = disturb(noise, x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, disturb(noise, x))


def test_precision_does_not_change_the_draws():
    noise, x = SanturkarNoise(3), torch.ones(5, 3, 4, 4)
    torch.testing.assert_close(disturb(noise, x.double()), disturb(noise, x).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_disturbed_in_float32_and_rounded_once(dtype):
    noise, x = SanturkarNoise(3), torch.randn(50, 3, 4, 4).to(dtype)
    y = disturb(noise, x)
    assert y.dtype == dtype
    assert torch.equal(y, disturb(noise, x.float()).to(dtype))


def test_repr_says_the_constants_of_the_paper():
    assert repr(SanturkarNoise(3)) == (
        "SanturkarNoise(3, mean_range=0.5, scale_max=1.25, mean_jitter=0.1, scale_jitter=0.1)"
    )
