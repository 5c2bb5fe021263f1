"""What batch norm and its kin owe: derivatives of both orders in both ways, dtypes, layouts, and company."""

import copy

import pytest
import torch
from torch import Tensor, nn

from normcore.norms.batch import BatchNorm
from normcore.norms.batch_renorm import BatchRenorm
from normcore.norms.ghost import GhostBatchNorm
from normcore.norms.lp import LpNorm
from normcore.norms.norm import Norm
from normcore.norms.sync import SyncBatchNorm

C = 3
OPEN = {"warmup_steps": 0, "r_steps": 0, "d_steps": 0}
NORMS = {
    "batch-paper": lambda **kw: BatchNorm(C, estimator="paper", **kw),
    "batch-population": lambda **kw: BatchNorm(C, estimator="population", **kw),
    "ghost": lambda **kw: GhostBatchNorm(C, virtual_batch_size=2, **kw),
    "sync": lambda **kw: SyncBatchNorm(C, virtual_ranks=3, **kw),
    "renorm-warm-up": lambda **kw: BatchRenorm(C, **kw),
    # At their bounds r and d are constants, so the backward pass is the derivative there too.
    "renorm-at-its-bounds": lambda **kw: BatchRenorm(C, r_max=1.01, d_max=0.01, **OPEN, **kw),
    "lp-1": lambda **kw: LpNorm(C, p="1", **kw),
    "lp-2": lambda **kw: LpNorm(C, p="2", **kw),
    "lp-inf": lambda **kw: LpNorm(C, p="inf", **kw),
}
MASK = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]], dtype=torch.bool)

