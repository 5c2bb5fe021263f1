"""Batch renormalization against the paper's algorithm written out, and its two ends: batch norm and evaluation."""

import copy

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from normcore.menu.norms import BatchRenormSpec
from normcore.norms.batch import BatchNorm
from normcore.norms.batch_renorm import BatchRenorm
from normcore.refusal import Refusal
from normcore.statistics.recompute import recompute_statistics


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def renorm(num_features: int = 4, **knobs: float) -> BatchRenorm:
    relaxed = {"warmup_steps": 0, "r_steps": 0, "d_steps": 0}
    return BatchRenorm(num_features, dtype=torch.float64, **relaxed | knobs)


def bounds(t: int, r_max: float, d_max: float, warmup: int, r_steps: int, d_steps: int) -> tuple[float, float]:
    """By the sentences of the paper's section 4.1, with this training's numbers."""
    if t < warmup:
        return 1.0, 0.0
    r = r_max if t >= r_steps else 1 + (r_max - 1) * (t - warmup) / (r_steps - warmup)
    d = d_max if t >= d_steps else d_max * (t - warmup) / (d_steps - warmup)
    return r, d


def test_a_training_is_the_papers_algorithm_step_by_step_with_widening_bounds():
    schedule = {"r_max": 1.5, "d_max": 0.4, "warmup_steps": 3, "r_steps": 9, "d_steps": 6}
    norm = renorm(momentum=0.2, eps=1e-3, **schedule)
    mean, std, seen = torch.zeros(4).double(), torch.ones(4).double(), set()
    for t in range(12):
        x = t / 4 + (1 + t % 3) * randn(5, 4, 3, 2, seed=t)
        r_bound, d_bound = bounds(t, *schedule.values())
        batch_mean = x.mean((0, 2, 3))
        sigma = ((x - batch_mean.view(4, 1, 1)) ** 2).mean((0, 2, 3)).sqrt() + 1e-3
        r, d = [], []
        for c in range(4):
            r.append(min(max((sigma[c] / std[c]).item(), 1 / r_bound), r_bound))
            d.append(min(max(((batch_mean[c] - mean[c]) / std[c]).item(), -d_bound), d_bound))
        seen |= {r_bound, d_bound}
        r, d = (torch.tensor(values, dtype=torch.float64).view(4, 1, 1) for values in (r, d))
        expected = (x - batch_mean.view(4, 1, 1)) / sigma.view(4, 1, 1) * r + d
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
        mean, std = mean + 0.2 * (batch_mean - mean), std + 0.2 * (sigma - std)
        torch.testing.assert_close((norm.running_mean, norm.running_std), (mean, std), rtol=1e-12, atol=1e-12)
    assert len(seen) > 8
    assert norm.num_batches_tracked == 12
    torch.testing.assert_close(norm.eval()(x), (x - mean.view(4, 1, 1)) / std.view(4, 1, 1))


def test_within_the_bounds_training_gives_the_output_of_evaluation():
    norm = renorm(r_max=1e6, d_max=1e6)
    for step in range(3):
        x = step + (2 + step) * randn(2, 4, 3, 2, seed=step)
        expected = norm.eval()(x)
        torch.testing.assert_close(norm.train()(x), expected, rtol=1e-12, atol=1e-12)


def test_with_r_at_one_and_d_at_zero_it_is_batch_norm_with_eps_outside_the_root():
    """Which, but for eps, is batch norm; in the warm-up, and for bounds that never open."""
    x, weights = (3 + 2 * randn(6, 4, 3, 2)).requires_grad_(), randn(6, 4, 3, 2, seed=1)
    theirs = BatchNorm(4, eps=1e-30, dtype=torch.float64)
    for knobs in ({"r_max": 1.0, "d_max": 0.0}, {"warmup_steps": 1, "r_steps": 2, "d_steps": 2}):
        ours = renorm(eps=1e-14, **knobs)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
        ours = renorm(eps=1e-14, **knobs)
        gradients = [
            torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight, norm.bias)) for norm in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    x, norm = x.detach(), renorm(eps=0.5, r_max=1.0, d_max=0.0)
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True).sqrt() + 0.5)
    torch.testing.assert_close(norm(x), expected)


