"""What both norms that decorrelate owe; each formula has a slow twin here that goes group by group."""

import copy

import pytest
import torch
from torch import Tensor

from normcore.norms.batch import BatchNorm
from normcore.norms.decorrelation import decorrelated
from normcore.norms.gathering import Gathers, Moments
from normcore.norms.iterative import IterativeNorm
from normcore.norms.whitening import Whitening
from normcore.refusal import Refusal

X = torch.randn(5, 6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X + 0.5 * X.flip(1) + torch.arange(6.0, dtype=torch.float64).view(6, 1, 1)
KINDS = {
    "zca": (Whitening, {"method": "zca"}),
    "pca": (Whitening, {"method": "pca"}),
    "iterative": (IterativeNorm, {"iterations": 4}),
}


@pytest.fixture(params=KINDS)
def make(request):
    kind, knobs = KINDS[request.param]

    def made(num_features: int = 6, **more):
        return kind(num_features, **{"channels_per_group": 3, "dtype": torch.float64} | knobs | more)

    return made


def rows(y: Tensor) -> Tensor:
    """Channels by values."""
    return y.transpose(0, 1).flatten(1)


def functional(norm, x: Tensor) -> Tensor:
    """The norm as a function, with buffers of its own to move."""
    state = dict(norm.named_parameters()) | {name: buffer.clone() for name, buffer in norm.named_buffers()}
    return torch.func.functional_call(norm, state, (x,))


def test_is_whitening_matrix_times_centred_input_in_each_group(make):
    norm = make()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 6))
        norm.bias.copy_(torch.linspace(-1, 1, 6))
    expected = []
    for group in rows(X).split(3):
        centred = group - group.mean(1, keepdim=True)
        sigma = centred @ centred.T / 30
        expected.append(norm.whitening(sigma[None])[0] @ centred)
    expected = norm.weight[:, None] * torch.cat(expected) + norm.bias[:, None]
    torch.testing.assert_close(rows(norm(X)), expected)


@pytest.mark.parametrize("shape", [(30, 6), (5, 6, 6), (5, 6, 3, 2), (5, 6, 1, 2, 3)])
@pytest.mark.parametrize("channels", [3, 6])
def test_pixels_may_have_any_number_of_dimensions(make, shape, channels):
    x = rows(X).reshape(6, shape[0], *shape[2:]).transpose(0, 1)
    torch.testing.assert_close(rows(make(channels_per_group=channels)(x)), rows(make(channels_per_group=channels)(X)))


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_channels_last_stays_so_and_changes_nothing(make, channels):
    norm = make(channels_per_group=channels)
    last = norm(X.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    first = norm(X)
    assert first.is_contiguous()
    torch.testing.assert_close(last, first)


@pytest.mark.parametrize("kind", ["zca", "iterative"])
def test_one_channel_per_group_is_batch_norm_in_training(kind):
    norm = KINDS[kind][0](6, **KINDS[kind][1], channels_per_group=1, dtype=torch.float64)
    torch.testing.assert_close(norm(X), BatchNorm(6, dtype=torch.float64)(X))


def test_evaluation_uses_running_averages_of_mean_and_matrix(make):
    norm = make(momentum=0.25)
    mean, matrices = torch.zeros(6, dtype=torch.float64), torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    for x in (X, 2 * X + 1):
        norm(x)
        values = rows(x)
        mean = 0.75 * mean + 0.25 * values.mean(1)
        sigma = torch.stack([group.cov(correction=0) for group in values.split(3)])
        matrices = 0.75 * matrices + 0.25 * norm.whitening(sigma)
    norm.eval()
    expected = (matrices @ (rows(X) - mean[:, None]).view(2, 3, -1)).flatten(0, 1)
    torch.testing.assert_close(rows(norm(X)), expected)
    state = copy.deepcopy(norm.state_dict())
    norm(X)
    assert all(torch.equal(state[name], value) for name, value in norm.state_dict().items())


def test_is_scale_and_shift_invariant_and_odd(make):
    norm = make(eps=1e-20)
    shift = torch.linspace(-3, 3, 6, dtype=torch.float64).view(6, 1, 1)
    torch.testing.assert_close(norm(7 * X + shift), norm(X))
    torch.testing.assert_close(norm(-X), -norm(X))


def test_derivatives_are_right_in_every_order_of_modes(make):
    norm = make()
    x = X[:, :, :, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(norm, x)
    weights, direction = X.flip(0)[:, :, :, :1], X.flip(1)[:, :, :, :1]

    def loss(x: Tensor) -> Tensor:
        return (functional(norm, x) * weights).square().sum()

    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum(), x)
    h = 1e-5
    ahead, behind = (torch.func.grad(loss)(x.detach() + s * direction) for s in (h, -h))
    torch.testing.assert_close(second, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)
    over = torch.func.jvp(torch.func.grad(loss), (x.detach(),), (direction,))[1]
    torch.testing.assert_close(over, second)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_fast_passes_part_by_part_are_the_formula(make, layout, channels, monkeypatch):
    monkeypatch.setattr("normcore.norms.closed_form.CACHED", 2 * X[0].numel())
    norm, results = make(channels_per_group=channels), []
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 6))
    grad = X.flip(0).contiguous(memory_format=layout)
    for differentiable in (False, True):
        x = X.clone(memory_format=layout).requires_grad_()
        y = norm(x)
        gradients = torch.autograd.grad(y, (x, norm.weight, norm.bias), grad, create_graph=differentiable)
        assert y.is_contiguous(memory_format=layout)
        assert differentiable or gradients[0].is_contiguous(memory_format=layout)
        results.append([y, *gradients])
    formula, _ = decorrelated(X, norm.weight, norm.bias, channels, norm.whitening)
    torch.testing.assert_close(results[0][0], formula)
    torch.testing.assert_close(*results)