each_norm = pytest.mark.parametrize("kind", NORMS)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pure(norm: Norm, *more: Tensor):
    """The layer as a function of its input and its parameters, whose buffers nobody sees move."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        state = {name: buffer.clone() for name, buffer in norm.named_buffers()} | {"weight": weight, "bias": bias}
        return torch.func.functional_call(norm, state, (x, *more))

    return function


@pytest.mark.parametrize(("kind", "masked"), [*((kind, False) for kind in NORMS), ("batch-population", True)])
def test_first_and_second_derivatives(kind, masked):
    norm, x = NORMS[kind](dtype=torch.float64), (1.5 + 2 * randn(4, C, 2)).requires_grad_()
    function, inputs = pure(norm, *([MASK] if masked else [])), (x, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(("kind", "masked"), [*((kind, False) for kind in NORMS), ("batch-population", True)])
def test_forward_over_reverse_is_reverse_over_reverse(kind, masked):
    norm, x, v, t = NORMS[kind](dtype=torch.float64), 1.5 + 2 * randn(4, C, 2), randn(4, C, 2, seed=1), randn(4, C, 2)
    function = pure(norm, *([MASK] if masked else []))

    def loss(x: Tensor) -> Tensor:
        return ((function(x, norm.weight.detach(), norm.bias.detach()) - t) ** 3).sum()

    _, forward = torch.func.jvp(torch.func.grad(loss), (x,), (v,))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (reverse,) = torch.autograd.grad((gradient * v).sum(), x)
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)


@each_norm
@pytest.mark.parametrize("shape", [(6, C), (6, C, 3), (6, C, 3, 2), (6, C, 2, 3, 2)])
def test_pixels_in_any_number_of_dimensions_are_the_same_values(kind, shape):
    x = 1 + randn(6, C, *shape[2:])
    flat = x.reshape(6, C, -1)
    one, other = NORMS[kind](dtype=torch.float64), NORMS[kind](dtype=torch.float64)
    torch.testing.assert_close(one(x).reshape(flat.shape), other(flat))
    torch.testing.assert_close(one.eval()(x).reshape(flat.shape), other.eval()(flat))


@each_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (200, 50), (0, 1e-3)])
def test_half_inputs_have_statistics_in_float32_and_are_rounded_once(kind, dtype, offset, spread):
    x = (offset + spread * randn(64, C, 4)).to(dtype)
    norm, exact = NORMS[kind](), NORMS[kind](dtype=torch.float64)
    for layer in (norm, exact):
        layer.eps = 1e-12
    y, expected = norm(x), exact(x.double())
    assert y.dtype == dtype
    tolerance = torch.finfo(dtype).eps + 8 * torch.finfo(torch.float32).eps * (1 + offset / spread)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    kept = [tensor for tensor in NORMS[kind](dtype=dtype).state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}


@each_norm
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_stays_channels_last(kind, training):
    x, norm = randn(6, C, 4, 2, dtype=torch.bfloat16), NORMS[kind]().train(training)
    y = norm(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert norm(x).is_contiguous()


@each_norm
def test_gamma_and_beta_stand_per_channel_and_can_be_left_out(kind):
    x, plain, norm = randn(6, C, 3), NORMS[kind](affine=False, dtype=torch.float64), NORMS[kind](dtype=torch.float64)
    assert not list(plain.parameters())
    gamma, beta = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1.0, -1.0, 0.0]).double()
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(beta)
    for training in (True, False):
        expected = plain.train(training)(x) * gamma.view(C, 1) + beta.view(C, 1)
        torch.testing.assert_close(norm.train(training)(x), expected)


@each_norm
def test_gamma_and_beta_can_undo_it(kind):
    x, norm = 3 + 2 * randn(6, C, 5), NORMS[kind](dtype=torch.float64)
    if kind == "ghost":
        x = x[:2].repeat(3, 1, 1)
    y = norm(x).detach()
    low, high = (torch.stack([value[:, c].flatten()[0] for c in range(C)]) for value in (x, y))
    slope = x.std((0, 2)) / y.std((0, 2))
    with torch.no_grad():
        norm.weight.copy_(slope)
        norm.bias.copy_(low - slope * high)
    fresh = NORMS[kind](dtype=torch.float64)
    fresh.load_state_dict(fresh.state_dict() | {"weight": norm.weight, "bias": norm.bias})
    torch.testing.assert_close(fresh(x), x)


@each_norm
def test_a_copy_a_saved_state_and_the_meta_device_give_the_same_layer(kind):
    norm, x = NORMS[kind](), randn(6, C, 3, dtype=torch.float32)
    norm(x)
    other = NORMS[kind]()
    other.load_state_dict(norm.state_dict())
    torch.testing.assert_close(other.eval()(x), norm.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(norm)(x), norm(x), rtol=0, atol=0)
    assert NORMS[kind](device="meta")(torch.empty(6, C, 3, device="meta")).shape == (6, C, 3)


@each_norm
def test_buffers_move_in_place(kind):
    """Captured graphs and flattened states hold on to their memory."""
    norm = NORMS[kind]()
    before = {name: buffer.data_ptr() for name, buffer in norm.named_buffers()}
    norm(randn(6, C, 3, dtype=torch.float32))
    assert {name: buffer.data_ptr() for name, buffer in norm.named_buffers()} == before
    norm.reset_statistics()
    fresh = dict(NORMS[kind]().named_buffers())
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, fresh[name]) or name == "num_batches_tracked"


@each_norm
def test_traced_without_a_break_in_training_and_exported_in_evaluation(kind):
    norm, x = NORMS[kind](), randn(6, C, 3, dtype=torch.float32)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(dict(norm.named_buffers()), dict(twin.named_buffers()))
    exported = torch.export.export(nn.Sequential(norm).eval(), (x,))
    torch.testing.assert_close(exported.module()(x), norm.eval()(x))


@pytest.mark.parametrize("make", [BatchNorm, GhostBatchNorm, SyncBatchNorm], ids=["batch", "ghost", "sync"])
def test_a_batch_may_come_between_an_evaluation_and_its_backward_pass(make):
    norm, x = make(C, eps=1e-5, dtype=torch.float64).eval(), randn(32, C, 2).requires_grad_()
    y = norm(x)
    norm.train()(5 + 3 * randn(32, C, 2))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, (1 + 1e-5) ** -0.5))
