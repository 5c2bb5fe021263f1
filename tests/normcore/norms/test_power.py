"""The oracle is Algorithm 2 of the paper, written down one value after another."""

import copy

import pytest
import torch
from torch import Tensor

from normcore.norms.batch import BatchNorm
from normcore.norms.gathering import Gathers
from normcore.norms.power import PowerNorm
from normcore.refusal import Refusal

GENERATOR = torch.Generator().manual_seed(0)
X, GRAD, DIRECTION = torch.randn(3, 5, 3, 2, 2, generator=GENERATOR, dtype=torch.float64)
X = X + 0.5
MASK = torch.rand(5, 2, 2, generator=GENERATOR) < 0.6
MASK[0] = False


def power(warmup_steps: int = 0, **knobs) -> PowerNorm:
    return PowerNorm(3, warmup_steps=warmup_steps, **{"dtype": torch.float64} | knobs)


def functional(norm: PowerNorm, x: Tensor) -> Tensor:
    """The norm as a function, with buffers of its own to move."""
    state = dict(norm.named_parameters()) | {name: buffer.clone() for name, buffer in norm.named_buffers()}
    return torch.func.functional_call(norm, state, (x,))


class SlowTwin:
    """One channel of power norm, on lists of numbers."""

    def __init__(self, gamma: float, beta: float, momentum: float) -> None:
        self.gamma, self.beta, self.momentum, self.psi2, self.nu = gamma, beta, momentum, 1.0, 0.0

    def forward(self, xs: list[float]) -> list[float]:
        self.hats = [x / (self.psi2 + 1e-5) ** 0.5 for x in xs]
        self.psi = (self.psi2 + 1e-5) ** 0.5
        self.psi2 += self.momentum * (sum(x * x for x in xs) / len(xs) - self.psi2)
        return [self.gamma * hat + self.beta for hat in self.hats]

    def backward(self, grads: list[float]) -> tuple[list[float], float, float]:
        of_hats = [self.gamma * grad for grad in grads]
        of_xs = [(of_hat - self.nu * hat) / self.psi for of_hat, hat in zip(of_hats, self.hats, strict=True)]
        upper = sum(hat * hat for hat in self.hats) / len(grads)
        cross = sum(of_hat * hat for of_hat, hat in zip(of_hats, self.hats, strict=True)) / len(grads)
        self.nu = self.nu * (1 - self.momentum * upper) + self.momentum * cross
        return of_xs, sum(g * hat for g, hat in zip(grads, self.hats, strict=True)), sum(grads)