def test_gradients_of_affine_parameters_are_right(make):
    norm = make()

    def of(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (X,))

    parameters = tuple(torch.rand(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(of, parameters)


def test_gradient_is_finite_where_channels_are_uncorrelated_and_of_one_variance(make):
    """The first whitening of a white input: all eigenvalues are equal."""
    corners = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]]).repeat(4, 1).requires_grad_()
    norm = make(3, dtype=torch.float32)
    (gradient,) = torch.autograd.grad((norm(corners) ** 3).sum(), corners)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("scale", "shift"), [(50.0, 200.0), (1e-4, 0.0)])
def test_statistics_of_half_precisions_are_taken_in_float32(make, dtype, scale, shift):
    x = (scale * X / X.std() + shift).to(dtype)
    exact = make(eps=1e-12, affine=False)(x.double())
    y = make(eps=1e-12, affine=False, dtype=torch.float32)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.02)


def test_autocast_changes_no_bit(make):
    norm, x = make(dtype=torch.float32), X.float()
    expected = norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), expected)


def test_works_compiled_exported_and_on_meta(make):
    norm = make()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (norm, compiled):
        x = X.clone().requires_grad_()
        gradients += torch.autograd.grad((function(x) * X.flip(0)).sum(), x)
    torch.testing.assert_close(*gradients)
    norm.eval()
    exported = torch.export.export(norm, (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.testing.assert_close(exported.module()(X[:3]), norm(X[:3]))
    assert make(device="meta")(X.to("meta")).shape == X.shape


def test_a_batch_that_is_not_finite_gives_no_error(make):
    x = X.clone()
    x[0, 0, 0, 0] = torch.nan
    norm = make()
    y = rows(norm(x))
    assert y[:3].isnan().all()
    assert y[3:].isfinite().all()


@pytest.mark.parametrize(("values", "enough"), [(6, False), (7, True)])
def test_a_group_needs_fewer_channels_than_there_are_values(make, values, enough):
    x = rows(X).T[:values]
    norm = make(channels_per_group=6)
    if enough:
        norm(x)
    else:
        sentence = "more values of a channel than a group has channels, in training, got 6 values .* and 6 channels"
        with pytest.raises(Refusal, match=sentence) as refused:
            norm(x)
        assert refused.value.code == "too-few-values-to-whiten"
    norm.eval()(x)


def test_as_many_values_as_channels_and_one_come_out_the_same_whatever_they_were():
    """Why they must be more: their scalar products, less the mean, are those of a simplex' corners."""
    m = 4
    for seed in (0, 1):
        x = torch.randn(m, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        centred = x - x.mean(0)
        whitened = centred @ torch.linalg.pinv(centred.T @ centred / m, rtol=1e-9) @ centred.T
        torch.testing.assert_close(whitened, m * torch.eye(m).double() - 1)


@pytest.mark.parametrize(("channels", "wished", "nearest"), [(6, 4, 3), (6, 5, 6), (6, 64, 6), (7, 3, 1), (48, 20, 16)])
def test_channels_that_do_not_divide_are_refused_or_the_nearest_taken(make, channels, wished, nearest):
    sentence = (
        f"channels_per_group must divide num_features, got channels_per_group {wished} and num_features {channels}; "
        f"take a divisor of {channels}, such as {nearest}, or set divisibility to nearest$"
    )
    with pytest.raises(Refusal, match=sentence) as refused:
        make(channels, channels_per_group=wished)
    assert refused.value.code == "channels-per-group-do-not-divide"
    norm = make(channels, channels_per_group=wished, divisibility="nearest")
    assert norm.channels_per_group == nearest
    assert norm.running_whitening.shape == (channels // nearest, nearest, nearest)


def test_statistics_can_be_computed_anew_from_batches_of_any_size(make):
    norm = make()
    assert isinstance(norm, Gathers)
    batches = [norm.moments(x) for x in (X[:2], X[2:])]
    count = sum(batch.count for batch in batches)
    pooled = Moments(count, {key: sum(b.count * b.means[key] for b in batches) / count for key in batches[0].means})
    norm(X)
    new = norm.statistics(pooled, unbiased=False)
    for name, value in new.items():
        norm.get_buffer(name).copy_(value)
    torch.testing.assert_close(norm.eval()(X), norm.train()(X))
    anew = make()
    norm.reset_statistics()
    assert all(torch.equal(norm.get_buffer(name), anew.get_buffer(name)) for name in new)


def test_moments_are_those_of_real_tokens(make):
    mask = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(1)) < 0.7
    seen, expected = make().moments(X, mask), make().moments(rows(X)[:, mask.flatten()].T)
    assert seen.count == expected.count == mask.sum()
    torch.testing.assert_close(dict(seen.means), dict(expected.means))


def test_unbiased_statistics_are_of_the_covariance_divided_by_m_less_one(make):
    norm = make()
    sigma = torch.stack([group.cov() for group in rows(X).split(3)])
    seen = norm.statistics(norm.moments(X), unbiased=True)["running_whitening"]
    torch.testing.assert_close(seen, norm.whitening(sigma))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 3, 2)])
def test_gradient_may_lie_in_memory_otherwise_than_the_input(make, channels, shape):
    norm = make(channels_per_group=channels)
    x, gradient = X.reshape(shape), torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=X.dtype)

    def laid_out(values: Tensor, *, last: bool) -> Tensor:
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if last else values.contiguous()

    def gradients(*, input_last: bool, gradient_last: bool) -> tuple[Tensor, ...]:
        given = laid_out(x, last=input_last).requires_grad_()
        pushed = laid_out(gradient, last=gradient_last)
        return torch.autograd.grad(norm(given), (given, norm.weight, norm.bias), pushed)

    expected = gradients(input_last=False, gradient_last=False)
    for input_last, gradient_last in ((False, True), (True, False), (True, True)):
        torch.testing.assert_close(gradients(input_last=input_last, gradient_last=gradient_last), expected)