def test_no_gradient_passes_through_r_and_d():
    """The gradient is gamma r / sigma (g - mean(g) - x_hat mean(g x_hat)) with x_hat the batch-normalized values."""
    norm = renorm(eps=1e-30, r_max=1e6, d_max=1e6)
    nn.init.constant_(norm.weight, 1.7)
    norm(2 + 3 * randn(9, 4, 3, seed=5))
    std = norm.running_std.clone()
    x = (1 + 2 * randn(6, 4, 3)).requires_grad_()
    y = norm(x)
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
    (dx,) = torch.autograd.grad(y, x, g)
    for c in range(4):
        xs, gs = x.detach()[:, c], g[:, c]
        sigma = xs.var(correction=0).sqrt()
        x_hat, r = (xs - xs.mean()) / sigma, sigma / std[c]
        expected = 1.7 * r / sigma * (gs - gs.mean() - x_hat * (gs * x_hat).mean())
        torch.testing.assert_close(dx[:, c], expected, rtol=1e-11, atol=1e-11)
        # Evaluation, whose output is the same, has another gradient.
        assert (dx[:, c] - 1.7 * gs / std[c]).abs().max() > 0.01


def test_a_constant_channel_has_finite_gradients_of_both_orders():
    norm = renorm(r_max=3.0, d_max=5.0)
    x = torch.ones(5, 4, 2, dtype=torch.float64).requires_grad_()
    (dx,) = torch.autograd.grad((norm(x) ** 3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.square().sum() + dx.sum(), x)
    assert dx.isfinite().all()
    assert ddx.isfinite().all()


@pytest.mark.parametrize(("estimator", "pooled"), [("paper", False), ("population", True)])
def test_recomputed_statistics_hold_sigma_with_its_eps_and_leave_the_count_alone(estimator, pooled):
    norm = renorm(eps=0.25)
    batches = [step + (1 + step) * randn(3 + step, 4, 2, seed=step) for step in range(3)]
    norm(batches[0])
    recompute_statistics(norm, batches, estimator=estimator)
    values = [x.transpose(0, 1).flatten(1) for x in batches]
    parts = [torch.cat(values, 1)] if pooled else values
    stds = torch.stack([v.var(1, correction=0).sqrt() + 0.25 for v in parts])
    torch.testing.assert_close(norm.running_std, stds.mean(0))
    torch.testing.assert_close(norm.running_mean, torch.stack([v.mean(1) for v in parts]).mean(0))
    assert norm.num_batches_tracked == 1
    norm.reset_statistics()
    assert norm.running_std.tolist() == [1.0] * 4
    assert norm.num_batches_tracked == 1


def test_a_batch_of_one_is_refused():
    with pytest.raises(Refusal, match="batch renormalization needs a batch of at least 2 samples") as refused:
        renorm()(torch.randn(1, 4, 3))
    assert refused.value.code == "batch-of-one"


@pytest.mark.parametrize("knob", ["r_steps", "d_steps"])
def test_bounds_that_would_end_before_they_begin_to_rise_are_refused(knob):
    with pytest.raises(
        ValueError, match=f"{knob} must be at least warmup_steps, got {knob} 7 and warmup_steps 8; raise"
    ):
        BatchRenormSpec(**{"warmup_steps": 8, "r_steps": 9, "d_steps": 9, knob: 7})


def test_a_compiled_pass_has_the_gradient_of_an_eager_one_though_the_statistics_moved_in_between():
    eager = BatchRenorm(4, warmup_steps=0, r_steps=1, d_steps=1, dtype=torch.float64)
    x, weights = (torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    for _ in range(3):
        eager(3 * x + 1)
    # What inductor does before it generates code: cheap operations of the forward pass are done again in the backward.
    rematerialize = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
    )
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend=rematerialize)
    gradients = []
    for norm in (eager, compiled):
        leaf = x.clone().requires_grad_()
        (norm(leaf) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
