import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from normcore.norms.grouped import normalize_groups
from normcore.norms.innermost import channels_innermost

EPS = 1e-3


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def innermost(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def by_the_book(x, num_groups, weight=None, bias=None, mask=None):
    """One group of one sample after the other, over its real tokens."""
    y = torch.zeros_like(x)
    mask = torch.ones(x.shape[:1] + x.shape[2:], dtype=torch.bool) if mask is None else mask
    in_group = x.shape[1] // num_groups
    for n in range(x.shape[0]):
        for group in range(num_groups):
            channels = slice(group * in_group, (group + 1) * in_group)
            real = x[n, channels][:, mask[n]]
            if real.numel():
                y[n, channels][:, mask[n]] = (real - real.mean()) / (real.var(correction=0) + EPS).sqrt()
    if weight is not None:
        shape = (-1, *[1] * (x.dim() - 2))
        y = torch.where(mask.unsqueeze(1), y * weight.view(shape) + bias.view(shape), 0.0)
    return y


AFFINE = (1 + 0.3 * randn(6, seed=1), randn(6, seed=2))
NUM_GROUPS = [1, 2, 6]
"""Over the six channels of float64, of which two groups do not fill a vector register and one does."""


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, innermost])
@pytest.mark.parametrize("num_groups", NUM_GROUPS)
@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
def test_is_the_formula_in_every_layout_and_keeps_it(shape, num_groups, layout):
    x = layout(randn(*shape))
    for affine in (AFFINE, (None, None)):
        y = normalize_groups(x, num_groups, *affine, EPS)
        torch.testing.assert_close(y, by_the_book(x, num_groups, *affine))
        assert y.stride() == x.stride()


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, innermost])
@pytest.mark.parametrize("affine", [AFFINE, ()], ids=["affine", "plain"])
@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_derivatives_are_derivatives_in_every_mode(num_groups, affine, layout):
    inputs = [t.clone().requires_grad_() for t in (randn(2, 6, 2, 1), *affine)]

    def f(x: torch.Tensor, *affine: torch.Tensor) -> torch.Tensor:
        return normalize_groups(layout(x), num_groups, *(affine or (None, None)), EPS)

    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_gradients_with_channels_innermost_are_those_of_torch_in_any_layout_of_the_gradient(num_groups):
    x, grad = randn(3, 6, 4, 2), randn(3, 6, 4, 2, seed=3)
    for given in (grad, innermost(grad), grad.sum().expand_as(grad)):
        ours = [t.clone().requires_grad_() for t in (x, *AFFINE)]
        theirs = [t.clone().requires_grad_() for t in (x, *AFFINE)]
        normalize_groups(innermost(ours[0]), num_groups, *ours[1:], EPS).backward(given)
        torch.group_norm(theirs[0], num_groups, *theirs[1:], EPS).backward(given)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("affine", [AFFINE, (None, None)], ids=["affine", "plain"])
@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_an_activation_may_change_the_output_in_place(num_groups, affine):
    def gradient(activation) -> torch.Tensor:
        x = innermost(randn(2, 6, 3, 2)).requires_grad_()
        y = activation(normalize_groups(x, num_groups, *affine, EPS))
        return torch.autograd.grad(y, x, randn(2, 6, 3, 2, seed=3))[0]

    torch.testing.assert_close(gradient(torch.relu_), gradient(torch.relu))


@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_forward_mode_is_the_same_where_gradients_are_off(num_groups):
    def along() -> tuple[torch.Tensor, ...]:
        inputs = innermost(randn(2, 6, 3, 2)), *AFFINE
        directions = randn(2, 6, 3, 2, seed=3), *(t.flip(0) for t in AFFINE)
        return torch.func.jvp(
            lambda *given: normalize_groups(given[0], num_groups, *given[1:], EPS), inputs, directions
        )

    expected = along()
    with torch.no_grad():
        torch.testing.assert_close(along(), expected)


