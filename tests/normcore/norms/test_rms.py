import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.rms import RmsNorm
from normcore.refusal import Refusal


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def innermost(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def rms(**knobs: float) -> RmsNorm:
    made = RmsNorm(6, dtype=torch.float64, **knobs)
    with torch.no_grad():
        if made.affine:
            made.weight.copy_(1 + 0.3 * randn(6, seed=1))
    return made


LAYOUTS = pytest.mark.parametrize("layout", [torch.Tensor.contiguous, innermost])


@LAYOUTS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
def test_is_torch_rms_norm_of_the_channels_in_every_layout_and_keeps_it(shape, affine, layout):
    x, norm = layout(randn(*shape)), rms(affine=affine)
    theirs = nn.RMSNorm(6, eps=1e-6, elementwise_affine=affine).double()
    theirs.load_state_dict(norm.state_dict())
    y = norm(x)
    torch.testing.assert_close(y, theirs(x.movedim(1, -1)).movedim(-1, 1))
    assert y.stride() == x.stride()
    assert torch.equal(norm.eval()(x), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_is_the_same_number_for_every_dtype_and_not_the_machine_epsilon_as_by_default_in_torch(dtype):
    x = torch.full((1, 6), 1e-3, dtype=dtype)
    torch.testing.assert_close(RmsNorm(6, dtype=dtype)(x), x / (1e-6 + 1e-6) ** 0.5)
    torch.testing.assert_close(nn.RMSNorm(6, dtype=dtype)(x), x / (1e-6 + torch.finfo(dtype).eps) ** 0.5)
    half = RmsNorm(6)(x.bfloat16())
    torch.testing.assert_close(half.to(dtype), RmsNorm(6, dtype=dtype)(x), rtol=1e-2, atol=0)


def test_where_the_mean_is_zero_it_is_layer_norm_over_channels_and_elsewhere_not():
    x = randn(3, 6, 4)
    layer = LayerNormChannels(6, dtype=torch.float64, affine=False)
    assert (rms(affine=False)(x) - layer(x)).abs().max() > 0.1
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(rms(affine=False)(centred), layer(centred))


@LAYOUTS
def test_is_scale_invariant_and_odd_but_not_shift_invariant(layout):
    x, norm = layout(randn(3, 6, 4)), rms(eps=1e-30)
    torch.testing.assert_close(norm((1 + randn(3, 1, 4, seed=2).abs()) * x), norm(x))
    torch.testing.assert_close(norm(-x), -norm(x))
    assert (norm(x + 1) - norm(x)).abs().max() > 0.5


@LAYOUTS
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_are_derivatives_and_those_of_torch(affine, layout):
    norm = rms(affine=affine)
    inputs = [randn(2, 6, 3).requires_grad_(), *norm.parameters()]

    def f(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(("weight",), parameters, strict=False))
        y: torch.Tensor = torch.func.functional_call(norm, named, (layout(x),))
        return y

    assert gradcheck(f, inputs, check_forward_ad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)
    theirs = [t.detach().clone().requires_grad_() for t in inputs]
    torch.rms_norm(theirs[0].movedim(1, -1), (6,), *theirs[1:], eps=1e-6).movedim(-1, 1).backward(
        randn(2, 6, 3, seed=3)
    )
    f(*inputs).backward(randn(2, 6, 3, seed=3))
    for a, b in zip(inputs, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@LAYOUTS
def test_forward_over_reverse_is_reverse_over_reverse_and_samples_can_be_mapped(layout):
    x, direction, norm = layout(randn(3, 6, 4)), randn(3, 6, 4, seed=3), rms()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return norm(x).sin().sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    torch.testing.assert_close(forward_over_reverse, torch.autograd.functional.hvp(loss, x, direction)[1])
    per_sample = torch.vmap(torch.func.grad(lambda sample: loss(sample.unsqueeze(0))))(x)
    torch.testing.assert_close(per_sample, torch.func.grad(loss)(x))


@LAYOUTS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_inputs_neither_overflow_nor_drown(dtype, tolerance, layout):
    norm = RmsNorm(64, eps=1e-12)
    for x in (layout(300 + 50 * randn(2, 64, 8)).to(dtype), layout(1e-4 * randn(2, 64, 8)).to(dtype)):
        y = norm(x)
        assert y.dtype == dtype
        oracle = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-12).sqrt()
        torch.testing.assert_close(y.double(), oracle, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 1), (3, 1, 4, 4)])
def test_a_single_channel_is_refused(shape):
    with pytest.raises(Refusal, match="more than one channel, got 1, of whose values it leaves the sign") as refused:
        RmsNorm(1)(torch.randn(shape))
    assert refused.value.code == "one-value-layer"
