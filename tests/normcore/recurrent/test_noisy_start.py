import torch

from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.noisy_start import noisy_start


def test_h_is_normal_with_the_std_asked_for_and_c_is_zero():
    h, c = noisy_start(400, 500, seed=0, step=0, std=0.3, dtype=torch.float64)
    torch.testing.assert_close(h.std().item(), 0.3, rtol=0.01, atol=0)
    torch.testing.assert_close(h.mean().item(), 0.0, rtol=0, atol=0.003)
    torch.testing.assert_close((h.abs() < 0.3).double().mean().item(), 0.6827, rtol=0, atol=0.005)
    assert (c == 0).all()


def test_a_step_replayed_draws_the_same_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first = noisy_start(4, 5, seed=1, step=3)[0]
    assert torch.equal(first, noisy_start(4, 5, seed=1, step=3)[0])
    assert not torch.equal(first, noisy_start(4, 5, seed=1, step=4)[0])
    assert not torch.equal(first, noisy_start(4, 5, seed=2, step=3)[0])
    assert torch.equal(first, noisy_start(4, 5, seed=1, step=3, dtype=torch.float64)[0].float())
    assert torch.equal(torch.get_rng_state(), before)


def test_exists_on_meta():
    assert noisy_start(4, 5, seed=0, step=0, device="meta")[0].shape == (4, 5)


def test_constant_inputs_explode_the_gradient_of_a_bn_lstm_that_starts_equal_but_not_with_noise():
    """All samples see equal inputs but for the last ones, as in MNIST pixel by pixel."""
    x = torch.zeros(16, 20, 1, dtype=torch.float64)
    x[:, -4:] = torch.randn(16, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient_norm(std: float) -> float:
        h, c = noisy_start(16, 10, seed=0, step=0, std=std, dtype=torch.float64)
        lstm = Lstm(BatchLstmCell(1, 10, max_length=20, dtype=torch.float64))
        _, (end, _) = lstm(x, state=(h.requires_grad_(), c))
        (gradient,) = torch.autograd.grad(end.square().sum(), h)
        return gradient.norm().item()

    assert gradient_norm(std=0.0) > 1e20
    assert gradient_norm(std=0.1) < 1