@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_forward_over_reverse_and_reverse_over_forward_and_per_sample_gradients_agree(num_groups):
    x, direction, weights = innermost(randn(3, 6, 4, 2)), randn(3, 6, 4, 2, seed=3), randn(3, 6, 4, 2, seed=4)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (normalize_groups(x, num_groups, *AFFINE, EPS) * weights[: len(x)]).square().sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    reverse_over_forward = torch.func.grad(lambda x: torch.func.jvp(loss, (x,), (direction,))[1])(x)
    reverse_over_reverse = torch.autograd.functional.hvp(loss, x, direction)[1]
    torch.testing.assert_close(forward_over_reverse, reverse_over_reverse)
    torch.testing.assert_close(reverse_over_forward, reverse_over_reverse)

    def of_one(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (normalize_groups(x.unsqueeze(0), num_groups, *AFFINE, EPS) * weights).square().sum()

    torch.testing.assert_close(torch.vmap(torch.func.grad(of_one))(x, weights), torch.func.grad(loss)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_batch_is_taken_in_pieces_without_a_trace(dtype):
    x, weights = randn(5, 8, 160, 160).to(dtype), randn(5, 8, 160, 160, seed=1).to(dtype)
    ours, theirs = innermost(x).requires_grad_(), x.double().requires_grad_()
    y = normalize_groups(ours, 2, torch.ones(8), torch.zeros(8), EPS)
    y.backward(innermost(weights))
    oracle = torch.group_norm(theirs, 2, eps=EPS)
    oracle.backward(weights.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y.double(), oracle, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_groups", [1, 8, 16])
def test_channels_innermost_of_a_far_mean_keep_their_variance_which_torch_loses(num_groups):
    """Its one pass, mean(x^2) - mean(x)^2, is off by some percent here."""
    x = innermost(300 + randn(4, 16, 12, 12)).float()
    oracle = torch.group_norm(x.double(), num_groups)
    ones, zeros = torch.ones(16), torch.zeros(16)
    assert (torch.group_norm(x, num_groups, ones, zeros, 1e-5) - oracle).abs().max() > 1e-2
    assert (normalize_groups(x, num_groups, ones, zeros, 1e-5) - oracle).abs().max() < 1e-3


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, innermost])
@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_half_inputs_neither_overflow_nor_drown(num_groups, layout):
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        for x in (layout(200 + 50 * randn(2, 6, 8, 8)).to(dtype), layout(1e-4 * randn(2, 6, 8, 8)).to(dtype)):
            for affine in ((torch.ones(6), torch.zeros(6)), (None, None)):
                y = normalize_groups(x, num_groups, *affine, 1e-12)
                assert y.dtype == dtype
                oracle = torch.group_norm(x.double(), num_groups, eps=1e-12)
                torch.testing.assert_close(y.double(), oracle, rtol=tolerance, atol=tolerance)


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).bool()


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, innermost])
@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_a_mask_leaves_the_real_tokens_and_zeros_the_rest(num_groups, layout):
    x = layout(randn(4, 6, 5))
    y = normalize_groups(x, num_groups, *AFFINE, EPS, MASK)
    torch.testing.assert_close(y, by_the_book(x, num_groups, *AFFINE, MASK))
    assert y.stride() == x.stride()
    assert (y[2] == 0).all()
    everything = normalize_groups(x, num_groups, *AFFINE, EPS, torch.ones_like(MASK))
    torch.testing.assert_close(everything, normalize_groups(x, num_groups, *AFFINE, EPS))


@pytest.mark.parametrize("num_groups", NUM_GROUPS)
def test_padding_has_no_influence_and_no_gradient_even_where_it_is_nan(num_groups):
    x, there = randn(4, 6, 5), MASK.unsqueeze(1).expand(4, 6, 5)
    clean, padded = x.clone().requires_grad_(), x.masked_fill(~there, torch.nan).requires_grad_()
    for given in (clean, padded):
        (normalize_groups(given, num_groups, *AFFINE, EPS, MASK) * randn(4, 6, 5, seed=3)).sum().backward()
    assert torch.equal(clean.grad, padded.grad)
    assert (clean.grad[~there] == 0).all()
    assert gradcheck(lambda x: normalize_groups(x, num_groups, *AFFINE, EPS, MASK), [x.requires_grad_()])
    assert gradgradcheck(lambda x: normalize_groups(x, num_groups, *AFFINE, EPS, MASK), [x])


def test_a_mask_of_samples_without_pixels():
    x, mask = randn(3, 6), torch.tensor([True, False, True])
    y = normalize_groups(x, 2, *AFFINE, EPS, mask)
    torch.testing.assert_close(y[mask], normalize_groups(x, 2, *AFFINE, EPS)[mask])
    assert (y[1] == 0).all()


def test_one_pixel_or_one_channel_is_innermost_only_where_it_matters():
    assert not channels_innermost(randn(3, 4, 1, 1).to(memory_format=torch.channels_last))
    assert not channels_innermost(randn(3, 4))
    assert not channels_innermost(randn(3, 4, 5, 6))
    assert not channels_innermost(randn(3, 4, 5, 6).transpose(2, 3))
    assert channels_innermost(randn(3, 4, 5, 6).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("ratio", [0.0, 2.9, 3.1, 100.0])
@pytest.mark.parametrize("num_groups", [1, 2, 8])
def test_float32_in_channels_last_is_as_precise_on_either_side_of_where_one_pass_will_do(num_groups, ratio):
    x = ratio + torch.randn(4, 8, 16, 16, dtype=torch.float64)
    given = normalize_groups(x.float().to(memory_format=torch.channels_last), num_groups, None, None, 1e-5)
    wanted = normalize_groups(x.float().double(), num_groups, None, None, 1e-5)
    assert (given - wanted).abs().max() < 2e-5