def test_some_steps_are_those_of_algorithm_2():
    norm = power(momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    twins = [SlowTwin(gamma, beta, 0.3) for gamma, beta in zip(norm.weight.tolist(), norm.bias.tolist(), strict=True)]
    for step in range(1, 4):
        x, grad = (step * X).requires_grad_(), GRAD.roll(step, 0)
        y = norm(x)
        gradients = torch.autograd.grad(y, (x, norm.weight, norm.bias), grad)
        for c, twin in enumerate(twins):
            values = twin.forward(x[:, c].flatten().tolist())
            assert y[:, c].flatten().tolist() == pytest.approx(values)
            of_x, of_gamma, of_beta = twin.backward(grad[:, c].flatten().tolist())
            assert gradients[0][:, c].flatten().tolist() == pytest.approx(of_x)
            assert [gradients[1][c].item(), gradients[2][c].item()] == pytest.approx([of_gamma, of_beta])
            assert [norm.running_square[c].item(), norm.nu[c].item()] == pytest.approx([twin.psi2, twin.nu])
    assert norm.num_batches_tracked == 3


def test_evaluation_divides_by_the_running_mean_square_and_moves_nothing():
    norm = power(momentum=0.25)
    norm(X)
    norm(3 * X)
    square = X.square().mean((0, 2, 3))
    running = 0.75 * (0.75 + 0.25 * square) + 0.25 * 9 * square
    state = copy.deepcopy(norm.state_dict())
    torch.testing.assert_close(norm.eval()(X), X / (running + 1e-5).sqrt().view(3, 1, 1))
    assert all(torch.equal(state[name], value) for name, value in norm.state_dict().items())


def test_warm_up_divides_by_the_batchs_own_mean_square_for_so_many_steps():
    norm = power(warmup_steps=2, momentum=0.5)
    for step in range(1, 4):
        own = step * X / ((step * X).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        running = step * X / (norm.running_square + 1e-5).sqrt().view(3, 1, 1)
        torch.testing.assert_close(norm(step * X), (own if step <= 2 else running).clone())
        assert (own - running).abs().max() > 0.1


def test_warm_up_with_a_mean_of_zero_is_batch_norm():
    x = X - X.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(power(1)(x), BatchNorm(3, dtype=torch.float64)(x))


def test_gradient_of_the_warm_up_is_exact_in_every_order_of_modes():
    norm, x = power(1), X[:, :, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: functional(norm, x), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: functional(norm, x), x, check_fwd_over_rev=True)


def test_nu_follows_the_gradient_in_the_warm_up_as_well():
    norm = power(1, momentum=0.25)
    x = X.clone().requires_grad_()
    (norm(x) * GRAD).sum().backward()
    hat = X / (X.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm.nu, 0.25 * (GRAD * hat).mean((0, 2, 3)))


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_fast_backward_pass_is_the_differentiable_one(warmup_steps):
    norm = power(warmup_steps)
    norm.nu.fill_(0.3)
    gradients, moved = [], []
    for differentiable in (False, True):
        mine, x = copy.deepcopy(norm), X.clone().requires_grad_()
        wanted = (x, mine.weight, mine.bias)
        gradients.append(torch.autograd.grad(mine(x), wanted, GRAD, create_graph=differentiable))
        moved.append(mine.nu)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*moved)


def test_forward_mode_after_the_warm_up_holds_the_divisor_constant():
    norm = power()
    y, along = torch.func.jvp(lambda x: functional(norm, x), (X,), (DIRECTION,))
    torch.testing.assert_close(y, X / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(along, DIRECTION / (1 + 1e-5) ** 0.5)


def test_is_scale_invariant_in_the_warm_up_only_and_so_does_not_claim_it():
    torch.testing.assert_close(power(1, eps=1e-20)(7 * X), power(1, eps=1e-20)(X))
    torch.testing.assert_close(power()(7 * X), 7 * power()(X))
    assert not power(1).claims.scale_invariant


def test_mask_of_all_true_is_no_mask():
    results = []
    for mask in ((), (torch.ones(5, 2, 2, dtype=torch.bool),)):
        norm, x = power(1), X.clone().requires_grad_()
        results.append([norm(x, *mask), *torch.autograd.grad(norm(x, *mask), (x, norm.weight), GRAD), norm.nu])
    for plain, masked in zip(*results, strict=True):
        torch.testing.assert_close(plain, masked)


@pytest.mark.parametrize("warmup_steps", [0, 9])
def test_masked_statistics_are_those_of_the_real_tokens_alone(warmup_steps):
    real = X.movedim(1, -1)[MASK]
    masked, packed = power(warmup_steps), power(warmup_steps)
    for _ in range(2):
        x, rows = X.clone(), real.clone().requires_grad_()
        x.movedim(1, -1)[~MASK] = torch.nan
        x.requires_grad_()
        y, expected = masked(x, MASK), packed(rows)
        torch.testing.assert_close(y.movedim(1, -1)[MASK], expected)
        assert not y.movedim(1, -1)[~MASK].any()
        (of_x,), (of_rows,) = (
            torch.autograd.grad(y, x, GRAD),
            torch.autograd.grad(expected, rows, GRAD.movedim(1, -1)[MASK]),
        )
        torch.testing.assert_close(of_x.movedim(1, -1)[MASK], of_rows)
        assert not of_x.movedim(1, -1)[~MASK].any()
    torch.testing.assert_close(masked.state_dict(), packed.state_dict())
    torch.testing.assert_close(masked.eval()(X, MASK).movedim(1, -1)[MASK], packed.eval()(real))


@pytest.mark.parametrize("warmup_steps", [0, 9])
def test_a_batch_without_any_real_token_gives_zeros_and_moves_only_the_count(warmup_steps):
    norm, x = power(warmup_steps), X.clone().requires_grad_()
    norm.nu.fill_(0.3)
    y = norm(x, torch.zeros_like(MASK))
    (gradient,) = torch.autograd.grad(y, x, GRAD)
    assert not y.any()
    assert not gradient.any()
    assert norm.running_square.eq(1).all()
    torch.testing.assert_close(norm.nu, torch.full_like(norm.nu, 0.3))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("warmup_steps", [0, 9])
def test_compiled_training_is_the_same_after_the_warm_up_as_well(warmup_steps):
    """A compiler that chose the divisor anew in the backward pass would find the one of the next step."""
    norm = power(warmup_steps)
    norm.nu.fill_(0.3)
    results = []
    for backend in (None, "aot_eager"):
        mine, x = copy.deepcopy(norm), X.clone().requires_grad_()
        run = torch.compile(mine, fullgraph=True, backend=backend) if backend else mine
        results.append([*torch.autograd.grad((run(x) * GRAD).sum(), (x, mine.weight)), mine.nu, mine.running_square])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("scale", "shift"), [(50.0, 200.0), (1e-4, 0.0)])
def test_statistics_of_half_precisions_are_taken_in_float32(dtype, scale, shift):
    x = (scale * X + shift).to(dtype)
    exact, norm = power(1, eps=1e-12), power(1, eps=1e-12, dtype=torch.float32)
    y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=0.01, atol=0.01)
    torch.testing.assert_close(norm.running_square.double(), exact.running_square, rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(20, 3), (5, 3, 4), (5, 3, 2, 2), (5, 3, 1, 2, 2)])
