"""The fast passes against their formulas, and every kind of derivative of every norm that has them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

from normcore.norms import closed_form
from normcore.norms.divisive import DivisiveNorm
from normcore.norms.evonorm_b0 import EvoNormB0
from normcore.norms.evonorm_s0 import EvoNormS0
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.local_response import LocalResponseNorm
from normcore.norms.norm import Norm

NORMS: dict[str, tuple[Callable[..., Norm], tuple[int, ...]]] = {
    "filter_response": (FilterResponseNorm, (3, 4, 3, 2)),
    "filter_response-learned-eps": (partial(FilterResponseNorm, learned_eps=True), (3, 4, 1)),
    "filter_response-bare": (partial(FilterResponseNorm, tlu=False, affine=False), (3, 4, 3, 2)),
    "filter_response-vectors": (partial(FilterResponseNorm, learned_eps=True), (3, 4)),
    "filter_response-bare-learned-eps": (
        partial(FilterResponseNorm, tlu=False, affine=False, learned_eps=True),
        (3, 4, 2, 1, 3),
    ),
    "local_response": (partial(LocalResponseNorm, alpha=0.4), (2, 6, 2, 2)),
    "local_response-even": (partial(LocalResponseNorm, size=4, alpha=0.4, convention="torch"), (2, 6, 3)),
    "local_response-root": (partial(LocalResponseNorm, size=3, alpha=0.4, beta=0.5, k=0.1), (2, 5)),
    "divisive": (partial(DivisiveNorm, mean_window=3, variance_window=3, sigma=0.5), (2, 3, 4, 3)),
    "divisive-bare": (partial(DivisiveNorm, variance_window=1, affine=False), (3, 2, 4)),
    "divisive-vectors": (DivisiveNorm, (3, 4)),
    "evonorm_b0": (partial(EvoNormB0, eps=0.1), (3, 4, 3, 2)),
    "evonorm_b0-bare": (partial(EvoNormB0, affine=False), (4, 3)),
    "evonorm_b0-evaluation": (lambda c, **kw: EvoNormB0(c, **kw).eval(), (3, 4, 3)),
    "evonorm_s0": (partial(EvoNormS0, num_groups=2, eps=0.1), (3, 4, 3, 2)),
    "evonorm_s0-bare": (partial(EvoNormS0, num_groups=3, affine=False), (3, 6)),
}
"""A norm's maker, and the shape of an input."""

BATCH = {"evonorm_b0", "evonorm_b0-bare"}
"""Those that look at other samples."""

each_norm = pytest.mark.parametrize("name", NORMS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm_and_input(name: str) -> tuple[Norm, Tensor]:
    """The norm with parameters off their initial values, in float64."""
    make, shape = NORMS[name]
    norm = make(shape[1], dtype=torch.float64)
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=seed + 1))
    return norm, draw(*shape)


def call(norm: nn.Module, x: Tensor, **parameters: Tensor) -> Tensor:
    """The norm as a function, with buffers of its own to move."""
    return functional_call(norm, parameters | {name: buffer.clone() for name, buffer in norm.named_buffers()}, (x,))


