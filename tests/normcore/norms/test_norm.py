"""What all norms owe, against a slow twin that reads like the definition."""

import pytest
import torch
from torch import Tensor, nn

from normcore.norms.batch import BatchNorm
from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.none import NoNorm
from normcore.refusal import Refusal

C, EPS = 4, 1e-3
NORMS = {
    "batch": lambda **kw: BatchNorm(C, eps=EPS, **kw),
    "group": lambda **kw: GroupNorm(C, num_groups=2, eps=EPS, **kw),
    "layer": lambda **kw: LayerNorm(C, eps=EPS, **kw),
    "instance": lambda **kw: InstanceNorm(C, eps=EPS, **kw),
}
SETS = {
    "batch": lambda x: [x[:, c] for c in range(C)],
    "group": lambda x: [x[n, c : c + 2] for n in range(len(x)) for c in (0, 2)],
    "layer": lambda x: [x[n] for n in range(len(x))],
    "instance": lambda x: [x[n, c] for n in range(len(x)) for c in range(C)],
}
"""The sets of values that share a mean and a variance, as views."""
SHAPES = [(5, C), (5, C, 3), (5, C, 3, 2), (5, C, 2, 3, 2)]
CASES = [(kind, shape) for kind in NORMS for shape in SHAPES if kind != "instance" or len(shape) > 2]

each_norm = pytest.mark.parametrize("kind", NORMS)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def twin(kind: str, x: Tensor) -> Tensor:
    y = x.clone()
    for values in SETS[kind](y):
        mean = values.sum() / values.numel()
        variance = ((values - mean) ** 2).sum() / values.numel()
        values.copy_((values - mean) / (variance + EPS).sqrt())
    return y


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_equals_the_definition_written_as_loops(kind, shape):
    x, norm = 3 + 2 * randn(*shape), NORMS[kind](dtype=torch.float64)
    assert norm(x).shape == x.shape
    torch.testing.assert_close(norm(x), twin(kind, x), rtol=0, atol=1e-13)