def test_pixels_may_have_any_number_of_dimensions(shape):
    x, grad = (t.transpose(0, 1).reshape(3, shape[0], *shape[2:]).transpose(0, 1) for t in (X, GRAD))
    expected, first = torch.autograd.functional.vjp(power(1), X, GRAD)
    y, second = torch.autograd.functional.vjp(power(1), x.contiguous(), grad)
    for ours, theirs in ((y, expected), (second, first)):
        torch.testing.assert_close(ours.transpose(0, 1).flatten(1), theirs.transpose(0, 1).flatten(1))


def test_channels_last_stays_so_and_changes_nothing():
    x = X.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = power(1)(x)
    (gradient,) = torch.autograd.grad(y, x, GRAD)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    expected, of_x = torch.autograd.functional.vjp(power(1), X, GRAD)
    torch.testing.assert_close((y, gradient), (expected, of_x))


@pytest.mark.parametrize("warmup_steps", [0, 1])
@pytest.mark.parametrize("input_last", [False, True])
@pytest.mark.parametrize("gradient_last", [False, True])
def test_gradient_of_sequences_may_lie_in_memory_otherwise_than_they_do(warmup_steps, input_last, gradient_last):
    def gradients(norm: PowerNorm, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        x = x.requires_grad_()
        return torch.autograd.grad(norm(x), (x, norm.weight, norm.bias), grad)

    x, grad = X.flatten(2), GRAD.flatten(2)
    last_x, last_grad = (values.mT.contiguous().mT for values in (x, grad))
    found = gradients(power(warmup_steps), last_x if input_last else x, last_grad if gradient_last else grad)
    expected = gradients(power(warmup_steps), X.clone(), GRAD)
    torch.testing.assert_close(found, (expected[0].flatten(2), *expected[1:]))


def test_sequences_may_have_their_channels_last_as_well():
    x, grad = X[:, :, 0].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(), GRAD[:, :, 0]
    y = power(1)(x)
    (gradient,) = torch.autograd.grad(y, x, grad)
    expected, of_x = torch.autograd.functional.vjp(power(1), X[:, :, 0].contiguous(), grad)
    torch.testing.assert_close((y, gradient), (expected, of_x))
    assert y.stride() == gradient.stride() == x.stride()


def test_a_batch_of_one_is_refused_in_training_only():
    with pytest.raises(Refusal, match=r"power norm needs a batch of at least 2 samples in training, got 1; take a"):
        power()(X[:1])
    power().eval()(X[:1])


def test_statistics_can_be_computed_anew_and_reset():
    norm = power(5)
    assert isinstance(norm, Gathers)
    seen = norm.statistics(norm.moments(X, MASK), unbiased=False)
    torch.testing.assert_close(seen["running_square"], X.movedim(1, -1)[MASK].square().mean(0))
    (norm(X.clone().requires_grad_()) * GRAD).sum().backward()
    norm.reset_statistics()
    torch.testing.assert_close(norm.state_dict(), power(5).state_dict(), rtol=0, atol=0)


def test_knobs_are_told():
    assert repr(PowerNorm(8)) == "PowerNorm(8, eps=1e-05, momentum=0.1, warmup_steps=200, affine=True)"