def as_function(norm: nn.Module) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The norm as a function of the input and of its parameters, and the parameters."""
    parameters = {name: parameter.detach().clone().requires_grad_() for name, parameter in norm.named_parameters()}
    return lambda x, *given: call(norm, x, **dict(zip(parameters, given, strict=True))), tuple(parameters.values())


@each_norm
@pytest.mark.parametrize("part", [1, 10**9], ids=["many-parts", "one-part"])
def test_value_and_gradients_of_the_fast_passes_are_those_of_the_formula(name, part, monkeypatch):
    norm, x = norm_and_input(name)
    f, parameters = as_function(norm)
    inputs, direction = (x.requires_grad_(), *parameters), draw(*x.shape, seed=9)
    monkeypatch.setattr(closed_form, "CACHED", part)
    fast = f(*inputs)
    assert "Backward" in type(fast.grad_fn).__name__
    fast_gradients = torch.autograd.grad(fast, inputs, direction)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    plain = f(*inputs)
    plain_gradients = torch.autograd.grad(plain, inputs, direction)
    torch.testing.assert_close((fast, *fast_gradients), (plain, *plain_gradients), rtol=1e-12, atol=1e-12)


@each_norm
def test_first_and_second_derivatives_are_right(name):
    norm, x = norm_and_input(name)
    f, parameters = as_function(norm)
    inputs = (x.requires_grad_(), *parameters)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs)


@each_norm
def test_forward_over_reverse_is_reverse_over_reverse(name):
    norm, x = norm_and_input(name)
    v = draw(*x.shape, seed=1)

    def loss(x: Tensor) -> Tensor:
        return call(norm, x).pow(3).sum()

    slope = torch.autograd.grad(loss(x.requires_grad_()), x, create_graph=True)[0]
    (expected,) = torch.autograd.grad(slope, x, v)
    torch.testing.assert_close(jvp(grad(loss), (x.detach(),), (v,))[1], expected)


@each_norm
def test_forward_mode_is_the_directional_derivative(name):
    norm, x = norm_and_input(name)
    v = draw(*x.shape, seed=1)
    expected = torch.autograd.functional.jvp(norm, x, v)[1]
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, v))).tangent
    torch.testing.assert_close(along, expected)
    torch.testing.assert_close(jvp(partial(call, norm), (x,), (v,))[1], expected)


@pytest.mark.parametrize("name", [name for name in NORMS if name not in BATCH])
def test_samples_can_be_mapped_and_so_can_their_gradients(name):
    norm, x = norm_and_input(name)

    def one(sample: Tensor) -> Tensor:
        return norm(sample.unsqueeze(0)).squeeze(0)

    def loss(sample: Tensor) -> Tensor:
        return one(sample).pow(3).sum()

    torch.testing.assert_close(vmap(one)(x), norm(x))
    torch.testing.assert_close(vmap(one, in_dims=1)(x.transpose(0, 1)), norm(x))
    (expected,) = torch.autograd.grad(norm(x.requires_grad_()).pow(3).sum(), x)
    torch.testing.assert_close(vmap(grad(loss))(x), expected)


@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_rounds_once_and_every_layout_gives_the_same(name, dtype, memory_format):
    norm, x = norm_and_input(name)
    if x.dim() != 4:
        memory_format = torch.contiguous_format
    x = x.to(dtype).to(memory_format=memory_format).requires_grad_()
    exact = x.detach().double().requires_grad_()
    direction = draw(*x.shape, seed=3).to(dtype)
    expected = norm(exact)
    expected.backward(direction.double())
    y = norm.float()(x)
    y.backward(direction)
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    assert y.stride() == x.stride() == x.grad.stride()
    tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps}
    torch.testing.assert_close(y.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad.double(), exact.grad, **tolerance)


@pytest.mark.parametrize("name", [name for name in NORMS if list(norm_and_input(name)[0].parameters())])
def test_parameters_can_be_mapped(name):
    norm, x = norm_and_input(name)
    f, parameters = as_function(norm)
    two = [torch.stack([parameter, 2 * parameter]) for parameter in parameters]
    expected = torch.stack([f(x, *parameters), f(x, *(2 * parameter for parameter in parameters))])
    torch.testing.assert_close(vmap(f, in_dims=(None, *[0] * len(two)))(x, *two), expected)


@each_norm
def test_neither_the_input_nor_its_gradient_is_written_into(name):
    norm, x = norm_and_input(name)
    x, direction = x.float().requires_grad_(), draw(*x.shape, seed=2).float()
    before = x.detach().clone(), direction.clone()
    norm.float()(x).backward(direction)
    assert torch.equal(x, before[0])
    assert torch.equal(direction, before[1])


@pytest.mark.parametrize("name", [name for name in NORMS if name not in BATCH])
def test_a_batch_without_samples_is_welcome(name):
    norm, x = norm_and_input(name)
    empty = x[:0].requires_grad_()
    y = norm(empty)
    y.sum().backward()
    assert y.shape == empty.grad.shape == empty.shape


@each_norm
def test_inputs_that_are_views_are_welcome(name):
    norm, x = norm_and_input(name)
    wide = torch.stack([x, -x], dim=-1).requires_grad_()
    y = norm(wide[..., 0])
    torch.testing.assert_close(y, norm(x))
    y.sum().backward()
    assert not wide.grad[..., 1].any()


@each_norm
def test_compiles_and_exports_as_one_graph(name):
    norm, x = norm_and_input(name)
    torch.testing.assert_close(torch.compile(norm, backend="eager", fullgraph=True)(x), norm(x))
    norm.eval()
    torch.testing.assert_close(torch.export.export(norm, (x,)).module()(x), norm(x))


@each_norm
def test_only_the_input_is_kept_for_the_backward_pass_and_little_per_channel(name):
    norm, x = norm_and_input(name)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        norm(x.requires_grad_())
    per_channel = sum(p.numel() for p in norm.parameters()) + 2 * x.shape[1] * (x.shape[0] + 1)
    assert sum(tensor.numel() for tensor in kept) <= x.numel() + per_channel
