import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from normcore.norms.dyt import DynamicTanh


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dyt(**knobs: float) -> DynamicTanh:
    made = DynamicTanh(6, dtype=torch.float64, **knobs)
    with torch.no_grad():
        if made.affine:
            made.weight.copy_(randn(6, seed=1))
            made.bias.copy_(randn(6, seed=2))
    return made


def test_is_the_formula_channel_by_channel():
    x, norm = randn(3, 6, 4, 4), dyt(alpha=0.7)
    for c in range(6):
        of_channel = norm.weight[c] * torch.tanh(0.7 * x[:, c]) + norm.bias[c]
        torch.testing.assert_close(norm(x)[:, c], of_channel)
    torch.testing.assert_close(dyt(alpha=0.7, affine=False)(x), torch.tanh(0.7 * x))


def test_starts_as_the_paper_does_with_one_alpha_for_the_layer():
    norm = DynamicTanh(6)
    assert norm.alpha.tolist() == [0.5]
    assert norm.weight.tolist() == [1] * 6
    assert norm.bias.tolist() == [0] * 6
    assert [name for name, _ in DynamicTanh(6, affine=False).named_parameters()] == ["alpha"]


def test_never_leaves_beta_by_more_than_gamma():
    norm = dyt()
    distance = (norm(1e3 * randn(50, 6, 4)) - norm.bias.view(6, 1)).abs()
    gamma = norm.weight.abs().view(6, 1)
    assert (distance <= gamma + 1e-12).all()
    assert (distance > 0.999 * gamma).any()


def test_slope_at_zero_is_alpha_gamma():
    norm, x = dyt(alpha=0.3), torch.zeros(1, 6, 1, dtype=torch.float64, requires_grad=True)
    norm(x).sum().backward()
    torch.testing.assert_close(x.grad.flatten(), 0.3 * norm.weight)


def test_each_value_is_by_itself():
    x, norm = randn(3, 6, 10), dyt()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    assert torch.equal(norm(x[:, :, order]), norm(x)[:, :, order])
    assert torch.equal(norm(x[:1]), norm(x)[:1])
    jacobian = torch.func.jacrev(norm)(x[:1, :, :2]).reshape(12, 12)
    assert torch.equal(jacobian, jacobian.diag().diag())


def test_is_odd_but_neither_scale_nor_shift_invariant():
    x, norm = randn(3, 6, 4), dyt(affine=False)
    torch.testing.assert_close(norm(-x), -norm(x))
    assert (norm(2 * x) - norm(x)).abs().max() > 0.1
    assert (norm(x + 1) - norm(x)).abs().max() > 0.1


@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_are_derivatives(affine):
    norm = dyt(affine=affine)
    names = [name for name, _ in norm.named_parameters()]
    inputs = [randn(2, 6, 3).requires_grad_(), *norm.parameters()]

    def f(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))
        return y

    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)


def test_forward_over_reverse_is_reverse_over_reverse():
    x, direction, norm = randn(3, 6, 4), randn(3, 6, 4, seed=3), dyt()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return norm(x).sin().sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    torch.testing.assert_close(forward_over_reverse, torch.autograd.functional.hvp(loss, x, direction)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_inputs_saturate(dtype):
    norm = DynamicTanh(2, alpha=1e3)
    y = norm(torch.tensor([[6e4, -6e4]]).to(dtype))
    assert y.dtype == dtype
    assert y.tolist() == [[1.0, -1.0]]
