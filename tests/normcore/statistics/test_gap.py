"""The gap between training and evaluation against its definition."""

from math import isnan

import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.norms.whitening import Whitening
from normcore.statistics.freeze import freeze_statistics
from normcore.statistics.gap import train_eval_gap
from normcore.statistics.recompute import recompute_statistics


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNorm])
def test_each_layer_has_the_relative_differences_of_its_definition(kind):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), kind(3), nn.Tanh(), kind(3)).double()
    for step in range(3):
        model(step + randn(4, 2, 3, 3, seed=step))
    x = 2 + 3 * randn(5, 2, 3, 3, seed=9)
    expected, h = {}, x
    with torch.no_grad():
        for index, layer in enumerate(model):
            if index in (1, 3):
                mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3))
                old_mean, old_var = layer.running_mean.clone(), layer.running_var.clone()
                evaluated = (h - old_mean.view(3, 1, 1)) / (old_var.view(3, 1, 1) + 1e-5).sqrt()
                biased = h.var((0, 2, 3), correction=0)
                trained = (h - mean.view(3, 1, 1)) / (biased.view(3, 1, 1) + 1e-5).sqrt()
                expected[str(index)] = (
                    ((trained - evaluated).norm() / trained.norm()).item(),
                    ((mean - old_mean).norm() / biased.sqrt().norm()).item(),
                    ((var - old_var).norm() / old_var.norm()).item(),
                )
                h = trained
            else:
                h = layer(h)
    gaps = train_eval_gap(model, x)
    assert [gap.layer for gap in gaps] == ["1", "3"]
    for gap in gaps:
        assert (gap.output, gap.mean, gap.spread) == pytest.approx(expected[gap.layer], rel=1e-9)


def test_it_leaves_no_footprints():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout()).double().eval()
    model[2].train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    train_eval_gap(model, randn(4, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [False, False, False, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_there_is_none_right_after_the_batch_itself_was_recomputed():
    model, x = nn.Sequential(nn.Linear(2, 3), BatchNorm(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).double(), randn(400, 2)
    assert min(gap.output for gap in train_eval_gap(model, x)) > 0.1
    recompute_statistics(model, [x])
    for gap in train_eval_gap(model, x):
        assert gap.output < 1e-9
        assert gap.mean < 1e-9
        # The batch's variance is the unbiased one, as running statistics hold it.
        assert gap.spread == pytest.approx(1 / 399)


def test_a_frozen_layer_does_the_same_in_both_modes():
    model = nn.Sequential(BatchNorm(3)).double()
    with freeze_statistics(model):
        (gap,) = train_eval_gap(model, 5 + randn(4, 3))
    assert gap.output == 0
    assert gap.mean > 1


def test_a_layer_with_other_statistics_has_the_gap_of_its_output_and_one_without_any_has_none():
    model = nn.Sequential(Whitening(2, channels_per_group=2, dtype=torch.float64), nn.LayerNorm(2).double())
    (gap,) = train_eval_gap(model, 3 + randn(9, 2))
    assert gap.output > 0.5
    assert train_eval_gap(model[1], randn(9, 2)) == ()


def test_a_layer_that_nobody_here_can_gather_says_so():
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    (gap,) = train_eval_gap(nn.Sequential(norm), torch.randn(3, 2, 5))
    assert gap.output > 0
    assert isnan(gap.mean)
    assert isnan(gap.spread)
