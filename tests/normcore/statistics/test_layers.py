"""Every norm on the menu lets its running statistics be computed anew: walked, so nobody can forget one."""

import pytest
import torch
from torch import nn

from normcore.norms.gathering import Gathers
from normcore.spec import MENU, kind_of
from normcore.statistics.freeze import freeze_statistics
from normcore.statistics.gap import train_eval_gap
from normcore.statistics.layers import gathering, has_running_statistics
from normcore.statistics.recompute import recompute_statistics

SMALL = {
    "group": {"num_groups": 2},
    "evonorm_s0": {"num_groups": 2},
    "ghost": {"virtual_batch_size": 2},
    "whitening": {"channels_per_group": 2},
    "iterative": {"channels_per_group": 2},
}
"""Knobs that fit four channels and eight samples."""


def build(kind):
    (spec,) = (spec for spec in MENU["norm"] if kind_of(spec) == kind)
    made = spec(**SMALL.get(kind, {}))
    return made.part()(4, **made.knobs(), dtype=torch.float64)


KINDS = [kind_of(spec) for spec in MENU["norm"]]
RUNNING = [kind for kind in KINDS if has_running_statistics(build(kind))]


def batch():
    """Two samples over and over: a layer that normalizes parts of the batch sees the same in each."""
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (3 + 2 * x).repeat(4, 1, 1, 1)


def test_the_menu_has_norms_with_and_without():
    assert {"batch", "ghost", "sync", "batch_renorm", "lp"} <= set(RUNNING) < set(KINDS)
    for kind in KINDS:
        # What evaluates otherwise than it trains has statistics to compute.
        assert (build(kind).claims.statistics == "batch") == (kind in RUNNING), kind


@pytest.mark.parametrize("kind", RUNNING)
def test_recomputed_over_a_batch_it_evaluates_that_batch_as_it_trains_on_it(kind):
    norm, x = build(kind), batch()
    assert isinstance(gathering(norm), Gathers)
    (before,) = train_eval_gap(norm, x)
    assert before.output > 0.1
    done = recompute_statistics(norm, [x])
    assert (done.layers, done.unseen, done.unknown) == (("",), (), ())
    with torch.no_grad():
        evaluated = norm.eval()(x)
        torch.testing.assert_close(evaluated, norm.train()(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", RUNNING)
def test_frozen_it_trains_as_it_evaluates_and_moves_nothing(kind):
    norm, x = build(kind), batch()
    norm(x)
    expected = norm.eval()(x)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    with freeze_statistics(norm):
        torch.testing.assert_close(norm.train()(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


def test_torchs_norms_with_statistics_of_each_sample_and_frozen_ones_are_unknown():
    class FrozenBatchNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(2))

    for module in (nn.InstanceNorm1d(2, track_running_stats=True), FrozenBatchNorm()):
        assert has_running_statistics(module)
        assert gathering(module) is None
    assert not has_running_statistics(nn.BatchNorm1d(2, track_running_stats=False))
    assert isinstance(gathering(nn.SyncBatchNorm(2)), Gathers)
