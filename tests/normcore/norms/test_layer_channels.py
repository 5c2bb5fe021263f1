import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from normcore.norms.group import GroupNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.refusal import Refusal


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def innermost(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def layer(num_features: int = 6, **knobs: float) -> LayerNormChannels:
    made = LayerNormChannels(num_features, dtype=torch.float64, **knobs)
    with torch.no_grad():
        if made.affine:
            made.weight.copy_(1 + 0.3 * randn(num_features, seed=1))
            made.bias.copy_(randn(num_features, seed=2))
    return made


LAYOUTS = pytest.mark.parametrize("layout", [torch.Tensor.contiguous, innermost])


@LAYOUTS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
def test_is_torch_layer_norm_of_the_channels_in_every_layout_and_keeps_it(shape, affine, layout):
    x, norm = layout(randn(*shape)), layer(affine=affine)
    theirs = nn.LayerNorm(6, eps=1e-6, elementwise_affine=affine).double()
    theirs.load_state_dict(norm.state_dict())
    y = norm(x)
    torch.testing.assert_close(y, theirs(x.movedim(1, -1)).movedim(-1, 1))
    assert y.stride() == x.stride()
    assert torch.equal(norm.eval()(x), y)


def test_over_channels_only_it_is_not_group_norm_with_one_group():
    x, norm = randn(3, 6, 4, 4), layer(affine=False)
    one_group = GroupNorm(6, num_groups=1, affine=False)(x)
    assert (norm(x) - one_group).abs().max() > 1
    torch.testing.assert_close(LayerNorm(6, affine=False)(x), one_group)
    samples = randn(3, 6)
    torch.testing.assert_close(norm(samples), LayerNorm(6, eps=1e-6, affine=False)(samples))


@LAYOUTS
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_are_derivatives_and_those_of_torch(affine, layout):
    norm = layer(affine=affine)
    inputs = [randn(2, 6, 3).requires_grad_(), *norm.parameters()]

    def f(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(("weight", "bias"), parameters, strict=False))
        y: torch.Tensor = torch.func.functional_call(norm, named, (layout(x),))
        return y

    assert gradcheck(f, inputs, check_forward_ad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)
    theirs = [t.detach().clone().requires_grad_() for t in inputs]
    torch.layer_norm(theirs[0].movedim(1, -1), (6,), *theirs[1:], eps=1e-6).movedim(-1, 1).backward(
        randn(2, 6, 3, seed=3)
    )
    f(*inputs).backward(randn(2, 6, 3, seed=3))
    for a, b in zip(inputs, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@LAYOUTS
def test_forward_over_reverse_is_reverse_over_reverse_and_samples_can_be_mapped(layout):
    x, direction, norm = layout(randn(3, 6, 4)), randn(3, 6, 4, seed=3), layer()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return norm(x).sin().sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    torch.testing.assert_close(forward_over_reverse, torch.autograd.functional.hvp(loss, x, direction)[1])
    per_sample = torch.vmap(torch.func.grad(lambda sample: loss(sample.unsqueeze(0))))(x)
    torch.testing.assert_close(per_sample, torch.func.grad(loss)(x))


@LAYOUTS
def test_shifting_or_scaling_a_pixel_changes_nothing_but_shifting_a_channel_does(layout):
    x, norm = layout(randn(3, 6, 4, 4)), layer(eps=1e-30, affine=False)
    torch.testing.assert_close(norm((1 + randn(3, 1, 4, 4, seed=1).abs()) * x + randn(3, 1, 4, 4, seed=2)), norm(x))
    torch.testing.assert_close(norm(-x), -norm(x))
    assert (norm(x + randn(6, 1, 1, seed=3)) - norm(x)).abs().max() > 0.1


@LAYOUTS
def test_weight_and_bias_of_one_pixel_can_recover_it(layout):
    x, norm = layout(randn(1, 6, 1)), layer()
    with torch.no_grad():
        norm.weight.fill_((x.var(correction=0) + norm.eps).sqrt())
        norm.bias.fill_(x.mean())
    torch.testing.assert_close(norm(x), x)


@LAYOUTS
def test_a_mask_zeros_the_padding_and_its_gradient_and_leaves_the_rest(layout):
    x, norm = layout(randn(3, 6, 4)), layer()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    there = mask.unsqueeze(1).expand_as(x)
    y = norm(x, mask)
    torch.testing.assert_close(y, torch.where(there, norm(x), 0.0))
    torch.testing.assert_close(norm(x, torch.ones_like(mask)), norm(x))
    clean, padded = x.clone().requires_grad_(), x.masked_fill(~there, torch.nan).requires_grad_()
    for given in (clean, padded):
        norm(given, mask).sin().sum().backward()
    torch.testing.assert_close(clean.grad, padded.grad)
    assert (clean.grad[~there] == 0).all()
    with pytest.raises(Refusal, match="a mask must have the shape"):
        norm(x, mask[:, :2])


@LAYOUTS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_inputs_neither_overflow_nor_drown(dtype, tolerance, layout):
    for affine in (True, False):
        norm = LayerNormChannels(64, eps=1e-12, affine=affine)
        for x in (layout(200 + 50 * randn(2, 64, 8)).to(dtype), layout(1e-4 * randn(2, 64, 8)).to(dtype)):
            y = norm(x)
            assert y.dtype == dtype
            oracle = torch.layer_norm(x.double().movedim(1, -1), (64,), eps=1e-12).movedim(-1, 1)
            torch.testing.assert_close(y.double(), oracle, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 1), (3, 1, 4, 4)])
def test_a_single_channel_is_refused(shape):
    with pytest.raises(
        Refusal, match="layer norm over channels needs more than one channel, got 1; take more"
    ) as refused:
        LayerNormChannels(1)(torch.randn(shape))
    assert refused.value.code == "one-value-layer"
