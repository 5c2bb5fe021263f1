"""Ghost batch norm against batch norm of its parts, and its neighbours."""

import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.norms.ghost import GhostBatchNorm
from normcore.norms.instance import InstanceNorm
from normcore.refusal import Refusal


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ghost(k: int, **knobs: float) -> GhostBatchNorm:
    return GhostBatchNorm(4, virtual_batch_size=k, dtype=torch.float64, **knobs)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_each_virtual_batch_is_batch_normalized_by_itself(k):
    x, parts = 3 + randn(6, 4, 3, 2), []
    for start in range(0, 6, k):
        part = x[start : start + k]
        mean = part.mean((0, 2, 3), keepdim=True)
        parts.append((part - mean) / (((part - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(ghost(k)(x), torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_one_virtual_batch_is_batch_norm_in_all_it_does():
    ours, theirs = ghost(6, momentum=0.3), BatchNorm(4, momentum=0.3, dtype=torch.float64)
    for step in range(3):
        x = (step + randn(6, 4, 3, 2, seed=step)).requires_grad_()
        torch.testing.assert_close(ours(x), theirs(x))
        weights = randn(6, 4, 3, 2, seed=9)
        gradients = [
            torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight, norm.bias)) for norm in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_virtual_batches_of_one_sample_are_instance_norm_in_training():
    x = 3 + 2 * randn(5, 4, 3, 2)
    torch.testing.assert_close(ghost(1)(x), InstanceNorm(4, dtype=torch.float64)(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_running_statistics_are_those_of_batch_norm_whatever_the_virtual_batches(k, momentum):
    """Also where the virtual batches have nothing in common."""
    ours, theirs = ghost(k, momentum=momentum), BatchNorm(4, momentum=momentum, dtype=torch.float64)
    x = randn(12, 4, 3, 2) * torch.arange(1, 13, dtype=torch.float64).view(12, 1, 1, 1) + torch.arange(12).view(
        12, 1, 1, 1
    )
    ours(x), theirs(x)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-12, atol=1e-12)
    nn.BatchNorm2d(4).load_state_dict(ours.state_dict())


def test_the_scale_and_the_shift_of_a_single_virtual_batch_do_not_matter():
    x, norm = randn(6, 4, 3, 2), ghost(3, eps=1e-30)
    other = torch.cat([x[:3], 7 * x[3:] - 2])
    torch.testing.assert_close(norm(other), norm(x), rtol=0, atol=1e-12)
    assert (BatchNorm(4, dtype=torch.float64)(other) - BatchNorm(4, dtype=torch.float64)(x)).abs().max() > 0.5


def test_backward_is_the_closed_form_within_each_virtual_batch_and_theorem_4_1_holds_there():
    x, gamma, norm = randn(6, 4, 3, 2).requires_grad_(), 1.7, ghost(2, eps=1e-30)
    nn.init.constant_(norm.weight, gamma)
    z = norm(x)
    g = torch.sin(torch.arange(z.numel(), dtype=torch.float64)).view_as(z)
    (dx,) = torch.autograd.grad(z, x, g)
    for start in (0, 2, 4):
        for c in range(4):
            xs, gs, dxs, ys = (t.detach()[start : start + 2, c] for t in (x, g, dx, z / gamma))
            sigma, m = xs.var(correction=0).sqrt(), xs.numel()
            torch.testing.assert_close(
                dxs, gamma / sigma * (gs - gs.mean() - ys * (gs * ys).mean()), rtol=0, atol=1e-12
            )
            bound = gamma**2 / sigma**2 * ((gs**2).sum() - gs.sum() ** 2 / m - (gs * ys).sum() ** 2 / m)
            torch.testing.assert_close((dxs**2).sum(), bound, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("k", "samples", "remedy"), [(32, 48, 24), (4, 6, 3), (4, 5, 5), (2, 1, 1)])
def test_a_batch_that_is_no_multiple_is_refused_in_training_with_a_number_that_is(k, samples, remedy):
    norm = GhostBatchNorm(4, virtual_batch_size=k)
    sentence = (
        f"virtual_batch_size must divide the batch, got virtual_batch_size {k} and a batch of {samples} samples; "
        f"take a divisor of {samples}, such as {remedy}, or drop a last batch"
    )
    with pytest.raises(Refusal, match=sentence) as refused:
        norm(torch.randn(samples, 4, 2))
    assert refused.value.code == "virtual-batch-does-not-divide"
    assert norm.num_batches_tracked == 0
    assert norm.eval()(torch.randn(samples, 4, 2)).shape == (samples, 4, 2)
    GhostBatchNorm(4, virtual_batch_size=remedy)(torch.randn(samples, 4, 2))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1)])
def test_virtual_batches_of_a_single_value_are_refused(shape):
    with pytest.raises(
        Refusal, match="more than one value of a channel, got virtual_batch_size 1 on maps of 1 pixel"
    ) as refused:
        GhostBatchNorm(4, virtual_batch_size=1)(torch.randn(shape))
    assert refused.value.code == "one-value-virtual-batch"


def test_many_virtual_batches_cost_a_preview_no_more_than_one(monkeypatch):
    calls, batch_norm = [], torch.nn.functional.batch_norm
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda *args: calls.append(args) or batch_norm(*args))
    norm = GhostBatchNorm(3, virtual_batch_size=1, device="meta")
    assert norm(torch.empty(1000, 3, 2, 2, device="meta")).shape == (1000, 3, 2, 2)
    assert len(calls) == 1
