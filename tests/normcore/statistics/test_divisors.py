"""What norms divide by: closed forms, and the outputs that follow from it."""

import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.norms.evonorm_s0 import EvoNormS0
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.ghost import GhostBatchNorm
from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.iterative import IterativeNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.lp import LpNorm
from normcore.norms.power import PowerNorm
from normcore.norms.rms import RmsNorm
from normcore.norms.switchable import SwitchableNorm
from normcore.norms.sync import SyncBatchNorm
from normcore.norms.whitening import Whitening
from normcore.recurrent.time_batch_norm import TimeBatchNorm
from normcore.recurrent.time_layer_norm import TimeLayerNorm
from normcore.statistics.divisors import divisor

GENERATOR = torch.Generator().manual_seed(0)
X = 3 + 2 * torch.randn(6, 4, 5, 5, generator=GENERATOR, dtype=torch.float64)
X_LAST = X.movedim(1, -1)


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        (BatchNorm(4), X, X.var((0, 2, 3), correction=0)),
        (nn.BatchNorm2d(4, track_running_stats=False), X, X.var((0, 2, 3), correction=0)),
        (SyncBatchNorm(4, virtual_ranks=2), X, X.var((0, 2, 3), correction=0)),
        (GhostBatchNorm(4, virtual_batch_size=2), X, X.view(3, 2, 4, 5, 5).var((1, 3, 4), correction=0).flatten()),
        (LpNorm(4, p="1"), X, X.abs().mean((0, 2, 3))),
        (PowerNorm(4), X, X.square().mean((0, 2, 3))),
        (GroupNorm(4, num_groups=2), X, X.view(6, 2, -1).var(-1, correction=0).flatten()),
        (nn.GroupNorm(2, 4), X, X.view(6, 2, -1).var(-1, correction=0).flatten()),
        (EvoNormS0(4, num_groups=2), X, X.view(6, 2, -1).var(-1, correction=0).flatten()),
        (LayerNorm(4), X, X.flatten(1).var(1, correction=0)),
        (nn.LayerNorm([4, 5, 5]), X, X.flatten(1).var(1, correction=0)),
        (InstanceNorm(4), X, X.var((2, 3), correction=0).flatten()),
        (nn.InstanceNorm2d(4), X, X.var((2, 3), correction=0).flatten()),
        (FilterResponseNorm(4), X, X.square().mean((2, 3))),
        (LayerNormChannels(4), X, X.var(1, correction=0).flatten()),
        (nn.LayerNorm(4), X_LAST, X.var(1, correction=0).flatten()),
        (RmsNorm(4), X, X.square().mean(1).flatten()),
        (nn.RMSNorm(4), X_LAST, X.square().mean(1).flatten()),
        (Whitening(4, channels_per_group=4), X, torch.linalg.eigvalsh(X.transpose(0, 1).flatten(1).cov(correction=0))),
        (IterativeNorm(4, channels_per_group=1), X, X.var((0, 2, 3), correction=0)),
        (TimeBatchNorm(5, max_length=5), X[:, 0], X[:, 0].mT.var(0, correction=0).flatten()),
        (TimeLayerNorm(5), X[:, 0], X[:, 0].var(-1, correction=0).flatten()),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_the_statistic_is_that_of_the_definition(layer, x, expected):
    assert torch.allclose(divisor(layer, x).statistic, expected, rtol=1e-9)


@pytest.mark.parametrize("mixed", range(3))
def test_switchable_norm_divides_by_the_mixture_that_it_has_learned(mixed):
    layer = SwitchableNorm(4)
    nn.init.constant_(layer.var_weight, -100.0)
    with torch.no_grad():
        layer.var_weight[mixed] = 100.0
    of = (X.var((2, 3), correction=0), X.flatten(1).var(1, correction=0)[:, None], X.var((0, 2, 3), correction=0))[
        mixed
    ]
    assert torch.allclose(divisor(layer, X).statistic, of.expand(6, 4), rtol=1e-9)


def test_only_real_tokens_count():
    x, mask = X.flatten(2), torch.arange(25) < torch.tensor([[25], [7], [1], [0], [20], [3]])
    real = [row[:, keep] for row, keep in zip(x, mask, strict=True)]
    of_samples = torch.stack([each.var(correction=0) for each in real if each.numel()])
    assert torch.allclose(divisor(LayerNorm(4), x, mask).statistic, of_samples, rtol=1e-9)
    of_channels = torch.cat(real, 1).var(1, correction=0)
    assert torch.allclose(divisor(BatchNorm(4), x, mask).statistic, of_channels, rtol=1e-9)
    of_tokens = torch.cat(real, 1).var(0, correction=0)
    assert torch.allclose(divisor(LayerNormChannels(4), x, mask).statistic, of_tokens, rtol=1e-9)


def test_eps_is_the_layers_and_a_learned_one_is_part_of_it():
    x = X * torch.tensor([1.0, 1e-3, 1.0, 1e-3]).view(1, 4, 1, 1)
    assert divisor(nn.BatchNorm2d(4, eps=0.25), x).below_eps.tolist() == [False, True, False, True]
    layer = FilterResponseNorm(4, learned_eps=True)
    nn.init.zeros_(layer.eps_l)
    assert not divisor(layer, x).below_eps.any()
    with torch.no_grad():
        layer.eps_l[1] = -1.0
    assert divisor(layer, x).below_eps.sum(0).tolist() == [0, 6, 0, 0]


def test_rms_norm_of_torch_has_the_eps_of_its_input():
    assert divisor(nn.RMSNorm(4), X_LAST.float()).eps == torch.finfo(torch.float32).eps


def test_half_inputs_are_squared_in_float32():
    assert divisor(RmsNorm(4), torch.full((2, 4), 300.0, dtype=torch.float16)).statistic.tolist() == [9e4, 9e4]


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Identity(), nn.LocalResponseNorm(2)])
def test_what_adds_no_eps_has_no_divisor(layer):
    assert divisor(layer, X) is None