@each_norm
def test_scale_and_shift_are_per_channel_and_start_at_the_identity(kind):
    x, norm, plain = randn(5, C, 3, 2), NORMS[kind](dtype=torch.float64), NORMS[kind](affine=False, dtype=torch.float64)
    assert [p.shape for p in norm.parameters()] == [(C,), (C,)]
    assert not list(plain.parameters())
    torch.testing.assert_close(norm(x), plain(x))
    gamma, beta = torch.arange(1.0, C + 1, dtype=torch.float64), torch.arange(C, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(beta)
    torch.testing.assert_close(norm(x), plain(x) * gamma.view(C, 1, 1) + beta.view(C, 1, 1))


@each_norm
def test_invariant_to_shift_and_scale_of_its_input_and_odd(kind):
    x, norm = randn(5, C, 3, 2), NORMS[kind](affine=False, dtype=torch.float64)
    norm.eps = 1e-30
    for other in (x + 7, 0.01 * x, 100 * x - 3):
        torch.testing.assert_close(norm(other), norm(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(norm(-x), -norm(x), rtol=0, atol=1e-13)


@each_norm
def test_backward_is_the_closed_form(kind):
    """dx = (g - mean(g) - y mean(g y)) / sigma within each set, so its sums with 1 and with y vanish."""
    x = randn(5, C, 3, 2).requires_grad_()
    norm = NORMS[kind](affine=False, dtype=torch.float64)
    norm.eps = 1e-30
    y = norm(x)
    g = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
    (dx,) = torch.autograd.grad(y, x, g)
    for xs, ys, gs, dxs in zip(*(SETS[kind](t.detach()) for t in (x, y, g, dx)), strict=True):
        sigma = xs.var(correction=0).sqrt()
        torch.testing.assert_close(dxs, (gs - gs.mean() - ys * (gs * ys).mean()) / sigma, rtol=0, atol=1e-12)
        assert dxs.sum().abs() < 1e-12
        assert (dxs * ys).sum().abs() < 1e-12


@each_norm
def test_gradient_norm_of_santurkar_theorem_4_1(kind):
    """||dL/dx||^2 = gamma^2 / sigma^2 (||g||^2 - <1, g>^2 / m - <g, y>^2 / m) in each set, as an equality."""
    x, gamma = randn(5, C, 3, 2).requires_grad_(), 1.7
    norm = NORMS[kind](dtype=torch.float64)
    norm.eps = 1e-30
    nn.init.constant_(norm.weight, gamma)
    z = norm(x)
    g = torch.sin(torch.arange(z.numel(), dtype=torch.float64)).view_as(z)
    (dx,) = torch.autograd.grad(z, x, g)
    y = z.detach() / gamma
    for xs, ys, gs, dxs in zip(*(SETS[kind](t.detach()) for t in (x, y, g, dx)), strict=True):
        m, var = xs.numel(), xs.var(correction=0)
        bound = gamma**2 / var * ((gs**2).sum() - gs.sum() ** 2 / m - (gs * ys).sum() ** 2 / m)
        torch.testing.assert_close((dxs**2).sum(), bound, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("kind", "training"), [*((kind, True) for kind in NORMS), ("batch", False)])
def test_first_and_second_derivatives(kind, training):
    norm = NORMS[kind](dtype=torch.float64).train(training)
    x = randn(2, C, 2, 1).requires_grad_()

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    inputs = (x, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (200, 50), (1000, 100), (0, 1e-4)])
def test_half_inputs_have_statistics_in_float32_and_are_rounded_once(kind, dtype, offset, spread):
    """In half, 200 squared is already infinite and a sum of 1,000 values of 1,000 has lost its last digits."""
    x = (offset + spread * randn(64, C, 6, 6)).to(dtype)
    norm = NORMS[kind](affine=False)
    norm.eps = 1e-12
    y, exact = norm(x), NORMS[kind](affine=False, dtype=torch.float64)
    exact.eps = 1e-12
    assert y.dtype == dtype
    # One rounding of the result, and float32 arithmetic with numbers of the size of the offset.
    tolerance = torch.finfo(dtype).eps / 2 + 8 * torch.finfo(torch.float32).eps * (1 + offset / spread)
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=tolerance, atol=tolerance)


@each_norm
def test_half_dtype_keeps_parameters_and_buffers_in_float32(kind):
    norm = NORMS[kind](dtype=torch.bfloat16)
    kept = [t.dtype for t in norm.state_dict().values() if t.is_floating_point()]
    assert kept
    assert set(kept) == {torch.float32}
    x = randn(5, C, 3, 2, dtype=torch.bfloat16).requires_grad_()
    norm(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16


@each_norm
def test_autocast_keeps_the_dtype(kind):
    with torch.autocast("cpu", torch.bfloat16):
        assert NORMS[kind]()(randn(5, C, 3, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert NORMS[kind]()(randn(5, C, 3, 2, dtype=torch.float32)).dtype == torch.float32


@each_norm
@pytest.mark.parametrize(
    ("shape", "layout"), [((5, C, 3, 2), torch.channels_last), ((5, C, 2, 3, 2), torch.channels_last_3d)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_stays_channels_last(kind, shape, layout, dtype):
    x, norm = randn(*shape, dtype=dtype), NORMS[kind]()
    y = norm(x.to(memory_format=layout))
    assert y.is_contiguous(memory_format=layout)
    assert norm(x).is_contiguous()
    torch.testing.assert_close(y, norm(x))


@pytest.mark.parametrize("norm", [*(make() for make in NORMS.values()), NoNorm(C)], ids=[*NORMS, "none"])
@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (C,)])
def test_wrong_channels_are_refused_with_both_values(norm, shape):
    sentence = rf"must have num_features {C} in dimension 1, got shape \({shape[0]},.*\); build the norm for"
    with pytest.raises(Refusal, match=sentence) as refused:
        norm(torch.zeros(shape))
    assert refused.value.code == "channels-differ"


@each_norm
def test_repr_says_channels_and_knobs(kind):
    assert f"({C}, " in repr(NORMS[kind]())
    assert f"eps={EPS}, " in repr(NORMS[kind]())
    assert "affine=False" in repr(NORMS[kind](affine=False))
