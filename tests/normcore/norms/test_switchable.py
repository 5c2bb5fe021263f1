import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from normcore.norms.batch import BatchNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.switchable import SwitchableNorm
from normcore.refusal import Refusal

INSTANCE, LAYER, BATCH = range(3)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = 2 + 3 * randn(4, 6, 4, 3)


def switchable(mean: list[float] | None = None, var: list[float] | None = None, **knobs: float) -> SwitchableNorm:
    made = SwitchableNorm(6, dtype=torch.float64, **knobs)
    with torch.no_grad():
        if made.affine:
            made.weight.copy_(1 + 0.3 * randn(6, seed=1))
            made.bias.copy_(randn(6, seed=2))
        made.mean_weight.copy_(torch.tensor(mean or [1.0, 1.0, 1.0]))
        made.var_weight.copy_(torch.tensor(var or [1.0, 1.0, 1.0]))
    return made


def one_hot(kind: int) -> list[float]:
    return [1e3 if k == kind else 0.0 for k in range(3)]


def by_the_paper(x, norm):
    """Its equations (3) to (5), with loops."""
    w, v = norm.mean_weight.softmax(0), norm.var_weight.softmax(0)
    y = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            parts = (x[n, c], x[n], x[:, c])
            mean = sum(weight * part.mean() for weight, part in zip(w, parts, strict=True))
            var = sum(weight * part.var(correction=0) for weight, part in zip(v, parts, strict=True))
            y[n, c] = norm.weight[c] * (x[n, c] - mean) / (var + norm.eps).sqrt() + norm.bias[c]
    return y


def test_is_the_formula_of_the_paper_with_separate_weights_of_means_and_variances():
    norm = switchable([0.3, -1.0, 2.0], [1.5, 0.2, -0.7])
    torch.testing.assert_close(norm(X), by_the_paper(X, norm))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "twin"), [(INSTANCE, InstanceNorm), (LAYER, LayerNorm), (BATCH, BatchNorm)])
def test_all_the_weight_on_one_kind_is_that_kind(kind, twin, training):
    ours, theirs = switchable(one_hot(kind), one_hot(kind)), twin(6, dtype=torch.float64)
    theirs.load_state_dict({name: ours.state_dict()[name] for name in theirs.state_dict()})
    for norm in (ours, theirs):
        norm(X + 1)
        norm.train(training)
    torch.testing.assert_close(ours(X), theirs(X))


def test_starts_with_a_third_of_each_and_a_running_variance_of_one():
    norm = SwitchableNorm(6)
    torch.testing.assert_close(norm.mean_weight.softmax(0), torch.full((3,), 1 / 3))
    torch.testing.assert_close(norm.var_weight.softmax(0), torch.full((3,), 1 / 3))
    assert norm.running_mean.tolist() == [0] * 6
    assert norm.running_var.tolist() == [1] * 6


def test_running_statistics_are_those_of_torch_batch_norm():
    ours, theirs = switchable(momentum=0.3), nn.BatchNorm2d(6, momentum=0.3).double()
    for x in (X, X.flip(0) + 1, 2 * X):
        ours(x)
        theirs(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(ours.state_dict()[name], theirs.state_dict()[name])
    ours.eval()(X)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_in_evaluation_a_sample_is_by_itself_and_in_training_it_is_not():
    norm = switchable()
    assert (norm(X)[:1] - norm(X[:1])).abs().max() > 0.01
    norm.eval()
    torch.testing.assert_close(norm(X)[:1], norm(X[:1]))


def test_a_single_sample_has_its_instances_statistics_for_the_batchs():
    ours, theirs = switchable(one_hot(BATCH), one_hot(BATCH), affine=False), InstanceNorm(6, affine=False)
    torch.testing.assert_close(ours(X[:1]), theirs(X[:1]))


def test_a_batch_without_samples_passes_and_moves_no_statistics():
    norm = switchable()
    norm(X)
    before = [buffer.clone() for buffer in norm.buffers()]
    assert norm(X[:0]).shape == X[:0].shape
    assert all(torch.equal(buffer, was) for buffer, was in zip(norm.buffers(), before, strict=True))


def test_the_papers_code_differs_in_the_variance_of_the_instance_by_the_pixels_less_one():
    norm = switchable(one_hot(INSTANCE), one_hot(INSTANCE), affine=False, eps=1e-30)
    theirs = (X - X.mean((2, 3), keepdim=True)) / X.var((2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(norm(X), theirs * (12 / 11) ** 0.5)


def test_scaling_or_shifting_everything_changes_nothing_but_shifting_a_channel_does():
    norm = switchable(eps=1e-30, affine=False)
    torch.testing.assert_close(norm(3 * X + 7), norm(X))
    torch.testing.assert_close(norm(-X), -norm(X))
    assert (norm(X + randn(6, 1, 1, seed=3)) - norm(X)).abs().max() > 0.01


def test_weight_and_bias_can_recover_the_input():
    norm, x = switchable(one_hot(LAYER), one_hot(LAYER)), X[:1]
    with torch.no_grad():
        norm.weight.fill_((x.var(correction=0) + norm.eps).sqrt())
        norm.bias.fill_(x.mean())
    torch.testing.assert_close(norm(x), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_are_derivatives(affine, training):
    norm = switchable([0.3, -1.0, 2.0], [1.5, 0.2, -0.7], affine=affine).train(training)
    names = [name for name, _ in norm.named_parameters()]
    inputs = [randn(2, 6, 3).requires_grad_(), *norm.parameters()]

    def f(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))
        return y

    assert gradcheck(f, inputs, check_forward_ad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)


def test_forward_over_reverse_is_reverse_over_reverse():
    direction, norm = randn(*X.shape, seed=3), switchable([0.3, -1.0, 2.0]).eval()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return norm(x).sin().sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (X,), (direction,))[1]
    torch.testing.assert_close(forward_over_reverse, torch.autograd.functional.hvp(loss, X, direction)[1])


def test_a_batch_may_come_between_an_evaluation_and_its_backward_pass():
    norm = switchable().eval()
    y = norm(X)
    norm.train()(X)
    y.sum().backward()
    assert norm.mean_weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_neither_overflow_nor_drown_and_keep_their_layout(dtype):
    for x in (200 + 50 * randn(4, 6, 8, 8), 1e-4 * randn(4, 6, 8, 8)):
        given = x.to(dtype).to(memory_format=torch.channels_last)
        y = SwitchableNorm(6, eps=1e-12)(given)
        assert (y.dtype, y.stride()) == (dtype, given.stride())
        oracle = SwitchableNorm(6, eps=1e-12, dtype=torch.float64)(given.double())
        torch.testing.assert_close(y.double(), oracle, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 1), (3, 6, 1, 1)])
def test_a_map_of_one_pixel_is_refused_also_in_evaluation(shape):
    for norm in (SwitchableNorm(6), SwitchableNorm(6).eval()):
        with pytest.raises(Refusal, match="more than one pixel in a map, got 1, of which the instance's") as refused:
            norm(torch.randn(shape))
        assert refused.value.code == "one-pixel-map"
